"""Group lasso (GL): a penalty on the norms of blocks, which makes whole blocks zero.

Loss = CTC + lambda_g * sum over blocks of ||w_block||_2.
Shapes: R and C rows and columns of a matrix's grid of blocks.
Sources: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, section 3.2. The
proximal step: Yuan and Lin, "Model selection and estimation in regression with grouped variables", 2006.
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
    """Group lasso over the blocks of the prunable matrices, for the whole training.

    Args:
        context: which matrices.
        block: `4` or `8x2`.
        lambda_g: strength.
        max_sparsity: no matrix loses more than this fraction of its blocks (ours).
        form: `proximal` (ours): after each optimizer step every block's norm shrinks by learning rate *
            lambda_g, to exactly zero where it is smaller; with AdamW this is decoupled from the gradient's
            scale, as its weight decay is. After the last step, blocks that were zero after any step of the
            last epoch become zero. `loss` adds the penalty to the loss, as in the paper: norms become
            small, but hardly ever zero.

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
        self.zeroed: dict[str, Tensor] = {}
        """Matrix name -> (R, C), True where a block was zero after any step of this epoch."""

    def pruning_finished(self, step: int) -> bool:
        # The proximal step zeroes blocks until the end, and earlier checkpoints are less sparse.
        return self.form == "loss"

    def penalty(self, model: nn.Module) -> Tensor:
        """lambda_g * sum over blocks of ||w_block||_2, a scalar."""
        norms = [block_norm(m.weight, self.block).sum() for m in self.matrices(model)]
        return self.lambda_g * torch.stack(norms).sum()

    def on_fit_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        if self.form == "loss":
            recogniser.penalties.append(("group_lasso", lambda: self.penalty(recogniser.model)))

    def on_train_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        self.zeroed = {name: zero_RC.to(recogniser.device) for name, zero_RC in self.zeroed.items()}

    def on_train_batch_start(self, trainer: pl.Trainer, recogniser: Any, batch: Any, index: int) -> None:
        if index == 0:  # a new epoch, not a resume within one
            self.zeroed = {}

    def on_train_batch_end(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        matrices = self.matrices(recogniser.model)
        stepped = matrices[0].weight.grad is not None  # false where non-finite gradients were skipped
        if self.form == "proximal" and stepped:
            rates = {p: g["lr"] for o in trainer.optimizers for g in o.param_groups for p in g["params"]}
            penalty = self.proximal_step(matrices, [rates[m.weight] for m in matrices])
            recogniser.log("train/group_lasso", penalty)

    def on_validation_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        # After the last step of the run, or of the time that it may take.
        if trainer.should_stop and self.zeroed:
            self.zero_again(self.matrices(recogniser.model))

    def on_train_epoch_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        matrices = self.matrices(recogniser.model)
        distributed.check_equal({m.name: block_max(m.weight.detach(), self.block) > 0 for m in matrices})

    @torch.no_grad()
    def proximal_step(self, matrices: list[Matrix], rates: list[float]) -> Tensor:
        """Shrink the blocks of every matrix by its learning rate * lambda_g.

        Returns:
            the penalty before the step, a scalar.
        """
        norms = {m.name: block_norm(m.weight, self.block) for m in matrices}
        factors = {
            m.name: 1 - lr * self.lambda_g / norms[m.name] for m, lr in zip(matrices, rates, strict=True)
        }
        self._guard(norms, factors)
        for m in matrices:
            factor_RC = factors[m.name].clamp_min(0)
            scale_blocks_(m.weight, factor_RC, self.block)
            zero_RC = factor_RC == 0
            self.zeroed[m.name] = zero_RC | self.zeroed[m.name] if m.name in self.zeroed else zero_RC
        return self.lambda_g * torch.stack([norm_RC.sum() for norm_RC in norms.values()]).sum()

    @torch.no_grad()
    def zero_again(self, matrices: list[Matrix]) -> None:
        """Zero the blocks that were zero after any step of this epoch, and leave the others unchanged.

        Optimizer steps move an unused block off zero, and every few steps the proximal step makes it zero
        again. Both movements shrink with the learning rate: without this, such blocks would end with tiny
        nonzero weights.
        """
        norms = {m.name: block_norm(m.weight, self.block) for m in matrices}
        factors = {name: 1 - self.zeroed[name].to(norm_RC.dtype) for name, norm_RC in norms.items()}
        self._guard(norms, factors)
        for m in matrices:
            scale_blocks_(m.weight, factors[m.name], self.block)

    def _guard(self, norms: dict[str, Tensor], factors: dict[str, Tensor]) -> None:
        """In a matrix that would lose too many blocks, keep the best ones unchanged.

        A matrix of zeros passes no gradient on, so it would stay zero.
        """
        kept = torch.stack([(factor_RC > 0).count_nonzero() for factor_RC in factors.values()]).tolist()
        for (name, norm_RC), alive in zip(norms.items(), kept, strict=True):
            best = best_blocks(norm_RC, self.max_sparsity)
            if alive < len(best):
                factor = factors[name].view(-1)
                factor[best] = factor[best].where(factor[best] > 0, 1.0)
                self.warn_spared(name, "a smaller lambda_g")

    # State in the checkpoint.

    def state_dict(self) -> dict[str, Any]:
        return {"zeroed": dict(self.zeroed)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.zeroed = dict(state["zeroed"])
