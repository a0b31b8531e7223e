"""Settings: what may be set, and a check that names every mistake at once before anything is loaded.

The YAML files hold the values, the constructors hold the schema: the keyword-only arguments of a
node's `_target_` are exactly the keys that the node may have, and their types what they may be.
Positional arguments are what the program itself passes in.
"""

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, create_model
from torch import nn

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSetting
from blocksparse_rnn.pruning.sparsifier import Context, Sparsifier
from blocksparse_rnn.runs.dense_reference import find_dense
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.sources import WEIGHTS_OF, source_of
from blocksparse_rnn.runtime.autograd import check_skipping
from blocksparse_rnn.speech.alphabet import Alphabet

PACKAGE = "blocksparse_rnn"
STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


_NAMED_BY = {
    "hidden_size": "width",
    **{name: name for name in ("block", "target_sparsity", "q", "skip_zeros")},
}
"""Keys of nodes -> the settings that they take their values from."""


class Settings(BaseModel):
    """Top-level settings of a training; the nodes' own keys are checked against their constructors."""

    model_config = STRICT

    width: PositiveInt
    batch: PositiveInt
    epochs_per_pass: PositiveInt | None
    seed: int = Field(ge=0, lt=2**32)  # numpy takes no larger one
    alphabet: str
    text: dict[str, Any] | None
    augment: dict[str, Any] | None
    outputs: str
    corpora: str
    workers: NonNegativeInt
    max_rejects: float = Field(ge=0, le=1)
    sweep: str | None
    weights: str | None
    start_from: str | None
    block: BlockSetting
    target_sparsity: float | None
    q: str
    skip_zeros: bool | None
    dry_run: bool
    prunable: dict[str, list[str]]
    scale: dict[str, Any]
    features: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    decoder: dict[str, Any]
    optimizer: dict[str, Any]
    sparsifier: dict[str, Any]
    schedule: dict[str, Any]
    trainer: dict[str, Any]
    checkpoints: dict[str, Any]
    logger: dict[str, Any]
    launcher: dict[str, Any]


def build(node: dict[str, Any], *positional: Any) -> Any:
    """Call a node's `_target_` with the node's other keys as keyword arguments, nodes among them built."""
    arguments = {
        key: build(value) if is_node(value) else value for key, value in node.items() if key != "_target_"
    }
    return _target(node["_target_"])(*positional, **arguments)


def _target(name: Any) -> Callable:
    """What a `_target_` names, from our own package alone: settings must not be able to run other code.

    Raises:
        UserError: it lies elsewhere, also where only its path leads through the package.
    """
    if not str(name).startswith(f"{PACKAGE}."):
        raise UserError(f"_target_={name}: must lie inside {PACKAGE}")
    try:
        found = get_object(name)
    except (ImportError, AttributeError, HydraException, ValueError):
        raise UserError(f"_target_={name}: no such class or function") from None
    # blocksparse_rnn.files.os.system is os.system.
    if not callable(found) or not str(getattr(found, "__module__", "")).startswith(f"{PACKAGE}."):
        raise UserError(f"_target_={name}: must lie inside {PACKAGE}")
    return found


def is_node(value: Any) -> bool:
    """Whether a value describes an object to build."""
    return isinstance(value, dict) and "_target_" in value


def build_shapes(settings: dict[str, Any]) -> nn.Module:
    """The model on the meta device: names and shapes, no weights."""
    features = build(settings["features"])
    with torch.device("meta"):
        return build(settings["model"], features.size, len(Alphabet(settings["alphabet"])))


def build_sparsifiers(settings: dict[str, Any]) -> list[Sparsifier]:
    """The sparsifiers that some settings name, none for a dense model."""
    context = Context(settings["prunable"], partial(find_dense, settings))
    return [build(node, context) for node in settings["sparsifier"].values() if is_node(node)]


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain settings with every interpolation filled in, checked.

    Raises:
        UserError: names every mistake, one to a line.
    """
    try:
        settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    problems = settings_problems(settings)
    if problems:
        raise UserError("\n".join(problems))
    return settings


def settings_problems(settings: dict[str, Any]) -> list[str]:
    """Every mistake in settings that are resolved already, a line each."""
    problems = list(_schema_problems("", Settings, settings))
    for name, node in _nodes(settings):
        problems += _node_problems(name, node)
    # A node that refers to a top-level value would repeat its mistake.
    problems = [p for p in problems if not any(p.endswith(f".{other}") for other in problems)]
    # Ranges that only a constructor knows; it may rely on types, so those come first.
    return problems or [*_contradictions(settings), *dict.fromkeys(_construction_problems(settings))]


def nearest(name: str, allowed: Iterable[str]) -> str:
    """What to say of an unknown name."""
    allowed = sorted({*allowed} - {"hydra"})
    close = difflib.get_close_matches(name, allowed, n=1)
    if not close:  # the last part may sit in another place: huors -> data.hours
        last = {option.rsplit(".", 1)[-1]: option for option in allowed}
        close = [last[m] for m in difflib.get_close_matches(name.rsplit(".", 1)[-1], last, n=1)]
    if close:
        return f"unknown; did you mean {close[0]}?"
    top = [option for option in allowed if "." not in option]
    return f"unknown; choose one of {', '.join(top)}"


def _nodes(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with its dotted name; nodes within nodes are references to those found elsewhere."""
    for key, value in settings.items():
        if is_node(value):
            yield f"{prefix}{key}", value
        elif isinstance(value, dict):
            yield from _nodes(value, f"{prefix}{key}.")


def _node_problems(name: str, node: dict[str, Any]) -> list[str]:
    """Mistakes in one node, held against its target's keyword-only arguments."""
    try:
        target = _target(node["_target_"])
    except UserError as error:
        return [f"{name}.{error}"]
    schema = _schema(target, without={key for key, value in node.items() if is_node(value)})
    given = {key: value for key, value in node.items() if key != "_target_" and not is_node(value)}
    return list(_schema_problems(f"{name}.", schema, given))


def _schema(target: Callable, without: set[str]) -> type[BaseModel]:
    signature = inspect.signature(target)
    constructor = target.__init__ if inspect.isclass(target) else target
    hints = typing.get_type_hints(constructor, include_extras=True)  # with the ranges of pydantic's types
    fields: dict[str, Any] = {
        name: (hints[name], ... if parameter.default is parameter.empty else parameter.default)
        for name, parameter in signature.parameters.items()
        if parameter.kind is parameter.KEYWORD_ONLY and name not in without
    }
    return create_model(target.__name__, __config__=STRICT, **fields)


def _schema_problems(prefix: str, schema: type[BaseModel], given: dict[Any, Any]) -> Iterator[str]:
    try:
        schema.model_validate(given)
    except ValidationError as error:
        for problem in error.errors():
            path = prefix + ".".join(str(part) for part in problem["loc"])
            if problem["type"] == "extra_forbidden":
                # A value that is a mapping has keys of its own, which are not the schema's.
                nested = len(problem["loc"]) > 1
                hint = "unknown" if nested else nearest(str(problem["loc"][0]), schema.model_fields)
                yield f"{path}: {hint}"
            elif problem["type"] == "missing":
                yield f"{path}: is missing"
            else:
                message = problem["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
                yield f"{path}={problem['input']}: {message}"


def _contradictions(settings: dict[str, Any]) -> Iterator[str]:
    """Nodes that were given another value than the top-level setting by which a run is named and compared."""
    for name, node in _nodes({key: settings[key] for key in ("model", "sparsifier")}):
        for key, top in _NAMED_BY.items():
            if key in node and node[key] != settings[top]:
                yield f"{name}.{key}={node[key]}: differs from {top}={settings[top]}; set {top} alone"


def _construction_problems(settings: dict[str, Any]) -> Iterator[str]:
    """What the constructors of the light-weight parts refuse. Weights are not allocated."""
    attempts: list[Callable[[], Any]] = [
        *(partial(build, settings[name]) for name in ("data", "decoder", "schedule", "launcher")),
        *(partial(build, settings[name]) for name in ("text",) if settings[name]),
        *(partial(build, node) for node in (settings["augment"] or {}).values() if is_node(node)),
        partial(build_sparsifiers, settings),
        partial(_check_blocks, settings),
        *(partial(_check_source, settings, name) for name in WEIGHTS_OF if settings[name]),
    ]
    for attempt in attempts:
        try:
            attempt()
        except UserError as error:
            yield str(error)


def _check_source(settings: dict[str, Any], setting: str) -> None:
    """Look for the run whose weights are wanted; a finished run no longer wants them."""
    if RunFolder.of(settings).result() is None:
        source_of(settings, setting)


def _check_blocks(settings: dict[str, Any]) -> None:
    """Hold the sparsifiers against the shapes of the model."""
    model = build_shapes(settings)
    for sparsifier in build_sparsifiers(settings):
        sparsifier.check(model)
        if sparsifier.skip_zeros:
            check_skipping(sparsifier.block)
    if settings["skip_zeros"] and settings["sparsifier"]["name"] == "gl":
        raise UserError("skip_zeros=true: a lasso alone never ends pruning; take sparsifier=bp or glp")
