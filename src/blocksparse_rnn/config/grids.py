"""The grids of a sweep file, as overrides. An override of the command line replaces the file's in every grid.

hydra:
  sweeper:
    params: {seed: "1,2"}
    grids:
      - {sparsifier: none}
      - {sparsifier: "bp,glp", target_sparsity: "0.8,0.9"}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from blocksparse_rnn.errors import UserError


def grid_overrides(
    params: Mapping[str, Any] | None, grids: Sequence[Mapping[str, Any]] | None, typed: list[str]
) -> list[list[str]]:
    """The overrides of each grid: `params`, its own, and those of the command line, of which the later replace the
    earlier.

    Args:
        params: name -> values, for all grids.
        grids: name -> values of each grid; none is one grid without values of its own.
        typed: overrides of the command line, `name=values`.

    Raises:
        UserError: `grids` is no list of settings, or `params` are none.
    """
    if not isinstance(grids or [], Sequence) or not all(isinstance(grid, Mapping) for grid in grids or []):
        raise UserError(
            f"hydra.sweeper.grids={grids}: must be a list like [{{sparsifier: none}}, {{block: '4,8'}}]"
        )
    if not isinstance(params or {}, Mapping):
        raise UserError(f"hydra.sweeper.params={params}: must be settings like {{seed: '1,2'}}")
    parser = OverridesParser.create()
    names = {parser.parse_override(text).key_or_group for text in typed}
    merged = ({**(params or {}), **grid} for grid in grids or [{}])
    return [
        [*(f"{name}={_typed(values)}" for name, values in grid.items() if name not in names), *typed]
        for grid in merged
    ]


def _typed(values: Any) -> str:
    """A value of the file as the command line has it."""
    return "null" if values is None else str(values)
