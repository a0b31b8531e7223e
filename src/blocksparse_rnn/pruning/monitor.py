"""Logs the sparsity by matrix and gate and the norms of the kept blocks, and draws the masks."""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from blocksparse_rnn.pruning.blocks import BlockSize, block_max, block_norm
from blocksparse_rnn.pruning.mask_pictures import draw_blocks
from blocksparse_rnn.pruning.prunable import count_zeros, prunable_matrices


class SparsityMonitor(pl.Callback):
    """Logs the sparsity after every epoch, and draws the kept blocks when training ends.

    Args:
        prunable: matrix type -> name patterns.
        block: rows and columns of a block.
        picture: path of the PNG file.
    """

    def __init__(self, prunable: dict[str, list[str]], block: BlockSize, picture: Path) -> None:
        self.prunable = prunable
        self.block = block
        self.picture = picture

    def on_train_epoch_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        zeros = count_zeros(recogniser.model, self.prunable)
        recogniser.log_dict({"sparsity/total": zeros.total, "sparsity/prunable": zeros.prunable})
        recogniser.log_dict({f"sparsity/{name}": share for name, share in zeros.matrices.items()})
        norms = median_block_norms(recogniser.model, self.prunable, self.block)
        recogniser.log_dict({f"block_norm/{kind}": norm for kind, norm in norms.items()})

    def on_fit_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        if not trainer.is_global_zero:
            return
        draw_blocks(recogniser.model, self.prunable, self.block, self.picture)
        for logger in trainer.loggers:
            if hasattr(logger, "log_image"):  # W&B
                logger.log_image("masks", [str(self.picture)])


@torch.no_grad()
def median_block_norms(
    model: nn.Module, prunable: dict[str, list[str]], block: BlockSize
) -> dict[str, float]:
    """Matrix type -> median Euclidean norm of its nonzero blocks; NaN without any."""
    norms: dict[str, list[torch.Tensor]] = {}
    for matrix in prunable_matrices(model, prunable):
        kept_RC = block_max(matrix.weight, block) > 0
        norms.setdefault(matrix.type, []).append(block_norm(matrix.weight, block)[kept_RC])
    return {kind: torch.cat(kept).median().item() for kind, kept in norms.items()}
