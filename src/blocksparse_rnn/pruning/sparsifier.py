"""What all sparsifiers share: which matrices they work on, in which blocks, and what they tell."""

import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytorch_lightning as pl
from torch import Tensor, nn

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import check_block, parse_block
from blocksparse_rnn.pruning.prunable import Matrix, prunable_matrices


class DenseWeights(NamedTuple):
    """Weights of a trained dense model, by name, and where they came from."""

    weights: dict[str, Tensor]
    source: str


class Context(NamedTuple):
    """What the program hands to every sparsifier besides its settings."""

    prunable: dict[str, list[str]]
    """Matrix type -> name patterns."""
    find_dense: Callable[[str], DenseWeights | None]
    """Setting `q` -> weights of the dense run that it means; None where `auto` finds none."""


class Sparsifier(pl.Callback):
    """A callback that zeroes whole blocks of the model's prunable matrices.

    Weights hold exact zeros, so whoever uses them needs no masks.

    Args:
        context: which matrices, and where dense weights are found.
        block: `4` or `8x2`, rows and columns of a block; blocks never straddle gates.
        max_sparsity: no matrix loses more than this share of its blocks, so that none collapses.

    Raises:
        UserError: no such block or share.
    """

    skip_zeros = False
    """Whether training skips its zero blocks once they are final."""

    def __init__(self, context: Context, block: int | str, max_sparsity: float) -> None:
        if not 0 < max_sparsity < 1:
            raise UserError(f"max_sparsity={max_sparsity}: must be above 0 and below 1")
        self.context = context
        self.block = parse_block(block)
        self.max_sparsity = max_sparsity
        self._spared: set[str] = set()

    def check(self, model: nn.Module) -> None:
        """Look at shapes alone (the model may lie on the meta device), before any training.

        Raises:
            UserError: blocks don't fit, or a name pattern has no parameter.
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

    def settled(self, step: int) -> bool:
        """Whether the sparsity after `step` is final, so that a model may be chosen by its error rate."""
        return True

    def final_masks(self, step: int) -> dict[str, Tensor] | None:
        """Masks (R, C) by name, True where a block is kept, once no block can come back after `step`."""
        return None

    def warn_spared(self, name: str, remedy: str) -> None:
        """Say once for each matrix that it was kept from collapsing."""
        if name not in self._spared:
            self._spared.add(name)
            print(
                f"warning: {name} would lose more than {self.max_sparsity:.0%} of its blocks and keeps its best; "
                f"{remedy} would not need this",
                file=sys.stderr,
            )

    def verify(self, model: nn.Module) -> None:
        """Assert what this sparsifier promises of a trained model."""

    def report(self) -> dict[str, Any]:
        """What belongs into the result besides the sparsity."""
        return {}
