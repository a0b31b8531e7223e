"""Hydra's sweeper `grids`: the points of several grids one after the other.

A sweep file names them; what is typed on the command line holds in each:

hydra:
  sweeper:
    params: {seed: "1,2"}
    grids:
      - {sparsifier: none}
      - {sparsifier: "bp,glp", target_sparsity: "0.8,0.9"}
"""

from collections.abc import Mapping, Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser

from blocksparse_rnn.errors import UserError


def grid_overrides(
    params: dict[str, Any] | None, grids: Sequence[dict[str, Any]] | None, typed: list[str]
) -> list[list[str]]:
    """The overrides of each grid: the file's for all grids, its own, and what was typed instead or besides.

    Args:
        params: name -> values, for all grids.
        grids: name -> values of each grid; none is one grid without values of its own.
        typed: overrides of the command line, `name=values`.

    Raises:
        UserError: `grids` is no list of settings.
    """
    if not isinstance(grids or [], Sequence) or not all(isinstance(grid, Mapping) for grid in grids or []):
        raise UserError(
            f"hydra.sweeper.grids={grids}: must be a list like [{{sparsifier: none}}, {{block: '4,8'}}]"
        )
    parser = OverridesParser.create()
    names = {parser.parse_override(text).key_or_group for text in typed}
    merged = ({**(params or {}), **grid} for grid in grids or [{}])
    return [
        [*(f"{name}={_typed(values)}" for name, values in grid.items() if name not in names), *typed]
        for grid in merged
    ]


def _typed(values: Any) -> str:
    """A value of the file as it would be typed."""
    return "null" if values is None else str(values)


class GridsSweeper(BasicSweeper):
    """Hands the points of all grids to the launcher at once, so that it can order them.

    Args:
        params: name -> values, for all grids.
        grids: name -> values of each grid.
    """

    def __init__(self, params: dict[str, Any] | None, grids: Sequence[dict[str, Any]] | None) -> None:
        super().__init__(max_batch_size=None, params=params)
        self.grids = grids

    def sweep(self, arguments: list[str]) -> Any:
        """Launch every point."""
        assert self.launcher is not None
        parser = OverridesParser.create()
        points = [
            point
            for overrides in grid_overrides(self.params, self.grids, arguments)
            for point in self.split_arguments(parser.parse_overrides(overrides), None)[0]
        ]
        return [self.launcher.launch(points, initial_job_idx=0)]


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="grids",
    node={"_target_": f"{__name__}.{GridsSweeper.__name__}", "params": None, "grids": None},
)
