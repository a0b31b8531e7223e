"""Composing settings from overrides, and a check of a whole command line before Hydra sees it.

Hydra alone stops at the first mistake, accepts `+sparsifer=glp`, and looks at the points of a sweep one
by one as they start.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blocksparse_rnn import distributed
from blocksparse_rnn.config.schema import nearest, resolve
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF
from hydra_plugins.grids_sweeper import grid_overrides

_ENDLESS = (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP)
_composed: dict[frozenset[str], dict[str, Any]] = {}
"""The points of the last command line by their overrides: composing takes longer than all else before a start."""


def compose_settings(overrides: list[str]) -> dict[str, Any]:
    """The settings that some overrides compose to, resolved and checked, outside of a Hydra program.

    Raises:
        UserError: names every mistake in the overrides and in what they compose to, one to a line.
    """
    points, problems = _compose_points(overrides)
    if problems:
        raise UserError("\n".join(problems))
    return points[0]


def settings_last(arguments: list[str]) -> list[str]:
    """Arguments of a Hydra program with options such as -m first; settings before and behind one confuse Hydra."""
    settings = get_args_parser().parse_intermixed_args(arguments).overrides
    return [*(argument for argument in arguments if argument not in settings), *settings]


def check_command_line(arguments: list[str]) -> list[dict[str, Any]]:
    """Check the arguments of a Hydra program, all points of a sweep together.

    Returns:
        The resolved settings of the points that they compose to; none where Hydra is only asked to show something.

    Raises:
        UserError: names every mistake, one to a line.
    """
    parsed = get_args_parser().parse_args(arguments)
    if parsed.help or parsed.hydra_help or parsed.info or parsed.cfg or parsed.shell_completion:
        return []
    points, problems = _compose_points(parsed.overrides, parsed.config_name or "config", parsed.config_dir)
    if not parsed.multirun:
        problems += [
            f"{text}: several values need -m (a sweep)"
            for text in parsed.overrides
            if (override := _parse(text)) and override.is_sweep_override()
        ]
        problems += [
            f"{text}: submits the points of a sweep; add -m"
            for text in parsed.overrides
            if text.replace(" ", "") == "launcher=slurm"
        ]
    elif distributed.launched():
        problems.append(
            "-m: these processes share one training; for a sweep set launcher.gpus_per_job instead"
        )
    if problems:
        raise UserError("\n".join(problems))
    return points


def command_line_problems(overrides: list[str]) -> list[str]:
    """Every mistake in some overrides and in each of the points that they compose to."""
    return _compose_points(overrides)[1]


def composed_before(overrides: list[str]) -> dict[str, Any] | None:
    """The settings that these overrides composed to when the command line was checked; None if they didn't."""
    return _composed.get(frozenset(overrides))


def _compose_points(
    overrides: list[str], config_name: str = "config", config_dir: str | None = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """The settings of the points that some overrides compose to, and every mistake in them.

    Args:
        overrides: as typed, with several values where a sweep has them.
        config_name: the primary configuration: `config`, or a sweep's file, which may bring parameters.
        config_dir: a folder with more configurations.
    """
    if config_dir is not None and not Path(config_dir).is_dir():
        return [], [f"--config-dir {config_dir}: there is no such folder"]
    parsed = [(text, _parse(text)) for text in overrides]
    problems = [_unread(text) for text, override in parsed if override is None]
    good = [text for text, override in parsed if override is not None]
    of_hydra = [text for text, override in parsed if override and override.key_or_group.startswith("hydra.")]
    with _hydra(config_dir):
        try:
            primary = compose(config_name, of_hydra, return_hydra_config=True)
        except (HydraException, OmegaConfBaseException) as error:
            return [], [f"--config-name {config_name}: {str(error).splitlines()[0]}"]
        values = [str(name) for name in primary if not OmegaConf.is_dict(primary._get_node(name))]
        hidden = [name for name in values if config_dir and (Path(config_dir) / name).is_dir()]
        if hidden:
            return [], [
                f"--config-dir {config_dir}: its folder {hidden[0]} hides the setting of that name from Hydra; "
                "keep sweep files in a folder of their own"
            ]
        points: list[dict[str, Any]] = []
        _composed.clear()
        sweeper = primary.hydra.sweeper
        for grid in grid_overrides(sweeper.get("params"), sweeper.get("grids"), good):
            unread = [_unread(text) for text in grid if _parse(text) is None]  # in the sweep's file
            problems += unread or _problems(grid, config_name, points)
        return points, list(dict.fromkeys(problems))


@contextmanager
def _hydra(config_dir: str | None = None) -> Iterator[None]:
    """Hydra set up to compose, as its --config-dir does it; `hydra.initialize` takes one folder only."""
    folders = create_config_search_path(str(CONF))
    if config_dir is not None:
        folders.prepend("command-line", f"file://{Path(config_dir).resolve()}", anchor="schema")
    before = get_gh_backup()
    version.setbase("1.3")
    Hydra.create_main_hydra2("compose", folders)
    try:
        yield
    finally:
        restore_gh_from_backup(before)


def _problems(overrides: list[str], config_name: str, points: list[dict[str, Any]]) -> Iterator[str]:
    """Every mistake; fills `points` with the settings of those that have none."""
    loader = GlobalHydra.instance().config_loader()
    groups, plain, good = [], [], []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.value_type in _ENDLESS:
            yield f"{override.input_line}: a sweep takes lists (1,2), choice() and range() only"
        elif override.key_or_group.split(".")[0].split("/")[0] == "hydra":
            good.append(override)
        elif options := list(_options(loader, override.key_or_group)):
            wrong = [value for value in _values(override) if value not in options]
            yield from (f"{override.key_or_group}={value}: {nearest(value, options)}" for value in wrong)
            if not wrong:
                groups.append(override)
        else:
            plain.append(override)
    try:
        known = compose(config_name, [o.input_line or "" for o in _first_points(groups)])
    except (HydraException, OmegaConfBaseException) as error:
        yield str(error).splitlines()[0]
        return
    names = [*_dotted(known), *loader.list_groups("")]
    for override in plain:
        if override.key_or_group in names:
            good.append(override)
        else:
            yield f"{override.key_or_group}: {nearest(override.key_or_group, names)}"
    for point in BasicSweeper.split_arguments([*groups, *good], None)[0]:
        try:
            points.append(resolve(compose(config_name, point)))
            _composed[frozenset(point)] = points[-1]
        except UserError as error:
            yield from str(error).splitlines()
        except (HydraException, OmegaConfBaseException) as error:
            yield str(error).splitlines()[0]


def _options(loader: ConfigLoader, group: str) -> Iterator[str]:
    """What may be chosen for a group: its files, and those in folders below as `folder/file`."""
    yield from loader.get_group_options(group)
    for folder in loader.list_groups(group):
        yield from (f"{folder}/{option}" for option in _options(loader, f"{group}/{folder}"))


def _parse(text: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(text)
    except HydraException:
        return None


def _unread(text: str) -> str:
    """What to say of an override that Hydra's grammar doesn't have."""
    name, equals, value = text.partition("=")
    quoted = f"{name}='{value}'"
    if equals and _parse(quoted):
        return f'{text}: Hydra reads such a value only in quotes of its own: "{quoted}"'
    return f"{text}: not of the form name=value"


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
