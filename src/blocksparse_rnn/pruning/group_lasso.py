"""GL: a penalty on the norms of blocks, which draws whole blocks to zero.

Loss = CTC + lambda_g * sum over blocks of ||w_block||_2. Source: Narang, Undersander, Diamos,
"Block-Sparse Recurrent Neural Networks", 2017, section 3.2; the proximal step is that of Yuan and
Lin's group lasso, "Model selection and estimation in regression with grouped variables", 2006.
"""

from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from blocksparse_rnn import distributed
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSetting, best_blocks, block_max, block_norm, scale_blocks_
from blocksparse_rnn.pruning.prunable import Matrix
from blocksparse_rnn.pruning.sparsifier import Context, Sparsifier


class GroupLasso(Sparsifier):
    """Group lasso over the blocks of the prunable matrices.

    Args:
        context: which matrices.
        block: `4` or `8x2`.
        lambda_g: strength.
        max_sparsity: no matrix loses more than this share of its blocks.
        form: `proximal` shrinks every block's norm by learning rate * lambda_g after each optimizer
            step, to exactly zero where it is smaller than that; with AdamW this is decoupled from the
            gradient's scale, as its weight decay is. After the last step, blocks that were zero at some step
            of the last epoch are zero again. `loss` adds the penalty to the loss, which makes norms small
            but hardly ever zero.

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
        self.taken: dict[str, Tensor] = {}
        """Name -> (R, C), True where a block was zero at some step of this epoch."""

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

    def on_train_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        self.taken = {name: zero_RC.to(recogniser.device) for name, zero_RC in self.taken.items()}

    def on_train_batch_start(self, trainer: pl.Trainer, recogniser: Any, batch: Any, index: int) -> None:
        if index == 0:  # not where an epoch resumes
            self.taken = {}

    def on_train_batch_end(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        matrices = self.matrices(recogniser.model)
        left_out = matrices[0].weight.grad is None  # a step that changed no weight
        if self.form == "proximal" and not left_out:
            rates = {p: g["lr"] for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
            recogniser.log("train/group_lasso", self.shrink(matrices, [rates[m.weight] for m in matrices]))

    def on_validation_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        # After the last step, or the last that the clock allows.
        if trainer.should_stop and self.taken:
            self.drop(self.matrices(recogniser.model))

    def on_train_epoch_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        matrices = self.matrices(recogniser.model)
        distributed.check_equal({m.name: block_max(m.weight.detach(), self.block) > 0 for m in matrices})

    @torch.no_grad()
    def shrink(self, matrices: list[Matrix], rates: list[float]) -> Tensor:
        """The proximal step of every matrix with its learning rate; returns the penalty before it."""
        norms = {m.name: block_norm(m.weight, self.block) for m in matrices}
        factors = {
            m.name: 1 - lr * self.lambda_g / norms[m.name] for m, lr in zip(matrices, rates, strict=True)
        }
        self._guard(norms, factors)
        for m in matrices:
            factor_RC = factors[m.name].clamp_min(0)
            scale_blocks_(m.weight, factor_RC, self.block)
            zero_RC = factor_RC == 0
            self.taken[m.name] = zero_RC | self.taken[m.name] if m.name in self.taken else zero_RC
        return self.lambda_g * torch.stack([norm_RC.sum() for norm_RC in norms.values()]).sum()

    @torch.no_grad()
    def drop(self, matrices: list[Matrix]) -> None:
        """Zero the blocks that were zero at some step of this epoch, and leave the others as they are.

        The optimizer moves a block without a use by steps of the learning rate, and the shrink takes it back
        to zero every few steps. As the rate falls, so do both, until what a block has just then stays in it.
        """
        norms = {m.name: block_norm(m.weight, self.block) for m in matrices}
        factors = {name: 1 - self.taken[name].to(norm_RC.dtype) for name, norm_RC in norms.items()}
        self._guard(norms, factors)
        for m in matrices:
            scale_blocks_(m.weight, factors[m.name], self.block)

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

    # The state in the checkpoint.

    def state_dict(self) -> dict[str, Any]:
        return {"taken": dict(self.taken)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken = dict(state["taken"])
