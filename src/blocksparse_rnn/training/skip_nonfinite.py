"""Steps whose gradients are not finite are skipped and counted; too many in a row end the run."""

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from blocksparse_rnn import distributed
from blocksparse_rnn.data.datamodule import Batch
from blocksparse_rnn.errors import UserError


class SkipNonFinite(pl.Callback):
    """Drops gradients that have an infinity or a NaN, so that weights and optimizer stay as they were.

    Batch norm's statistics are restored too. All ranks have the same sum of gradients, so all skip the same steps.

    Args:
        max_skipped: steps in a row that may be skipped.
    """

    def __init__(self, max_skipped: int) -> None:
        self.max_skipped = max_skipped
        self.total = 0
        """Steps skipped so far."""
        self._in_a_row = 0
        self._files: list[str] = []
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"total": self.total, "in_a_row": self._in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.total, self._in_a_row = state["total"], state["in_a_row"]

    def on_train_start(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        self._buffers = list(recogniser.buffers())
        self._kept = [torch.empty_like(buffer) for buffer in self._buffers]

    def on_train_batch_start(
        self, trainer: pl.Trainer, recogniser: pl.LightningModule, batch: Batch, batch_index: int
    ) -> None:
        self._files = batch.files
        torch._foreach_copy_(self._kept, self._buffers)

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, recogniser: pl.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        parameters = list(recogniser.parameters())
        norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        finite = bool(torch.isfinite(norm))
        self.total += not finite
        if self.total:
            recogniser.log("train/skipped", float(self.total))
        if finite:
            self._in_a_row = 0
            return
        for parameter in parameters:
            parameter.grad = None  # every optimizer skips a parameter without a gradient
        torch._foreach_copy_(self._buffers, self._kept)
        self._in_a_row += 1
        if self._in_a_row > self.max_skipped:
            files = ", ".join(distributed.gather_names(self._files))
            raise UserError(
                f"{self._in_a_row} steps in a row had gradients that are not finite, the last at step "
                f"{trainer.global_step} (epoch {trainer.current_epoch}); trainer.max_skipped={self.max_skipped} "
                f"allows fewer; try a lower optimizer.lr or trainer.clip, and look at this batch: {files}"
            )
