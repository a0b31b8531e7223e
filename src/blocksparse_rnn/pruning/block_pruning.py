"""BP: blocks whose largest magnitude lies under a rising threshold become zero, for good.

Source: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, section 3.
"""

import math
import sys
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from blocksparse_rnn import distributed
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSetting, best_blocks, block_max, expand, quantile
from blocksparse_rnn.pruning.prunable import Matrix
from blocksparse_rnn.pruning.schedule import CubicSchedule, PaperSchedule, Steps
from blocksparse_rnn.pruning.sparsifier import Context, Sparsifier

_VERSION = 1
_REFERENCE = 0.9  # q is this quantile of magnitudes (the 90th percentile)


class BlockPruning(Sparsifier):
    """Prunes on a schedule, towards a reference weight q or towards a target sparsity.

    With q, as in the paper, a block's score is its largest magnitude, and thresholds are per matrix
    type. With a target, the score is also divided by the mean magnitude of the weights that its matrix
    still has, and one threshold holds for all. Raw magnitudes would empty matrices whose weights are
    small. A mean over zeros, too, would fall as a matrix loses blocks, and so lift the rest of it over
    the next threshold, until other matrices are empty (results/sparsifiers/mean_with_zeros).

    Args:
        context: which matrices, and where dense weights are found.
        block: `4` or `8x2`.
        target_sparsity: share of zeros among the prunable weights at the end, or null: q decides.
        q: the folder of a dense run whose weights q is taken from, or `auto`: that of a finished dense
            run of the same model, data and seed, and else the run's own weights when pruning starts.
        size_exponent: null: q is the 90th percentile of the blocks' largest magnitudes. A number: that
            of single magnitudes, and thresholds are q times the elements of a block to this power. For
            blocks of 1 both are the paper's q; for larger ones the paper has the power, as recalled
            1/4. That prunes nearly all of a larger block's matrix: of independent Gaussian weights 90 % of
            the blocks lie below 1.65 q (4x4), 1.92 q (8x8), 2.15 q (16x16), and the fourth root gives
            2, 2.83 and 4 (notebooks/block_pruning.ipynb).
        skip_zeros: whether training skips the zero blocks once pruning has ended.
        max_sparsity: no matrix loses more than this share of its blocks.
        rate_exponent: what is left of a matrix learns at the learning rate over its density to this power. Fewer
            weights must change by more to change a layer's output as much: with Adam's steps, whose size is the
            rate alone, the power for an output that learns alike is 1 (Dey, Bergsma, Hestness, "Sparse maximal
            update parameterization", 2024, for networks sparse from their start). 0 leaves the rate as it is.
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
        if target_sparsity is not None and not 0 < target_sparsity <= max_sparsity:
            raise UserError(
                f"target_sparsity={target_sparsity}: must be above 0 and at most max_sparsity={max_sparsity}, "
                "or null to prune by q"
            )
        if not 0 <= rate_exponent <= 1:
            raise UserError(f"sparsifier.block_pruning.rate_exponent={rate_exponent}: must be from 0 to 1")
        if target_sparsity is None and isinstance(schedule, CubicSchedule):
            raise UserError("schedule=cubic: needs a target_sparsity, such as 0.9; or take schedule=paper")
        self.target_sparsity = target_sparsity
        self.q_setting = q
        self.skip_zeros = bool(skip_zeros)
        elements = self.block[0] * self.block[1]
        self.q_block = self.block if size_exponent is None else (1, 1)
        self.size_factor: float = 1.0 if size_exponent is None else elements**size_exponent
        self.rate_exponent = rate_exponent
        self.schedule = schedule
        self.masks: dict[str, Tensor] = {}
        """Name -> (R, C), True where a block is kept."""
        self.thresholds: dict[str, float] = {}
        """Matrix type, or `score` with a target, -> threshold of the last update."""
        self.pruned = 0.0
        """Share of the prunable weights that the masks have taken."""
        self.q: dict[str, float] = {}
        self.q_source: str | None = None
        self.steps: Steps | None = None
        self.last_update = 0
        self._weight_masks: list[Tensor] = []
        self._rate_factors: dict[Tensor, float] = {}
        self._restored: dict[str, Any] | None = None
        self._outcome = "nothing pruned: the training did not start"

    def check(self, model: nn.Module) -> None:
        super().check(model)
        if self.target_sparsity is None and self.q_setting != "auto":
            self._measure_dense(self.matrices(model))

    def settled(self, step: int) -> bool:
        return self.steps is None or step >= self.steps.updates[-1]

    def final_masks(self, step: int) -> dict[str, Tensor] | None:
        return self.masks if self.steps is not None and self.settled(step) else None

    def verify(self, model: nn.Module) -> None:
        for matrix in self.matrices(model):
            mask_OI = expand(self.masks[matrix.name], self.block).to(matrix.weight.device)
            assert not matrix.weight[~mask_OI].any(), f"{matrix.name} has weights where its mask prunes"

    def report(self) -> dict[str, Any]:
        kept, blocks = self._count_blocks()
        return {
            "pruning": self._outcome,
            "q": self.q,
            "q_source": self.q_source,
            "thresholds": self.thresholds,
            "blocks": {"total": blocks, "kept": kept},
        }

    # The training, in the order of a run.

    def on_train_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        matrices = self.matrices(recogniser.model)
        self.steps = self.schedule.resolve(
            int(trainer.num_training_batches), int(trainer.estimated_stepping_batches)
        )
        if self.steps is None:
            self._outcome = (
                f"nothing pruned: schedule with start_epoch={self.schedule.start_epoch:g}, "
                f"end_frac={self.schedule.end_frac:g} and freq={self.schedule.freq} has no update within "
                f"{trainer.estimated_stepping_batches} steps; train longer or start earlier"
            )
            print(f"warning: {self._outcome}", file=sys.stderr)
        else:
            self._outcome = f"unfinished: ends at step {self.steps.updates[-1]}"
        # All of random weights; of those of a pruned run what it has left.
        self.masks = {m.name: block_max(m.weight.detach(), self.block) > 0 for m in matrices}
        if self._restored is not None:
            self._restore(self._restored, matrices)
        elif self.steps is not None and self.target_sparsity is None:
            self._measure_dense(matrices)
        self._apply(matrices, trainer.optimizers)

    def on_train_batch_start(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        needs_q = self.steps is not None and self.target_sparsity is None and not self.q
        if needs_q and trainer.global_step >= self.steps.start_itr:  # type: ignore[union-attr]
            self._measure_own(self.matrices(recogniser.model), trainer.global_step)

    def on_before_optimizer_step(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        # Before the gradient is clipped: what can't change must not shrink the steps of the rest.
        if self._weight_masks:
            gradients = [m.weight.grad for m in self.matrices(recogniser.model)]
            torch._foreach_mul_(gradients, self._weight_masks)  # type: ignore[arg-type]
            self._raise_rates(trainer)

    def _raise_rates(self, trainer: pl.Trainer) -> None:
        """Of the coming step alone: after it the schedule sets every rate anew."""
        for scheduler in (config.scheduler for config in trainer.lr_scheduler_configs):
            for group, rate in zip(scheduler.optimizer.param_groups, scheduler.get_last_lr(), strict=True):
                [parameter] = group["params"]
                group["lr"] = rate * self._rate_factors.get(parameter, 1.0)

    def on_train_batch_end(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        itr = trainer.global_step
        if self.steps is not None and itr in self.steps.updates and itr != self.last_update:
            self._update_and_apply(itr, trainer, recogniser)
        # At every step: Lightning repeats what was logged once until the epoch ends, unless it resumes.
        for name, threshold in self.thresholds.items():
            recogniser.log(f"threshold/{name}", threshold)
        if self.thresholds:
            recogniser.log("sparsity/pruned", self.pruned)

    def _update_and_apply(self, itr: int, trainer: pl.Trainer, recogniser: Any) -> None:
        assert self.steps is not None
        matrices = self.matrices(recogniser.model)
        self._update(itr, matrices)
        distributed.check_equal(self.masks)
        self._apply(matrices, trainer.optimizers)
        if itr == self.steps.updates[-1]:
            self._outcome = f"finished at step {itr}"

    def on_train_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        if self._outcome.startswith("unfinished"):
            print(
                f"warning: pruning is {self._outcome}, and training ended at {trainer.global_step}",
                file=sys.stderr,
            )

    # The mathematics.

    @torch.no_grad()
    def _update(self, itr: int, matrices: list[Matrix]) -> None:
        """Raise the thresholds and drop the blocks that fall below."""
        assert self.steps is not None
        scores = {m.name: block_max(m.weight, self.block) for m in matrices}
        if self.target_sparsity is not None:
            for m in matrices:
                # |w|_1 takes no copy of the magnitudes.
                scores[m.name] *= m.weight.count_nonzero() / torch.linalg.vector_norm(m.weight, ord=1)
        guarded = {name: self._guard(score_RC) for name, score_RC in scores.items()}
        if self.target_sparsity is None:
            assert isinstance(self.schedule, PaperSchedule)
            for kind, q in self.q.items():
                self.thresholds[kind] = self.schedule.threshold(itr, self.steps, q) * self.size_factor
        else:
            # Where the guards keep more than the target would leave, the rest goes, in steps as ever.
            highest = max(float(score_RC.max()) for score_RC in scores.values())
            self.thresholds["score"] = self.schedule.cut(
                itr,
                self.steps,
                self.target_sparsity,
                lambda share: min(quantile(guarded.values(), share), highest),
            )
        for m in matrices:
            threshold = self.thresholds[m.type if self.target_sparsity is None else "score"]
            self.masks[m.name] = self.masks[m.name] & (guarded[m.name] >= threshold)
            if (self.masks[m.name] & (scores[m.name] < threshold)).any():
                remedy = "a target_sparsity" if self.target_sparsity is None else "a lower target_sparsity"
                self.warn_spared(m.name, remedy)
        self.last_update = itr

    def _guard(self, score_RC: Tensor) -> Tensor:
        """Scores that no threshold exceeds for a matrix's best blocks, so that it doesn't collapse."""
        best = best_blocks(score_RC, self.max_sparsity)
        return score_RC.flatten().index_fill(0, best, math.inf).view_as(score_RC)

    def _count_blocks(self) -> tuple[int, int]:
        """Blocks that are kept, and all."""
        masks = self.masks.values()
        return sum(int(mask.sum()) for mask in masks), sum(mask.numel() for mask in masks)

    @torch.no_grad()
    def _apply(self, matrices: list[Matrix], optimizers: list[torch.optim.Optimizer]) -> None:
        """Zero the pruned weights and their momentum; with their gradients zero they stay so."""
        if all(self.masks[m.name].all() for m in matrices):
            return  # nothing is pruned yet, and no step need look
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

    def _measure_dense(self, matrices: list[Matrix]) -> None:
        """Take q from a dense run, where there is one."""
        dense = self.context.find_dense(self.q_setting)
        if dense is None:
            return
        for m in matrices:
            weight = dense.weights.get(m.name)
            if weight is None or weight.shape != m.weight.shape:
                other = "has none" if weight is None else f"has {' x '.join(map(str, weight.shape))}"
                wanted = " x ".join(map(str, m.weight.shape))
                raise UserError(
                    f"q={self.q_setting}: its {m.name} does not fit, {other} where this model has {wanted}; "
                    "give a dense run of the same model and width, or q=auto"
                )
        self._measure(matrices, dense.weights, dense.source)

    def _measure_own(self, matrices: list[Matrix], step: int) -> None:
        """Take q from this run's weights."""
        self._measure(matrices, {m.name: m.weight.detach() for m in matrices}, f"own weights at step {step}")

    def _measure(self, matrices: list[Matrix], weights: dict[str, Tensor], source: str) -> None:
        for kind in dict.fromkeys(m.type for m in matrices):
            largest = (block_max(weights[m.name], self.q_block) for m in matrices if m.type == kind)
            self.q[kind] = quantile(largest, _REFERENCE)
        self.q_source = source

    # The state in the checkpoint.

    def state_dict(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "block": list(self.block),
            "masks": dict(self.masks),
            "thresholds": dict(self.thresholds),
            "q": dict(self.q),
            "q_source": self.q_source,
            "steps": None if self.steps is None else vars(self.steps),
            "last_update": self.last_update,
            "outcome": self._outcome,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._restored = state

    def _restore(self, state: dict[str, Any], matrices: list[Matrix]) -> None:
        wanted = {name: list(mask.shape) for name, mask in self.masks.items()}
        found = {name: list(mask.shape) for name, mask in state["masks"].items()}
        steps = None if self.steps is None else vars(self.steps)
        if (state["version"], state["block"], found, state["steps"]) != (
            _VERSION,
            list(self.block),
            wanted,
            steps,
        ):
            raise UserError(
                "the checkpoint's masks belong to other settings (block, model or schedule); "
                "move the run's folder away to start afresh"
            )
        for m in matrices:
            self.masks[m.name] = state["masks"][m.name].to(m.weight.device)
        self.thresholds, self.q, self.q_source = state["thresholds"], state["q"], state["q_source"]
        self.last_update, self._outcome = state["last_update"], state["outcome"]
