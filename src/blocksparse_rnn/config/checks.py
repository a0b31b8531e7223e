"""Checks of settings beyond their types: contradictions, and values that constructors refuse."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from blocksparse_rnn.config.build import build_shapes, build_sparsifiers
from blocksparse_rnn.config.nodes import Node
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.sources import WEIGHTS_OF, source_of
from blocksparse_rnn.runtime.autograd import check_skipping

_NAMED_BY = {
    "hidden_size": "width",
    **{name: name for name in ("block", "target_sparsity", "q", "skip_zeros")},
}
"""Key of a node -> the top-level setting that gives its value."""


def check(settings: Settings) -> None:
    """Find every mistake before any data is loaded. Weights are not allocated.

    Raises:
        UserError: names every mistake, one to a line.
    """
    problems = dict.fromkeys([*_contradictions(settings), *_refusals(settings)])
    if problems:
        raise UserError("\n".join(problems))


def _contradictions(settings: Settings) -> Iterator[str]:
    """Nodes whose value differs from the top-level setting by which a run is named and compared."""
    nodes: dict[str, Any] = {"model": settings.model}
    nodes |= {f"sparsifier.{key}": node for key, node in settings.sparsifier if isinstance(node, Node)}
    for name, node in nodes.items():
        for key, top in _NAMED_BY.items():
            value = getattr(node, key, getattr(settings, top))
            if value != getattr(settings, top):
                yield f"{name}.{key}={value}: differs from {top}={getattr(settings, top)}; set {top} alone"


def _refusals(settings: Settings) -> Iterator[str]:
    """Values that the constructors of the light-weight parts refuse."""
    nodes = [settings.data, settings.decoder, settings.schedule, settings.launcher]
    nodes += [settings.text] if settings.text else []
    nodes += settings.augment.nodes() if settings.augment else []
    attempts: list[Callable[[], Any]] = [
        *(node.build for node in nodes),
        partial(build_sparsifiers, settings),
        partial(_check_blocks, settings),
        *(partial(_check_source, settings, name) for name in WEIGHTS_OF if getattr(settings, name)),
    ]
    for attempt in attempts:
        try:
            attempt()
        except UserError as error:
            yield str(error)


def _check_source(settings: Settings, setting: str) -> None:
    """Look for the run whose weights are used; a finished run no longer needs them."""
    if RunFolder.of(settings).result() is None:
        source_of(settings.plain(), setting)


def _check_blocks(settings: Settings) -> None:
    """Check the sparsifiers against the shapes of the model."""
    model = build_shapes(settings)
    for sparsifier in build_sparsifiers(settings):
        sparsifier.check(model)
        if sparsifier.skip_zeros:
            check_skipping(sparsifier.block)
    if settings.skip_zeros and settings.sparsifier.name == "gl":
        raise UserError("skip_zeros=true: a lasso alone never ends pruning; set sparsifier=bp or glp")
