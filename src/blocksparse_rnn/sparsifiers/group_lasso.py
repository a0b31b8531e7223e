"""GL: a penalty on the norms of blocks, which draws whole blocks to zero.

Loss = CTC + lambda_g * sum over blocks of ||w_block||_2. Source: Narang, Undersander, Diamos,
"Block-Sparse Recurrent Neural Networks", 2017, section 3.2; the proximal step is that of Yuan and
Lin's group lasso, "Model selection and estimation in regression with grouped variables", 2006.
"""

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from blocksparse_rnn import ranks
from blocksparse_rnn.blocks import BlockSetting, best_blocks, block_max, block_norm, scale_blocks_
from blocksparse_rnn.counts import Matrix
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.sparsifiers.base import Context, Sparsifier


class GroupLasso(Sparsifier):
    """Group lasso over the blocks of the prunable matrices.

    Args:
        context: which matrices.
        block: `4` or `8x2`.
        lambda_g: strength.
        max_sparsity: no matrix loses more than this share of its blocks.
        form: `proximal` shrinks every block's norm by learning rate * lambda_g after each optimizer
            step, to exactly zero where it is smaller than that; with AdamW this is decoupled from the
            gradient's scale, as its weight decay is. After the last step, blocks smaller than the shrink
            of the highest rate are zero, too. `loss` adds the penalty to the loss, which makes norms
            small but hardly ever zero.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self,
        context: Context,
        *,
        block: BlockSetting,
        lambda_g: float,
        max_sparsity: float,
        form: Literal["proximal", "loss"],
    ) -> None:
        super().__init__(context, block, max_sparsity)
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

    def on_train_batch_end(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        matrices = self.matrices(recogniser.model)
        left_out = matrices[0].weight.grad is None  # a step that changed no weight
        if self.form == "proximal" and not left_out:
            rates = [group["lr"] for group in _groups(trainer, matrices)]
            recogniser.log("train/group_lasso", self.shrink(matrices, rates))

    def on_validation_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        # After the last step, or the last that the clock allows.
        if self.form == "proximal" and trainer.should_stop:
            matrices = self.matrices(recogniser.model)
            self.drop(matrices, [_highest_rate(group) for group in _groups(trainer, matrices)])

    def on_train_epoch_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        matrices = self.matrices(recogniser.model)
        ranks.check_equal({m.name: block_max(m.weight.detach(), self.block) > 0 for m in matrices})

    @torch.no_grad()
    def shrink(self, matrices: list[Matrix], rates: list[float]) -> Tensor:
        """The proximal step of every matrix with its learning rate; returns the penalty before it."""
        norms, factors = self._shrunk(matrices, rates)
        for m in matrices:
            scale_blocks_(m.weight, factors[m.name].clamp_min(0), self.block)
        return self.lambda_g * torch.stack([norm_RC.sum() for norm_RC in norms.values()]).sum()

    @torch.no_grad()
    def drop(self, matrices: list[Matrix], rates: list[float]) -> None:
        """Zero the blocks that a proximal step with these rates would take, and leave the others as they are.

        The optimizer moves a block without a use to and fro by steps of the learning rate, and the shrink
        keeps it near zero. As the rate falls, so do both, and what was a block's noise at the time stays.
        """
        _, factors = self._shrunk(matrices, rates)
        for m in matrices:
            scale_blocks_(m.weight, (factors[m.name] > 0).to(m.weight.dtype), self.block)

    def _shrunk(
        self, matrices: list[Matrix], rates: list[float]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Norms (R, C) of blocks by name, and what a step multiplies them by: 0 or less takes the block."""
        norms = {m.name: block_norm(m.weight, self.block) for m in matrices}
        factors = {
            m.name: 1 - lr * self.lambda_g / norms[m.name] for m, lr in zip(matrices, rates, strict=True)
        }
        self._guard(norms, factors)
        return norms, factors

    def _guard(self, norms: dict[str, Tensor], factors: dict[str, Tensor]) -> None:
        """Let a matrix that would collapse keep its best blocks as they are.

        A layer whose blocks are all zero passes no gradient on, and nothing would bring it back.
        """
        kept = torch.stack([(factor_RC > 0).count_nonzero() for factor_RC in factors.values()]).tolist()
        for (name, norm_RC), alive in zip(norms.items(), kept, strict=True):
            best = best_blocks(norm_RC, self.max_sparsity)
            if alive < len(best):
                factor = factors[name].view(-1)
                factor[best] = factor[best].where(factor[best] > 0, 1.0)
                self.warn_spared(name, "a smaller lambda_g")


def _groups(trainer: pl.Trainer, matrices: list[Matrix]) -> list[dict[str, Any]]:
    """The optimizer's group of each matrix."""
    groups = {p: group for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
    return [groups[m.weight] for m in matrices]


def _highest_rate(group: dict[str, Any]) -> float:
    """The highest learning rate of an optimizer's group: a one-cycle schedule's own, else its first."""
    return float(group.get("max_lr", group.get("initial_lr", group["lr"])))
