"""What all sparsifiers share: their matrices and blocks, checks before a run, and what they report."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor, nn

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import check_block, parse_block
from blocksparse_rnn.pruning.prunable import Matrix, prunable_matrices


class DenseWeights(NamedTuple):
    """Weights of a trained dense model."""

    weights: dict[str, Tensor]
    """Parameter name within the model -> value."""
    source: str
    """Where they came from, for the result."""


class Context(NamedTuple):
    """What every sparsifier is given besides its settings."""

    prunable: dict[str, list[str]]
    """Matrix type -> name patterns."""
    find_dense: Callable[[str], DenseWeights | None]
    """Setting `q` -> weights of the dense run that it names; None if `auto` finds none."""


class Sparsifier(pl.Callback):
    """A callback that zeroes whole blocks of the model's prunable matrices.

    Weights hold exact zeros, so nothing downstream needs masks.

    Args:
        context: which matrices, and where dense weights are found.
        block: `4` or `8x2`, rows and columns of a block; no block spans two gates.
        max_sparsity: no matrix loses more than this fraction of its blocks, so that none becomes all zero.

    Raises:
        UserError: a value is out of its range.
    """

    skip_zeros = False
    """Whether training skips the zero blocks once pruning has finished."""

    def __init__(self, context: Context, block: int | str, max_sparsity: float) -> None:
        if not 0 < max_sparsity < 1:
            raise UserError(f"max_sparsity={max_sparsity}: must be above 0 and below 1")
        self.context = context
        self.block = parse_block(block)
        self.max_sparsity = max_sparsity
        self._spared: set[str] = set()

    def check(self, model: nn.Module) -> None:
        """Check the settings against the model's shapes, before any data loads.

        Args:
            model: may be on the meta device.

        Raises:
            UserError: blocks do not fit, or a name pattern matches no matrix.
        """
        for matrix_type, patterns in self.context.prunable.items():
            for pattern in patterns:
                if not any(prunable_matrices(model, {matrix_type: [pattern]})):
                    names = [name for name, parameter in model.named_parameters() if parameter.ndim == 2]
                    raise UserError(
                        f"prunable.{matrix_type}: no matrix is named {pattern}; there are {', '.join(names)}"
                    )
        matrices = self.matrices(model)
        if not matrices:
            raise UserError("prunable: names no matrix, so there is nothing to prune; sparsifier=none")
        sides = {}
        for matrix in matrices:
            rows, columns = matrix.weight.shape
            name = f"a gate of {matrix.name}" if matrix.gates else matrix.name
            sides[name] = (rows // max(1, len(matrix.gates)), columns)
        check_block(self.block, sides)

    def matrices(self, model: nn.Module) -> list[Matrix]:
        """The matrices that this sparsifier works on."""
        return list(prunable_matrices(model, self.context.prunable))

    def pruning_finished(self, step: int) -> bool:
        """Whether the sparsity is final after `step`: only then may the error rate select a checkpoint."""
        return True

    def final_masks(self, step: int) -> dict[str, Tensor] | None:
        """Matrix name -> (R, C), True where a block is kept; None until no block changes after `step`."""
        return None

    def warn_spared(self, name: str, remedy: str) -> None:
        """Warn once per matrix that max_sparsity keeps it from losing more blocks."""
        if name not in self._spared:
            self._spared.add(name)
            print(
                f"warning: {name} would lose more than {self.max_sparsity:.0%} of its blocks (max_sparsity), "
                f"so its best blocks are kept; {remedy} avoids this",
                file=sys.stderr,
            )

    def verify(self, model: nn.Module) -> None:
        """Assert that a trained model's weights are zero wherever this sparsifier pruned."""

    def report(self) -> dict[str, Any]:
        """Entries for result.json besides the sparsity."""
        return {}
