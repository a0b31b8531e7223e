"""From a command line to checked settings: composed once, all mistakes of all runs reported together.

Hydra alone stops at the first mistake, accepts `+sparsifer=glp`, and composes each run of a sweep only when it
starts.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, version
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, ValueType
from hydra.errors import HydraException, MissingConfigException
from hydra.initialize import get_gh_backup, restore_gh_from_backup
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from blocksparse_rnn import distributed
from blocksparse_rnn.config.checks import check
from blocksparse_rnn.config.grids import grid_overrides
from blocksparse_rnn.config.schema import Settings, nearest, typed
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF, SWEEPS

_ENDLESS = (ValueType.INTERVAL_SWEEP, ValueType.GLOB_CHOICE_SWEEP)
_OURS = {"hydra/sweeper": "grids", "hydra/launcher": "slots"}


@dataclass(frozen=True)
class Command:
    """What a command line of train.py asks for."""

    arguments: list[str]
    """Options first, since Hydra does not parse settings on both sides of an option."""
    runs: list[Settings]
    multirun: bool
    hydra: bool
    """Whether Hydra takes over: it shows help or settings, or sweeps by a plugin such as hydra/sweeper=optuna."""


def compose_settings(overrides: list[str]) -> Settings:
    """The settings of one run, from its overrides.

    Raises:
        UserError: names every mistake, one to a line.
    """
    with _hydra():
        [settings] = _compose_runs(overrides, "config", None, {})
    return settings


def read_command(arguments: list[str]) -> Command:
    """Compose and check the command line of a training or sweep.

    Raises:
        UserError: names every mistake in every run, one to a line.
    """
    parsed = get_args_parser().parse_intermixed_args(arguments)
    ordered = [*(argument for argument in arguments if argument not in parsed.overrides), *parsed.overrides]
    if parsed.help or parsed.hydra_help or parsed.info or parsed.cfg or parsed.shell_completion:
        return Command(ordered, [], parsed.multirun, hydra=True)
    # An installed package has its sweeps inside, and works in any folder.
    if parsed.config_dir == "sweeps" and not Path("sweeps").is_dir():
        parsed.config_dir = str(SWEEPS)
        ordered = [parsed.config_dir if argument == "sweeps" else argument for argument in ordered]
    if parsed.config_path is not None:
        raise UserError(
            f"--config-path {parsed.config_path}: settings are in conf/; add others by --config-dir"
        )
    if parsed.experimental_rerun is not None:
        raise UserError("--experimental-rerun: is not supported; a rerun of the command resumes its runs")
    if parsed.config_dir is not None and not Path(parsed.config_dir).is_dir():
        raise UserError(f"--config-dir {parsed.config_dir}: there is no such folder")
    problems = list(_single_run_problems(parsed.overrides)) if not parsed.multirun else []
    if parsed.multirun and distributed.launched():
        problems += ["-m: these processes share one training; for a sweep set launcher.gpus_per_job instead"]
    name = parsed.config_name or "config"
    runs: list[Settings] = []
    with _hydra(parsed.config_dir):
        choices, sweeper = _read_primary(parsed, name)
        foreign = parsed.multirun and choices["hydra/sweeper"] != _OURS["hydra/sweeper"]
        try:
            if foreign:  # the sweeper chooses some values later; the others are checked now
                fixed = [text for text in parsed.overrides if not _is_sweep(text)]
                [settings] = _compose_runs(fixed, name, None, {})
                if settings.dry_run:
                    problems += ["dry_run=true: this sweeper chooses values as results come in; leave it out"]
            else:
                sweep = sweep_name(parsed.overrides, name) if parsed.multirun else None
                runs = _compose_runs(parsed.overrides, name, sweep, sweeper)
        except UserError as error:
            problems = [*str(error).splitlines(), *problems]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return Command(ordered, runs, parsed.multirun, hydra=foreign)


def settings_of(cfg: DictConfig, choices: Mapping[str, str], sweep: str | None) -> Settings:
    """Checked settings from a configuration that Hydra has composed.

    Args:
        cfg: the configuration.
        choices: group -> option. A node that an option describes gets its name, by which a run is identified.
        sweep: name of the sweep that the run belongs to, unless a setting names one.

    Raises:
        UserError: names every mistake, one to a line.
    """
    cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    with open_dict(cfg):
        for group, option in choices.items():
            node = cfg.get(group) if "/" not in group else None
            if isinstance(node, DictConfig) and "_target_" in node:
                node.name = option
        cfg.sweep = cfg.sweep or sweep
    try:
        values: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True)  # type: ignore[assignment]
    except OmegaConfBaseException as error:
        raise UserError(f"{error.full_key}: {str(error).splitlines()[0]}") from None
    settings = typed(values)
    check(settings)
    return settings


def sweep_name(overrides: list[str], config_name: str) -> str:
    """The default name of a sweep: a hash of its overrides and its file, so that the same command gives it again."""
    words = " ".join([*sorted(overrides), *([config_name] if config_name != "config" else [])])
    return f"sweep-{hashlib.sha256(words.encode()).hexdigest()[:6]}"


def _single_run_problems(overrides: list[str]) -> Iterator[str]:
    """Mistakes in a command without -m: what only a sweep may have."""
    for text in overrides:
        if _is_sweep(text):
            yield f"{text}: several values need -m (a sweep)"
        if text.replace(" ", "") == "launcher=slurm":
            yield f"{text}: submits the runs of a sweep; add -m"


def _read_primary(parsed: Any, config_name: str) -> tuple[Mapping[str, str], Mapping[str, Any]]:
    """Choices and sweeper settings of the primary configuration: `config`, or a sweep's file.

    Raises:
        UserError: it can't be read, its folder hides a setting from Hydra, or Hydra's choices are not allowed.
    """
    of_hydra = [text for text in parsed.overrides if (override := _parse(text)) and _is_hydras(override)]
    loader = GlobalHydra.instance().config_loader()
    for override in OverridesParser.create().parse_overrides(of_hydra):
        group, value = override.key_or_group, _values(override)[0]
        if (options := loader.get_group_options(group)) and value not in options:
            raise UserError(f"{group}={value}: {nearest(value, options)}")
    try:
        primary = compose(config_name, of_hydra, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException) as error:
        names = [n for n in loader.get_group_options("", ObjectType.CONFIG) if not n.startswith("_")]
        missing = isinstance(error, MissingConfigException) and config_name not in names
        problem = nearest(config_name, names) if missing else str(error).splitlines()[0]
        raise UserError(f"--config-name {config_name}: {problem}") from None
    except YAMLError as error:
        raise UserError(f"--config-name {config_name}: is no YAML: {' '.join(str(error).split())}") from None
    values = [str(name) for name in primary if not OmegaConf.is_dict(primary._get_node(name))]
    hidden = [name for name in values if parsed.config_dir and (Path(parsed.config_dir) / name).is_dir()]
    if hidden:
        raise UserError(
            f"--config-dir {parsed.config_dir}: its folder {hidden[0]} hides the setting of that name from Hydra; "
            "keep sweep files in a folder of their own"
        )
    choices = primary.hydra.runtime.choices
    if (launcher := choices["hydra/launcher"]) != _OURS["hydra/launcher"]:
        raise UserError(
            f"hydra/launcher={launcher}: runs start through launcher=slots or launcher=slurm; leave it out"
        )
    return choices, primary.hydra.sweeper


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


def _compose_runs(
    overrides: list[str], config_name: str, sweep: str | None, sweeper: Mapping[str, Any]
) -> list[Settings]:
    """The runs of some overrides; several where the overrides or a sweep file's grids have several values.

    Raises:
        UserError: names every mistake in every run, one to a line.
    """
    problems = [_unread(text) for text in overrides if _parse(text) is None]
    good = [text for text in overrides if _parse(text)]
    runs: list[Settings] = []
    for grid in grid_overrides(sweeper.get("params"), sweeper.get("grids"), good):
        unread = [_unread(text) for text in grid if _parse(text) is None]  # in the sweep's file
        problems += unread or _compose_grid(grid, config_name, sweep, runs)
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return runs


def _compose_grid(
    overrides: list[str], config_name: str, sweep: str | None, runs: list[Settings]
) -> Iterator[str]:
    """Every mistake in one grid; appends the settings of its runs without mistakes to `runs`."""
    loader = GlobalHydra.instance().config_loader()
    groups, plain, good = [], [], []
    for override in OverridesParser.create().parse_overrides(overrides):
        if override.value_type in _ENDLESS:
            yield f"{override.input_line}: a sweep takes lists (1,2), choice() and range() only"
        elif _is_hydras(override):
            good.append(override)
        elif override.key_or_group.endswith("_target_"):
            yield f"{override.key_or_group}: comes with the option of its group; write another option into conf/"
        elif options := list(_options(loader, override.key_or_group)):
            wrong = [value for value in _values(override) if value not in options]
            yield from (f"{override.key_or_group}={value}: {nearest(value, options)}" for value in wrong)
            if not wrong:
                groups.append(override)
        else:
            plain.append(override)
    try:
        known = compose(config_name, [o.input_line or "" for o in _first_values(groups)])
    except (HydraException, OmegaConfBaseException) as error:
        yield str(error).splitlines()[0]
        return
    names = [*_dotted(known), *loader.list_groups("")]
    for override in plain:
        if override.key_or_group in names:
            good.append(override)
        else:
            yield f"{override.key_or_group}: {nearest(override.key_or_group, names)}"
    for run_overrides in BasicSweeper.split_arguments([*groups, *good], None)[0]:
        try:
            cfg = compose(config_name, run_overrides, return_hydra_config=True)
            runs.append(settings_of(cfg, cfg.hydra.runtime.choices, sweep))
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


def _is_hydras(override: Override) -> bool:
    """Whether it sets or chooses something of Hydra's own: `hydra.x=...`, `hydra/sweeper=...`."""
    return override.key_or_group.split(".")[0].split("/")[0] == "hydra"


def _is_sweep(text: str) -> bool:
    override = _parse(text)
    return override is not None and override.is_sweep_override()


def _unread(text: str) -> str:
    """The message for an override that Hydra can't parse."""
    name, equals, value = text.partition("=")
    quoted = f"{name}='{value}'"
    if equals and _parse(quoted):
        return f'{text}: Hydra reads such a value only in quotes of its own: "{quoted}"'
    return f"{text}: not of the form name=value"


def _values(override: Override) -> list[str]:
    if override.is_discrete_sweep():
        return list(override.sweep_string_iterator())
    return [override.get_value_element_as_str()]


def _first_values(overrides: list[Override]) -> list[Override]:
    """Of overrides with several values, the first of each."""
    first = BasicSweeper.split_arguments(overrides, None)[0][0]
    return OverridesParser.create().parse_overrides(first)


def _dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key below `node`, in dotted form."""
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield f"{prefix}{key}"
            if not OmegaConf.is_interpolation(node, key):
                yield from _dotted(node._get_node(key), f"{prefix}{key}.")
