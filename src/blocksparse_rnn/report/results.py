"""Finished runs: what they chose, what they logged, and as rows of a table beside their dense runs."""

import csv
import json
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import groupby
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF, create_folder, durable_file
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import identity, recipe

REFERENCE = {"rnn": 1760, "gru": 2560}
"""Width of each family's dense reference row, as the paper numbers its rows."""
_FOREIGN = "is of another program, or of another version of this one"
_MEND = "fetch a copy, or move the run away and train again"
_ORDER = ("none", "bp", "glp", "gl")
_SPEECH = ("accents", "voices", "rate_wpm", "pitch")
"""Settings of synthetic speech that are named where they differ from conf/data/synth.yaml."""
_KEPT = ("config.yaml", "metrics.csv", "masks.png", "result.json")  # result.json last: it says finished

_Figure = Annotated[float, Field(ge=0, allow_inf_nan=False)]
"""Error rates may exceed 1, by insertions."""
_Share = Annotated[_Figure, Field(le=1)]


class _Needed(BaseModel):
    """What a report needs of a file, which may hold more; a number in quotes is none."""

    model_config = ConfigDict(strict=True)


class _Parameters(_Needed):
    nonzero: _Figure


class _Result(_Needed):
    name: str
    identity: str
    cer: _Figure
    wer: _Figure
    dev_cer: _Figure | None = None
    total: _Share = Field(alias="sparsity/total")
    prunable: _Share = Field(alias="sparsity/prunable")
    matrices: dict[str, _Share] = Field(alias="sparsity/matrices")
    parameters: _Parameters
    device: str
    threads: int
    commit: str | None
    wall_seconds: _Figure
    cpu_seconds: _Figure = 0.0


class _Settings(_Needed):
    """Of the groups, what is in them shows when a row is made of it."""

    model: dict[str, Any]
    width: int
    block: int | str
    seed: int
    sparsifier: dict[str, Any]
    optimizer: dict[str, Any]
    scale: dict[str, Any]
    trainer: dict[str, Any]
    data: dict[str, Any]


@dataclass(frozen=True)
class Run:
    """A finished run: what was chosen and what came out."""

    path: Path
    settings: dict[str, Any]
    result: dict[str, Any]

    @property
    def model(self) -> tuple[str, int]:
        return self.settings["model"]["cell"], self.settings["width"]

    @property
    def sparsifier(self) -> str:
        return self.settings["sparsifier"]["name"]

    @property
    def block(self) -> str:
        block = str(self.settings["block"])
        return "" if self.sparsifier == "none" else block if "x" in block else f"{block}x{block}"

    @property
    def algorithm(self) -> str:
        """The sparsifier, and what distinguishes it from others of its name."""
        node = self.settings["sparsifier"]
        if self.sparsifier == "none":
            return "dense"
        if self.sparsifier == "gl":
            return f"gl {node['group_lasso']['lambda_g']:g}"
        return self.sparsifier if self.schedule == "paper" else f"{self.sparsifier} {self.schedule}"

    @property
    def schedule(self) -> str | None:
        pruning = self.settings["sparsifier"].get("block_pruning")
        return None if pruning is None else _option(pruning["schedule"])

    @property
    def target(self) -> float | None:
        return self.settings["sparsifier"].get("block_pruning", {}).get("target_sparsity")

    @property
    def reevaluated(self) -> bool:
        """Whether it only evaluated another run's weights, with another decoder or on other data."""
        return bool(self.settings.get("weights"))

    @property
    def paper_width(self) -> int | None:
        """The width of the paper's row that this run's width stands for at its scale."""
        widths = self.settings["scale"].get("row_width", {})
        names = [name for name, width in widths.items() if width == self.settings["width"]]
        return int(names[0].removeprefix("w")) if names else None

    @cached_property
    def group(self) -> str:
        """What runs must share to be compared: scale, data, length of training and what it began with."""
        data = {
            k: v
            for k, v in self.settings["data"].items()
            if k not in ("folder", "workers", "_target_", "name")
        }
        if "hours" in data:
            low, high = data["snr_db"]
            speech = f"{data['hours']:g} h of synthetic speech, {data['vocabulary']} words, {low:g} to {high:g} dB SNR"
            if data.get("typos"):
                speech += f", label noise in {100 * data['typos']:g} % of the letters"
            if data.get("held_out"):
                speech += f", dev and test each {100 * data['held_out']:g} % as long"
            if data["seed"]:
                speech += f", corpus {data['seed']}"
            for name in _SPEECH:
                if data.get(name, _usual_speech()[name]) != _usual_speech()[name]:
                    speech += f", {name}={data[name]}".replace("'", "")
        else:
            speech = str(data.get("train", data))
            speech += f", tested on {data['test']}" if "test" in data else ""
        trainer = self.settings["trainer"]
        parts = self.settings.get("epochs_per_pass")
        limits = [f"{trainer['max_epochs']} epochs" + (f" of 1/{parts} pass" if parts else "")]
        limits += [f"at most {trainer['max_steps']} steps"] if trainer["max_steps"] > 0 else []
        limits += [f"at most {trainer['max_time']}"] if trainer["max_time"] else []
        start = self.settings.get("start_from")
        limits += [f"started from {Path(start).name}"] if start else []
        return f"{self.settings['scale']['name']} scale, {speech}, {', '.join(limits)}"

    @cached_property
    def recipe(self) -> str:
        """What runs that are compared share, besides the group."""
        return recipe(self.settings | {"weights": self.result.get("trained")})

    @property
    def architecture(self) -> dict[str, Any]:
        """The model's settings but its width, in which it may differ from the reference row's."""
        return {key: value for key, value in self.settings["model"].items() if key != "hidden_size"}

    @cached_property
    def choices(self) -> str:
        """Everything on which the result depends besides the seed."""
        # A re-evaluated run gives the recipe of its weights' training; older results lack it.
        weights = self.result.get("trained") or self.settings.get("weights")
        return identity(self.settings | {"seed": None, "weights": weights})


def _option(node: dict[str, Any]) -> str:
    """The config group's option that a node of settings is of; runs of older versions have its class alone."""
    return node.get("name") or node["_target_"].rpartition(".")[2].removesuffix("Schedule").lower()


@cache
def _usual_speech() -> dict[str, Any]:
    return yaml.safe_load((CONF / "data" / "synth.yaml").read_text(encoding="utf-8"))["data"]


@dataclass(frozen=True)
class Row:
    """A line of the table: the runs that differ in nothing but their seed. Rates are fractions."""

    names: tuple[str, ...]
    """Of its runs."""
    group: str
    recipe: str
    """A hash; only rows of one group and one recipe can be compared."""
    cell: str
    width: int
    paper_width: int | None
    sparsifier: str
    algorithm: str
    schedule: str | None
    target: float | None
    block: str
    seeds: tuple[int, ...]
    cer: float
    cer_deviation: float | None
    """Standard deviation over seeds; None for a single one."""
    wer: float
    sparsity: float
    prunable_sparsity: float
    nonzero: float
    perf: float | None
    """(reference - CER) / reference against the family's dense reference row; None without one."""
    perf_same_width: float | None
    """The same against the dense run of the same width. Both dense runs are of the row's own recipe."""
    reevaluated: bool
    """Whether the runs only evaluated other runs' weights."""
    dev_cer: float | None
    """CER on dev, by which a decoder is chosen; None where a result lacks it."""

    @property
    def model(self) -> str:
        return f"{self.cell} {self.width}"


def read_runs(folders: Iterable[Path]) -> tuple[list[Run], list[str]]:
    """Every finished run below some folders, and for each other run a line that says why it is left out.

    Raises:
        UserError: a folder doesn't exist, or there is no finished run.
    """
    runs: list[Run] = []
    known: dict[Any, Run] = {}
    others: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"{folder}: there is no such folder; give one with runs, such as outputs/")
        for run in _run_folders(folder):
            try:
                found = _read(run)
            except (ValueError, OSError) as error:
                others.append(f"{run.path}: {error}")
                continue
            # A copy has the same identity, though paths may be cut out of its settings. The same settings and seed
            # under another identity, such as of an older version, are no new sample either.
            point = found.group, found.choices, found.settings["seed"]
            same = known.get(found.result["identity"]) or known.get(point)
            if same:
                others.append(f"{run.path}: {_repeats(found, same)}")
            else:
                runs.append(found)
                known |= {found.result["identity"]: found, point: found}
    if not runs:
        named = ", ".join(map(str, folders))
        left_out = "".join(f"\nleft out: {line}" for line in others)
        raise UserError(f"{named}: no finished run in it; train one with src/train.py{left_out}")
    return runs, others


def _run_folders(folder: Path) -> Iterator[RunFolder]:
    """Those below a folder; W&B's own folders, which may have a config.yaml too, are skipped."""
    files = [file for name in ("config.yaml", "result.json") for file in folder.rglob(name)]
    for path in sorted({file.parent for file in files}):
        if not any(part == "wandb" or part.startswith(".") for part in path.relative_to(folder).parts):
            yield RunFolder(path)


def _read(run: RunFolder) -> Run:
    """A finished run.

    Raises:
        ValueError, OSError: it isn't finished, is damaged, or is another program's.
    """
    if not (run.path / "result.json").exists():
        status: Any = run.status()
        raise ValueError(
            status.get("state", "not started") if isinstance(status, dict) else "status.json is damaged"
        )
    try:
        result = json.loads((run.path / "result.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ValueError(f"result.json is damaged: no JSON; {_MEND}") from None
    _check("result.json", _Result, result)
    if not (run.path / "config.yaml").exists():
        raise ValueError("result.json has no config.yaml beside it; copy the run's settings there")
    try:
        settings = run.settings()
    except (ValueError, RecursionError, yaml.YAMLError):
        raise ValueError(f"config.yaml is damaged: no YAML; {_MEND}") from None
    _check("config.yaml", _Settings, settings)
    found = Run(run.path, settings, result)
    try:
        rows_of([found])
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"config.yaml {_FOREIGN}: {type(error).__name__}: {error}") from None
    return found


def _check(file: str, schema: type[_Needed], content: Any) -> None:
    """Raises ValueError with what a file lacks, or with its values that are out of range."""
    try:
        schema.model_validate(content if isinstance(content, dict) else {})
    except ValidationError as error:
        lacking, wrong = [], []
        for problem in error.errors():
            path = ".".join(map(str, problem["loc"]))
            if problem["type"] == "missing":
                lacking.append(path)
            else:
                must = problem["msg"].replace("Input should be", "must be")
                wrong.append(f"{path}={problem['input']!r:.40} {must}")
        if lacking:
            raise ValueError(f"{file} {_FOREIGN}: lacks {', '.join(lacking)}") from None
        raise ValueError(f"{file}: {'; '.join(wrong)}; {_MEND}") from None


def _repeats(run: Run, other: Run) -> str:
    """Why a run isn't counted beside another one."""
    copied = run.result["identity"] == other.result["identity"]
    line = f"the same {'run' if copied else 'settings and seed'} as {other.path}, counted once"
    here, there = (
        f"CER {100 * of.result['cer']:.2f} %, WER {100 * of.result['wer']:.2f} %" for of in (run, other)
    )
    if here == there:
        return line
    return f"{line}: that one counts, with {there}, this one has {here}; move away the one not to count"


def by_name(runs: Iterable[Run]) -> dict[str, Run]:
    """Runs by the names of their folders.

    Raises:
        UserError: two have the same.
    """
    named: dict[str, Run] = {}
    for run in runs:
        other = named.setdefault(run.path.name, run)
        if other is not run:
            raise UserError(f"{run.path} and {other.path} have the same name; rename one of the folders")
    return named


Curve = tuple[list[int], list[float]]
"""Steps and values."""


def read_curves(run: Run) -> dict[str, Curve]:
    """Every metric of a run by name; empty without its metrics.csv. Lines that a crash cut off are left out."""
    curves: dict[str, Curve] = {}
    path = run.path / "metrics.csv"
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                try:
                    step, value, _ = int(line["step"]), float(line["value"]), float(line["seconds"])
                except (KeyError, TypeError, ValueError):
                    continue
                steps, values = curves.setdefault(line["metric"], ([], []))
                steps.append(step)
                values.append(value)
    return curves


def keep_runs(runs: list[Run], folder: Path) -> int:
    """Copy what a report needs of runs into folders of the same names; returns how many runs there were.

    Checkpoints are left out, so that the copies are small enough to commit. Absolute paths of `outputs` and
    `corpora`, which are one machine's, become the last part of their name.

    Raises:
        UserError: two runs have the same name, no permission, no space.
    """
    for name, run in by_name(runs).items():
        target = folder / name
        create_folder(target)
        for source in (run.path / name for name in _KEPT):
            if source.exists() and source.resolve() != (target / source.name).resolve():
                content = source.read_bytes()
                if source.name in ("config.yaml", "result.json"):
                    content = _without_paths(content.decode(), run).encode()
                with durable_file(target / source.name) as copy:
                    copy.write(content)
    return len(runs)


def _without_paths(text: str, run: Run) -> str:
    for name in ("outputs", "corpora"):
        path = Path(run.settings.get(name) or name)
        if path.is_absolute():
            text = text.replace(str(path), path.name)
    return text


def rows_of(runs: list[Run]) -> list[Row]:
    """The table's rows in order: by data, family, dense first, width, sparsifier, block."""
    points: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        points.setdefault((run.group, run.choices), []).append(run)
    rows = [_row(point, runs) for point in points.values()]
    return sorted(rows, key=_order)


def comparable(rows: Iterable[Row]) -> list[list[Row]]:
    """Rows in lists that can be compared: each of one group and one recipe."""

    def kind(row: Row) -> tuple[str, str]:
        return row.group, row.recipe

    return [list(alike) for _, alike in groupby(sorted(rows, key=kind), key=kind)]


def _order(row: Row) -> tuple:
    block = [int(side) for side in row.block.split("x")] if row.block else []
    algorithm = _ORDER.index(row.sparsifier), row.schedule == "cubic"
    return row.group, row.cell != "rnn", row.width, *algorithm, block, row.prunable_sparsity, row.seeds


def _row(point: list[Run], runs: list[Run]) -> Row:
    first = point[0]
    cell, width = first.model
    cers = [run.result["cer"] for run in point]
    mean = {
        key: statistics.mean(run.result[key] for run in point)
        for key in ("wer", "sparsity/total", "sparsity/prunable")
    }
    cer = statistics.mean(cers)
    dev: list[Any] = [run.result.get("dev_cer") for run in point]
    reference = first.settings["scale"].get("row_width", {}).get(f"w{REFERENCE[cell]}")
    return Row(
        names=tuple(run.path.name for run in point),
        group=first.group,
        recipe=first.recipe,
        cell=cell,
        width=width,
        paper_width=first.paper_width,
        sparsifier=first.sparsifier,
        algorithm=first.algorithm,
        schedule=first.schedule,
        target=first.target,
        block=first.block,
        seeds=tuple(sorted(run.settings["seed"] for run in point)),
        cer=cer,
        cer_deviation=statistics.stdev(cers) if len(cers) > 1 else None,
        wer=mean["wer"],
        sparsity=mean["sparsity/total"],
        prunable_sparsity=mean["sparsity/prunable"],
        nonzero=statistics.mean(run.result["parameters"]["nonzero"] for run in point),
        perf=_relative(cers, list(_dense_cers(runs, first, (cell, reference)).values())),
        perf_same_width=_same_width(point, _dense_cers(runs, first, first.model)),
        reevaluated=first.reevaluated,
        dev_cer=None if None in dev else statistics.mean(dev),
    )


def _dense_cers(runs: list[Run], like: Run, model: tuple[str, int | None]) -> dict[int, float]:
    """Seed -> CER of the dense runs of a model that were done like a run."""
    return {
        run.settings["seed"]: run.result["cer"]
        for run in runs
        if run.sparsifier == "none"
        and run.model == model
        and (run.group, run.recipe, run.architecture) == (like.group, like.recipe, like.architecture)
    }


def _same_width(point: list[Run], dense: dict[int, float]) -> float | None:
    """PERF of a row's runs against dense ones, over the seeds that both have, else over all."""
    cers = {run.settings["seed"]: run.result["cer"] for run in point}
    common = cers.keys() & dense.keys()
    ours, theirs = ([of[seed] for seed in common or of] for of in (cers, dense))
    return _relative(ours, theirs)


def _relative(cers: list[float], references: list[float]) -> float | None:
    """(reference - CER) / reference of the means; None without a reference."""
    reference = statistics.mean(references) if references else 0.0
    return (reference - statistics.mean(cers)) / reference if reference else None
