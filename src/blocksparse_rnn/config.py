"""Settings: what may be set, and a check that names every mistake at once before anything is loaded.

The YAML files hold the values, the constructors hold the schema: the keyword-only arguments of a
node's `_target_` are exactly the keys that the node may have. Positional arguments are what the
program itself passes in.
"""

import difflib
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, create_model

from blocksparse_rnn.dense_runs import find_dense
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.sparsifiers.base import Context, Sparsifier
from blocksparse_rnn.text import Alphabet

CONF = Path(__file__).resolve().parents[2] / "conf"
PACKAGE = "blocksparse_rnn"
STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)


class Settings(BaseModel):
    """Top-level settings of a training; the nodes' own keys are checked against their constructors."""

    model_config = STRICT

    width: PositiveInt
    batch: PositiveInt
    seed: NonNegativeInt
    alphabet: str
    outputs: str
    corpora: str
    workers: NonNegativeInt
    max_rejects: float = Field(ge=0, le=1)
    sweep: str | None
    block: int | str
    target_sparsity: float | None
    q: str
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


def build(node: dict[str, Any], *positional: Any) -> Any:
    """Call a node's `_target_` with the node's other keys as keyword arguments, nodes among them built."""
    arguments = {
        key: build(value) if is_node(value) else value for key, value in node.items() if key != "_target_"
    }
    return get_object(node["_target_"])(*positional, **arguments)


def is_node(value: Any) -> bool:
    """Whether a value describes an object to build."""
    return isinstance(value, dict) and "_target_" in value


def build_sparsifiers(settings: dict[str, Any]) -> list[Sparsifier]:
    """The sparsifiers that some settings name, none for a dense model."""
    context = Context(settings["prunable"], partial(find_dense, settings))
    return [build(node, context) for node in settings["sparsifier"].values() if is_node(node)]


def resolve(cfg: DictConfig) -> dict[str, Any]:
    """Plain settings with every interpolation filled in, checked.

    Raises:
        UserError: names every mistake, one to a line.
    """
    problems = list(find_problems(cfg))
    if problems:
        raise UserError("\n".join(problems))
    return OmegaConf.to_container(cfg, resolve=True)  # type: ignore[return-value]


def find_problems(cfg: DictConfig) -> Iterator[str]:
    """Every mistake in a composed configuration, a line each."""
    try:
        settings: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        yield f"{error.full_key}: {str(error).splitlines()[0]}"
        return
    problems = list(_schema_problems("", Settings, settings))
    for name, node in _nodes(settings):
        problems += _node_problems(name, node)
    # A node that refers to a top-level value would repeat its mistake.
    problems = [p for p in problems if not any(p.endswith(f".{other}") for other in problems)]
    # Ranges that only a constructor knows; it may rely on types, so those come first.
    yield from problems or dict.fromkeys(_construction_problems(settings))


def compose_settings(overrides: list[str], config_name: str = "config") -> DictConfig:
    """Compose the configuration for some overrides, outside of a Hydra program.

    Raises:
        UserError: names every mistake in the overrides and in what they compose to, one to a line.
    """
    problems = command_line_problems(overrides)
    if problems:
        raise UserError("\n".join(problems))
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config_name, overrides)


def check_command_line(arguments: list[str]) -> None:
    """Check the arguments of a Hydra program before Hydra sees them, all points of a sweep together.

    Hydra alone stops at the first mistake and accepts `+sparsifer=glp`.

    Raises:
        UserError: names every mistake, one to a line.
    """
    parsed = get_args_parser().parse_args(arguments)
    asks_for_help = (parsed.help, parsed.hydra_help, parsed.info, parsed.cfg, parsed.shell_completion)
    if any(asks_for_help) or parsed.config_name or parsed.config_dir or parsed.config_path:
        return
    problems = command_line_problems(parsed.overrides)
    if not parsed.multirun:
        problems += [
            f"{text}: several values need -m (a sweep)"
            for text in parsed.overrides
            if (override := _parse(text)) and override.is_sweep_override()
        ]
    if problems:
        raise UserError("\n".join(problems))


def command_line_problems(overrides: list[str]) -> list[str]:
    """Every mistake in some overrides and in each of the points that they compose to."""
    problems: list[str] = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        groups, plain, good = [], [], []
        for text in overrides:
            override = _parse(text)
            if override is None:
                problems.append(f"{text}: not of the form name=value")
            elif override.key_or_group.split(".")[0].split("/")[0] == "hydra":
                good.append(override)
            elif options := loader.get_group_options(override.key_or_group):
                wrong = [value for value in _values(override) if value not in (*options, "null")]
                problems += [f"{override.key_or_group}={v}: {_nearest(v, options)}" for v in wrong]
                if not wrong:
                    groups.append(override)
            else:
                plain.append(override)
        try:
            known = compose("config", [o.input_line or "" for o in _first_points(groups)])
        except (HydraException, OmegaConfBaseException) as error:
            return [*problems, str(error).splitlines()[0]]
        names = [*_dotted(known), *loader.list_groups("")]
        for override in plain:
            if override.key_or_group in names:
                good.append(override)
            else:
                problems.append(f"{override.key_or_group}: {_nearest(override.key_or_group, names)}")
        for point in BasicSweeper.split_arguments([*groups, *good], None)[0]:
            try:
                problems += find_problems(compose("config", point))
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(str(error).splitlines()[0])
    return list(dict.fromkeys(problems))


def _parse(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _values(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _first_points(overrides: list[Override]) -> list[Override]:
    first = BasicSweeper.split_arguments(overrides, None)[0][0]
    return OverridesParser.create().parse_overrides(first)


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key below `node`, in dotted form."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield f"{prefix}{key}"
            if not OmegaConf.is_interpolation(node, key):
                yield from _dotted(node._get_node(key), f"{prefix}{key}.")


def _nearest(name: str, allowed: Iterable[str]) -> str:
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
    target = node["_target_"]
    if not str(target).startswith(f"{PACKAGE}."):
        return [f"{name}._target_={target}: must lie inside {PACKAGE}"]
    try:
        schema = _schema(get_object(target), without={key for key, value in node.items() if is_node(value)})
    except (ImportError, AttributeError, HydraException, ValueError):
        return [f"{name}._target_={target}: no such class or function"]
    given = {key: value for key, value in node.items() if key != "_target_" and not is_node(value)}
    return list(_schema_problems(f"{name}.", schema, given))


def _schema(target: Callable, without: set[str]) -> type[BaseModel]:
    signature = inspect.signature(target)
    hints = typing.get_type_hints(target.__init__ if inspect.isclass(target) else target)
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
                yield f"{path}: {_nearest(str(problem['loc'][-1]), schema.model_fields)}"
            elif problem["type"] == "missing":
                yield f"{path}: is missing"
            else:
                message = problem["msg"].replace("Input should be", "must be")
                yield f"{path}={problem['input']}: {message}"


def _construction_problems(settings: dict[str, Any]) -> Iterator[str]:
    """What the constructors of the light-weight parts refuse. Weights are not allocated."""
    attempts: list[Callable[[], Any]] = [
        *(partial(build, settings[name]) for name in ("data", "decoder", "schedule")),
        partial(build_sparsifiers, settings),
        partial(_check_blocks, settings),
    ]
    for attempt in attempts:
        try:
            attempt()
        except UserError as error:
            yield str(error)


def _check_blocks(settings: dict[str, Any]) -> None:
    """Hold the sparsifiers against the shapes of the model."""
    features = build(settings["features"])
    with torch.device("meta"):
        model = build(settings["model"], features.size, len(Alphabet(settings["alphabet"])))
    for sparsifier in build_sparsifiers(settings):
        sparsifier.check(model)
