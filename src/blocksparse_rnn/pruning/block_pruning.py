"""Block pruning (BP): blocks that score below a rising threshold become zero, and stay zero.

thresholds.py has the scores and thresholds, schedule.py how they rise.
Shapes: O rows and I columns of a matrix, R and C rows and columns of its grid of blocks.
Source: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, section 3.1.
"""

import math
import sys
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from blocksparse_rnn import distributed
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSetting, best_blocks, block_max, expand
from blocksparse_rnn.pruning.prunable import Matrix
from blocksparse_rnn.pruning.schedule import CubicSchedule, PaperSchedule, Steps
from blocksparse_rnn.pruning.sparsifier import Context, Sparsifier
from blocksparse_rnn.pruning.thresholds import ReferenceWeight, TargetSparsity, ThresholdRule


class BlockPruning(Sparsifier):
    """Prunes blocks on a schedule, by the paper's reference weight q or towards a target sparsity.

    Args:
        context: which matrices, and where dense weights are found.
        block: `4` or `8x2`.
        target_sparsity: fraction of zeros among the prunable weights at the end (ours); null: prune by q,
            as in the paper.
        q: the folder of a dense run in whose weights q is measured, or `auto`: a finished dense run of the
            same model, data and seed, or else the run's own weights when pruning starts (ours).
        size_exponent: null: q is the 90th percentile of the blocks' largest magnitudes (ours). A number:
            that of single magnitudes, and thresholds are multiplied by the weights per block to this
            power; 1/4 in the paper (equation 2). For blocks of 1 both are the paper's equation 1. For larger
            blocks 1/4 prunes more than 90 %: of independent Gaussian weights 90 % of the blocks lie below
            1.65 q (4x4), 1.92 q (8x8), 2.15 q (16x16), while the fourth root gives 2, 2.83 and 4
            (notebooks/block_pruning.ipynb).
        skip_zeros: whether training skips the zero blocks once pruning has ended.
        max_sparsity: no matrix loses more than this fraction of its blocks (ours).
        rate_exponent: the learning rate of a pruned matrix is divided by its density to this power; 0 in
            the paper. With fewer weights each must change more to change a layer's output as much: with
            Adam, whose step size is the rate alone, the power for an equal change is 1 (Dey, Bergsma,
            Hestness, "Sparse maximal update parameterization", 2024, for networks sparse from the start).
        schedule: when the threshold rises.

    Raises:
        UserError: a value is out of its range, or the schedule needs a target.
    """

    def __init__(
        self,
        context: Context,
        *,
        block: BlockSetting,
        target_sparsity: float | None,
        q: str,
        size_exponent: float | None,
        skip_zeros: bool | None,
        max_sparsity: float,
        rate_exponent: float,
        schedule: PaperSchedule | CubicSchedule,
    ) -> None:
        super().__init__(context, block, max_sparsity)
        if not 0 <= rate_exponent <= 1:
            raise UserError(f"sparsifier.block_pruning.rate_exponent={rate_exponent}: must be from 0 to 1")
        self.rule: ThresholdRule = (
            ReferenceWeight(context.find_dense, self.block, schedule, q, size_exponent)
            if target_sparsity is None
            else TargetSparsity(self.block, schedule, target_sparsity, max_sparsity)
        )
        self.skip_zeros = bool(skip_zeros)
        self.rate_exponent = rate_exponent
        self.schedule = schedule
        self.steps = Steps(0, 0, 0, freq=1)  # no update until training starts
        self.masks: dict[str, Tensor] = {}
        """Matrix name -> (R, C), True where a block is kept."""
        self.thresholds: dict[str, float] = {}
        """Matrix type, or `score` with a target -> threshold of the last update."""
        self.last_update = 0
        self.pruned = 0.0
        """Fraction of the prunable weights that the masks prune."""
        self._outcome = "nothing pruned: the training did not start"
        self._weight_masks: list[Tensor] = []
        self._rate_factors: dict[Tensor, float] = {}

    # Start.

    def check(self, model: nn.Module) -> None:
        super().check(model)
        self.rule.check(self.matrices(model))

    def on_train_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        matrices = self.matrices(recogniser.model)
        total_steps = int(trainer.estimated_stepping_batches)
        steps = self.schedule.resolve(int(trainer.num_training_batches), total_steps)
        # All blocks of random weights; of a pruned run's weights (start_from) the nonzero ones.
        nonzero = {m.name: block_max(m.weight.detach(), self.block) > 0 for m in matrices}
        if self.masks:  # resumed
            self._check_restored(steps, nonzero)
            self.masks = {m.name: self.masks[m.name].to(m.weight.device) for m in matrices}
        else:
            self.steps, self.masks = steps, nonzero
            if steps.updates:
                self._outcome = f"unfinished: ends at step {steps.updates[-1]}"
                self.rule.measure_dense(matrices)
            else:
                self._outcome = (
                    f"nothing pruned: schedule with start_epoch={self.schedule.start_epoch:g}, "
                    f"end_frac={self.schedule.end_frac:g} and freq={self.schedule.freq} has no update within "
                    f"{total_steps} steps; train longer or start earlier"
                )
        if not steps.updates:
            print(f"warning: {self._outcome}", file=sys.stderr)
        self._apply(matrices, trainer.optimizers)

    def on_train_batch_start(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        if self.steps.updates and trainer.global_step == self.steps.start_itr:
            self.rule.measure_own(self.matrices(recogniser.model), trainer.global_step)

    # Update: every freq steps.

    def on_train_batch_end(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        itr = trainer.global_step
        if itr in self.steps.updates and itr != self.last_update:
            matrices = self.matrices(recogniser.model)
            self._update(itr, matrices)
            distributed.check_equal(self.masks)
            self._apply(matrices, trainer.optimizers)
        # At every step: Lightning repeats a value logged once until the epoch ends, but not after a resume.
        for group, threshold in self.thresholds.items():
            recogniser.log(f"threshold/{group}", threshold)
        if self.thresholds:
            recogniser.log("sparsity/pruned", self.pruned)

    @torch.no_grad()
    def _update(self, itr: int, matrices: list[Matrix]) -> None:
        """Raise the thresholds, and prune the blocks that score below."""
        scores = {m.name: self.rule.score(m.weight) for m in matrices}
        guarded = {name: self._guard(score_RC) for name, score_RC in scores.items()}
        self.thresholds = self.rule.thresholds(itr, self.steps, scores, guarded)
        for m in matrices:
            threshold = self.thresholds[self.rule.group(m)]
            self.masks[m.name] = self.masks[m.name] & (guarded[m.name] >= threshold)
            if (self.masks[m.name] & (scores[m.name] < threshold)).any():
                self.warn_spared(m.name, self.rule.remedy)
        self.last_update = itr
        if itr == self.steps.updates[-1]:
            self._outcome = f"finished at step {itr}"

    def _guard(self, score_RC: Tensor) -> Tensor:
        """Infinite scores for a matrix's best blocks: a matrix without blocks would pass no gradient on."""
        best = best_blocks(score_RC, self.max_sparsity)
        return score_RC.flatten().index_fill(0, best, math.inf).view_as(score_RC)

    # Apply: masks to weights and momentum after an update, to gradients and learning rates at every step.

    @torch.no_grad()
    def _apply(self, matrices: list[Matrix], optimizers: list[torch.optim.Optimizer]) -> None:
        """Zero the pruned weights and their momentum; with their gradients zero they stay so."""
        if all(self.masks[m.name].all() for m in matrices):
            return  # nothing is pruned yet, so the hook of every step has nothing to do
        kept, blocks = self._count_blocks()
        self.pruned = 1 - kept / blocks
        self._weight_masks = [expand(self.masks[m.name], self.block).to(m.weight.dtype) for m in matrices]
        for m, mask_OI in zip(matrices, self._weight_masks, strict=True):
            self._rate_factors[m.weight] = float(mask_OI.mean()) ** -self.rate_exponent
            m.weight.mul_(mask_OI)
            for optimizer in optimizers:
                for state in optimizer.state.get(m.weight, {}).values():
                    if isinstance(state, Tensor) and state.shape == m.weight.shape:
                        state.mul_(mask_OI)

    def on_before_optimizer_step(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        # Before the gradient is clipped: pruned weights must not count in its norm.
        if self._weight_masks:
            gradients = [m.weight.grad for m in self.matrices(recogniser.model)]
            torch._foreach_mul_(gradients, self._weight_masks)  # type: ignore[arg-type]
            self._raise_rates(trainer)

    def _raise_rates(self, trainer: pl.Trainer) -> None:
        """For the coming step only: after it the scheduler sets every rate anew."""
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                [parameter] = group["params"]
                group["lr"] = rate * self._rate_factors.get(parameter, 1.0)

    def _count_blocks(self) -> tuple[int, int]:
        """Kept blocks, and all blocks."""
        masks = self.masks.values()
        return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)

    # End.

    def pruning_finished(self, step: int) -> bool:
        return not self.steps.updates or step >= self.steps.updates[-1]

    def final_masks(self, step: int) -> dict[str, Tensor] | None:
        return self.masks if self.steps.updates and self.pruning_finished(step) else None

    def on_train_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        if not self.pruning_finished(trainer.global_step):
            print(
                f"warning: pruning is {self._outcome}, and training ended at step {trainer.global_step}",
                file=sys.stderr,
            )

    def verify(self, model: nn.Module) -> None:
        for matrix in self.matrices(model):
            mask_OI = expand(self.masks[matrix.name], self.block).to(matrix.weight.device)
            assert not matrix.weight[~mask_OI].any(), f"{matrix.name} has weights where its mask prunes"

    def report(self) -> dict[str, Any]:
        kept, blocks = self._count_blocks()
        return {
            "pruning": self._outcome,
            "q": self.rule.q,
            "q_source": self.rule.q_source,
            "thresholds": self.thresholds,
            "blocks": {"total": blocks, "kept": kept},
        }

    # State in the checkpoint.

    def state_dict(self) -> dict[str, Any]:
        return {
            "steps": vars(self.steps),
            "masks": dict(self.masks),
            "thresholds": dict(self.thresholds),
            "q": dict(self.rule.q),
            "q_source": self.rule.q_source,
            "last_update": self.last_update,
            "outcome": self._outcome,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = Steps(**state["steps"])
        self.masks, self.thresholds = state["masks"], state["thresholds"]
        self.rule.q, self.rule.q_source = state["q"], state["q_source"]
        self.last_update, self._outcome = state["last_update"], state["outcome"]

    def _check_restored(self, steps: Steps, masks: dict[str, Tensor]) -> None:
        """Compare the checkpoint's schedule and mask shapes with this run's.

        Raises:
            UserError: they differ.
        """
        wanted = {name: mask_RC.shape for name, mask_RC in masks.items()}
        found = {name: mask_RC.shape for name, mask_RC in self.masks.items()}
        if (found, self.steps) != (wanted, steps):
            raise UserError(
                "the checkpoint's masks belong to other settings (block, model or schedule); "
                "move the run's folder away to train anew"
            )
