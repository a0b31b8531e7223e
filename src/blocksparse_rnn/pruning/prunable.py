"""Which matrices may be pruned, and counts of parameters: all, prunable, nonzero."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn
from torch.nn import Parameter


class Matrix(NamedTuple):
    """A weight matrix that may be pruned."""

    type: str
    """`recurrent` or `fully_connected`."""
    name: str
    weight: Parameter
    """(O, I)."""
    gates: tuple[str, ...]
    """Names of the gates stacked in its rows; empty without gates."""


def prunable_matrices(model: nn.Module, patterns: dict[str, list[str]]) -> Iterator[Matrix]:
    """Every matrix of `model` whose name matches a pattern; biases that match are left out.

    Args:
        model: names are relative to it.
        patterns: matrix type -> shell-style name patterns.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim != 2:
            continue
        for matrix_type, of_type in patterns.items():
            if any(fnmatchcase(name, pattern) for pattern in of_type):
                owner = model.get_submodule(name.rpartition(".")[0])
                yield Matrix(matrix_type, name, parameter, tuple(getattr(owner, "gates", ())))
                break


@dataclass(frozen=True)
class ParameterCounts:
    """Numbers of parameters of a model."""

    total: int
    prunable: int
    parameters: dict[str, int]
    """Parameter name -> number of values."""


def count_parameters(model: nn.Module, patterns: dict[str, list[str]]) -> ParameterCounts:
    """Count the parameters of `model`; works on the meta device too."""
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    prunable = sum(m.weight.numel() for m in prunable_matrices(model, patterns))
    return ParameterCounts(sum(parameters.values()), prunable, parameters)


@dataclass(frozen=True)
class Sparsity:
    """Zeros in the prunable matrices of a model."""

    nonzero: int
    """Number of nonzero parameters."""
    total: float
    """Fraction of zeros among all parameters: the sparsity of the paper's tables."""
    prunable: float
    """Fraction of zeros among the prunable parameters."""
    matrices: dict[str, float]
    """Fraction of zeros in each prunable matrix, and in each gate of it: `name` and `name.gate`."""


def count_zeros(model: nn.Module, patterns: dict[str, list[str]]) -> Sparsity:
    """Count exact zeros in the prunable matrices; every other parameter counts as nonzero.

    A bias or batch-norm shift that happens to be 0 is not pruned.
    """
    counts = count_parameters(model, patterns)
    matrices, kept = {}, 0
    for matrix in prunable_matrices(model, patterns):
        nonzero_O = matrix.weight.count_nonzero(dim=1)
        kept += int(nonzero_O.sum())
        parts = {matrix.name: nonzero_O}
        if matrix.gates:
            chunks = nonzero_O.chunk(len(matrix.gates))
            parts |= {f"{matrix.name}.{gate}": n for gate, n in zip(matrix.gates, chunks, strict=True)}
        for name, nonzero in parts.items():
            matrices[name] = 1 - float(nonzero.double().mean()) / matrix.weight.shape[1]
    zeros = counts.prunable - kept
    return Sparsity(
        nonzero=counts.total - zeros,
        total=zeros / counts.total,
        prunable=zeros / counts.prunable if counts.prunable else 0.0,
        matrices=matrices,
    )
