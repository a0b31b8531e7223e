"""Counting parameters: all, those that may be pruned, those that are not zero."""

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn
from torch.nn import Parameter


def prunable_parameters(
    model: nn.Module, patterns: dict[str, list[str]]
) -> Iterator[tuple[str, str, Parameter]]:
    """(matrix type, name, parameter) of every parameter that one of the patterns names.

    Args:
        model: the module whose parameters are meant; names are relative to it.
        patterns: matrix type -> shell-style name patterns.
    """
    for name, parameter in model.named_parameters():
        for matrix_type, of_type in patterns.items():
            if any(fnmatchcase(name, pattern) for pattern in of_type):
                yield matrix_type, name, parameter
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
    prunable = sum(p.numel() for _, _, p in prunable_parameters(model, patterns))
    return ParameterCounts(sum(parameters.values()), prunable, parameters)


@dataclass(frozen=True)
class Sparsity:
    """Zeros of a model, counted."""

    nonzero: int
    total: float
    """Fraction of zeros among all parameters, the paper's column."""
    prunable: float
    """Fraction of zeros among the prunable ones."""


def count_zeros(model: nn.Module, patterns: dict[str, list[str]]) -> Sparsity:
    """Count exact zeros in the prunable matrices; every other parameter counts as nonzero.

    A batch-norm shift that happens to be 0 is no weight saved.
    """
    counts = count_parameters(model, patterns)
    kept = sum(int(p.count_nonzero()) for _, _, p in prunable_parameters(model, patterns))
    zeros = counts.prunable - kept
    return Sparsity(
        nonzero=counts.total - zeros,
        total=zeros / counts.total,
        prunable=zeros / counts.prunable if counts.prunable else 0.0,
    )
