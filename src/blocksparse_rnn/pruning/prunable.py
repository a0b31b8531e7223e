"""Counting parameters: all, those that may be pruned, those that are not zero."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import NamedTuple

from torch import nn
from torch.nn import Parameter


class Matrix(NamedTuple):
    """A weight matrix that may be pruned."""

    type: str
    """Recurrent or fully connected: thresholds are per type."""
    name: str
    weight: Parameter
    gates: tuple[str, ...]
    """Names of the gates stacked in its rows; empty where it is a single one."""


def prunable_matrices(model: nn.Module, patterns: dict[str, list[str]]) -> Iterator[Matrix]:
    """Every matrix of `model` that one of the patterns names; a bias that it also names is none.

    Args:
        model: the module whose parameters are meant; names are relative to it.
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
    """Parameters of a model, by number."""

    total: int
    prunable: int
    parameters: dict[str, int]
    """Name -> number of values."""


def count_parameters(model: nn.Module, patterns: dict[str, list[str]]) -> ParameterCounts:
    """Count the parameters of `model`; works on the meta device too."""
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    prunable = sum(m.weight.numel() for m in prunable_matrices(model, patterns))
    return ParameterCounts(sum(parameters.values()), prunable, parameters)


@dataclass(frozen=True)
class Sparsity:
    """Zeros of a model, counted."""

    nonzero: int
    total: float
    """Fraction of zeros among all parameters, the paper's column."""
    prunable: float
    """Fraction of zeros among the prunable ones."""
    matrices: dict[str, float]
    """Fraction of zeros in each prunable matrix, and in each gate of it: `name` and `name.gate`."""


def count_zeros(model: nn.Module, patterns: dict[str, list[str]]) -> Sparsity:
    """Count exact zeros in the prunable matrices; every other parameter counts as nonzero.

    A batch-norm shift that happens to be 0 is no weight saved.
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
