"""GL: a penalty on the norms of blocks, which draws whole blocks to zero.

Loss = CTC + lambda_g * sum over blocks of ||w_block||_2. Source: Narang, Undersander, Diamos,
"Block-Sparse Recurrent Neural Networks", 2017, section 3.2; the proximal step is that of Yuan and
Lin's group lasso, "Model selection and estimation in regression with grouped variables", 2006.
"""

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from blocksparse_rnn.blocks import block_norm, scale_blocks_
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.sparsifiers.base import Context, Sparsifier


class GroupLasso(Sparsifier):
    """Group lasso over the blocks of the prunable matrices.

    Args:
        context: which matrices.
        block: `4` or `8x2`.
        lambda_g: strength.
        form: `proximal` shrinks every block's norm by learning rate * lambda_g after each optimizer
            step, to exactly zero where it is smaller than that; with AdamW this is decoupled from the
            gradient's scale, as its weight decay is. `loss` adds the penalty to the loss, which
            makes norms small but hardly ever zero.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self, context: Context, *, block: int | str, lambda_g: float, form: Literal["proximal", "loss"]
    ) -> None:
        super().__init__(context, block)
        if lambda_g < 0:
            raise UserError(f"sparsifier.group_lasso.lambda_g={lambda_g}: must not be negative")
        self.lambda_g = lambda_g
        self.form = form

    def settled(self, step: int) -> bool:
        # Blocks vanish up to the last step, and the lowest error rate would choose an early, dense model.
        return self.form == "loss"

    def penalty(self, model: nn.Module) -> Tensor:
        """lambda_g * sum over blocks of ||w_block||_2."""
        norms = [block_norm(m.weight, self.block).sum() for m in self.matrices(model)]
        return self.lambda_g * torch.stack(norms).sum()

    def on_fit_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        if self.form == "loss":
            recogniser.penalties.append(("group_lasso", lambda: self.penalty(recogniser.model)))

    @torch.no_grad()
    def on_train_batch_end(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        if self.form == "proximal":
            rates = {p: g["lr"] for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
            norms = [self._shrink(m.weight, rates[m.weight]) for m in self.matrices(recogniser.model)]
            recogniser.log("train/group_lasso", self.lambda_g * torch.stack(norms).sum())

    def _shrink(self, weight_OI: Tensor, lr: float) -> Tensor:
        """The proximal step of one matrix; returns the sum of its blocks' norms before."""
        norm_RC = block_norm(weight_OI, self.block)
        scale_blocks_(weight_OI, (1 - lr * self.lambda_g / norm_RC).clamp_min(0), self.block)
        return norm_RC.sum()
