"""The two threshold rules of block pruning: the paper's reference weight q, and a target sparsity.

Shapes: O rows and I columns of a matrix, R and C rows and columns of its grid of blocks.
Source: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, section 3.1.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSize, block_max, quantile
from blocksparse_rnn.pruning.prunable import Matrix
from blocksparse_rnn.pruning.schedule import PaperSchedule, Schedule, Steps
from blocksparse_rnn.pruning.sparsifier import DenseWeights

Grids = dict[str, Tensor]
"""Matrix name -> (R, C)."""
_REFERENCE = 0.9  # equation 1: q is the 90th percentile of magnitudes


class ThresholdRule:
    """Scores blocks, and sets the threshold below which they are pruned."""

    remedy: str
    """What to set where the thresholds would empty a matrix."""

    def __init__(self) -> None:
        self.q: dict[str, float] = {}
        """Matrix type -> reference weight; stays empty in a rule that needs none."""
        self.q_source: str | None = None
        """Where q was measured."""

    def check(self, matrices: list[Matrix]) -> None:
        """Check the settings against a model on the meta device, before any data loads."""

    def measure_dense(self, matrices: list[Matrix]) -> None:
        """Measure q in the weights of a dense run, if there is one; called before the first step."""

    def measure_own(self, matrices: list[Matrix], step: int) -> None:
        """Measure q in the run's own weights if no dense run gave it; called when pruning starts."""

    def group(self, matrix: Matrix) -> str:
        """Name of the threshold that holds for a matrix."""
        raise NotImplementedError

    def score(self, weight_OI: Tensor) -> Tensor:
        """What is compared with the threshold, (R, C)."""
        raise NotImplementedError

    def thresholds(self, itr: int, steps: Steps, scores: Grids, guarded: Grids) -> dict[str, float]:
        """Group -> threshold at the update `itr`; in `guarded`, blocks that a matrix must keep score infinity."""
        raise NotImplementedError


class ReferenceWeight(ThresholdRule):
    """The paper's rule: thresholds per matrix type, which end at about the type's reference weight q.

    A block's score is its largest magnitude.

    Args:
        find_dense: setting `q` -> weights of the dense run that it names, or None.
        block: rows and columns of a block.
        schedule: when the threshold rises.
        setting: `q` as typed.
        size_exponent: see BlockPruning.

    Raises:
        UserError: the schedule needs a target sparsity.
    """

    remedy = "a target_sparsity"

    def __init__(
        self,
        find_dense: Callable[[str], DenseWeights | None],
        block: BlockSize,
        schedule: Schedule,
        setting: str,
        size_exponent: float | None,
    ) -> None:
        super().__init__()
        if not isinstance(schedule, PaperSchedule):
            raise UserError("schedule=cubic: needs a target_sparsity, such as 0.9; or take schedule=paper")
        self.find_dense = find_dense
        self.block = block
        self.schedule = schedule
        self.setting = setting
        self.q_block = block if size_exponent is None else (1, 1)
        self.size_factor: float = 1.0 if size_exponent is None else (block[0] * block[1]) ** size_exponent

    def check(self, matrices: list[Matrix]) -> None:
        """Look up a dense run that is named; `auto` may mean one that has yet to finish.

        Raises:
            UserError: it is no finished dense run, or its model differs.
        """
        if self.setting != "auto":
            self.measure_dense(matrices)

    def measure_dense(self, matrices: list[Matrix]) -> None:
        dense = self.find_dense(self.setting)
        if dense is None:
            return
        for m in matrices:
            weight = dense.weights.get(m.name)
            if weight is None or weight.shape != m.weight.shape:
                other = "has none" if weight is None else f"has {' x '.join(map(str, weight.shape))}"
                wanted = " x ".join(map(str, m.weight.shape))
                raise UserError(
                    f"q={self.setting}: its {m.name} does not fit, {other} where this model has {wanted}; "
                    "give a dense run of the same model and width, or q=auto"
                )
        self._measure(matrices, dense.weights, dense.source)

    def measure_own(self, matrices: list[Matrix], step: int) -> None:
        if not self.q:
            own = {m.name: m.weight.detach() for m in matrices}
            self._measure(matrices, own, f"own weights at step {step}")

    def _measure(self, matrices: list[Matrix], weights: dict[str, Tensor], source: str) -> None:
        for kind in dict.fromkeys(m.type for m in matrices):
            largest = (block_max(weights[m.name], self.q_block) for m in matrices if m.type == kind)
            self.q[kind] = quantile(largest, _REFERENCE)
        self.q_source = source

    def group(self, matrix: Matrix) -> str:
        return matrix.type

    def score(self, weight_OI: Tensor) -> Tensor:
        return block_max(weight_OI, self.block)

    def thresholds(self, itr: int, steps: Steps, scores: Grids, guarded: Grids) -> dict[str, float]:
        return {kind: self.schedule.threshold(itr, steps, q) * self.size_factor for kind, q in self.q.items()}


class TargetSparsity(ThresholdRule):
    """Our rule: one threshold for all matrices, chosen so that the last update reaches a target sparsity.

    A block's score is its largest magnitude over the mean magnitude of its matrix's nonzero weights.
    Without the division, matrices with small weights would lose all their blocks. A mean that includes
    zeros would fall as a matrix is pruned, which raises the scores of its other blocks: they would
    survive later updates at the expense of other matrices (results/sparsifiers/mean_with_zeros).

    Args:
        block: rows and columns of a block.
        schedule: when the threshold rises.
        target: fraction of zeros among the prunable weights at the end.
        max_sparsity: largest fraction that any matrix may lose.

    Raises:
        UserError: the target is out of its range.
    """

    remedy = "a lower target_sparsity"

    def __init__(self, block: BlockSize, schedule: Schedule, target: float, max_sparsity: float) -> None:
        super().__init__()
        if not 0 < target <= max_sparsity:
            raise UserError(
                f"target_sparsity={target}: must be above 0 and at most max_sparsity={max_sparsity}, "
                "or null to prune by q"
            )
        self.block = block
        self.schedule = schedule
        self.target = target

    def group(self, matrix: Matrix) -> str:
        return "score"

    def score(self, weight_OI: Tensor) -> Tensor:
        # The l1 norm allocates no copy of the magnitudes.
        return block_max(weight_OI, self.block) * (
            weight_OI.count_nonzero() / torch.linalg.vector_norm(weight_OI, ord=1)
        )

    def thresholds(self, itr: int, steps: Steps, scores: Grids, guarded: Grids) -> dict[str, float]:
        # Where more blocks are guarded than the target leaves, the quantile is infinite: prune the others,
        # and keep the threshold finite, so that it still rises in steps.
        highest = max(float(score_RC.max()) for score_RC in scores.values())

        def finite_quantile(fraction: float) -> float:
            return min(quantile(guarded.values(), fraction), highest)

        return {"score": self.schedule.target_threshold(itr, steps, self.target, finite_quantile)}
