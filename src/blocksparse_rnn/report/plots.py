"""Plots of runs: CER against sparsity, size and block, and sparsity over the training."""

import textwrap
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter

from blocksparse_rnn.files import durable_file
from blocksparse_rnn.report.results import Curve, Row, Run, read_curves

_Key = TypeVar("_Key")
_MARKERS = {"none": "D", "bp": "o", "glp": "s", "gl": "^"}
_STYLES: dict[str | None, Any] = {"paper": "-", "cubic": ":", None: "-."}  # of schedules; others are dashed
_MOST_NAMED = 10  # runs that a plot names one by one


def draw_all(folder: Path, runs: list[Run], rows: list[Row]) -> list[Path]:
    """Draw every plot for which these runs have data; returns the files.

    Raises:
        UserError: no permission, no space.
    """
    pruned = [run for run in runs if run.sparsifier != "none" and not run.reevaluated]
    by_block = of_several_blocks(rows)
    figures = {
        "cer-sparsity.png": panels(rows, sparsity_panel),
        "cer-nonzero.png": panels(rows, nonzero_panel),
        "cer-block.png": panels(by_block, block_panel) if by_block else None,
        "schedules.png": schedules(pruned) if pruned else None,
        "layers.png": layers(pruned) if pruned else None,
    }
    paths = []
    for name, figure in figures.items():
        if figure is not None:
            save(figure, folder / name)
            paths.append(folder / name)
    return paths


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG.

    Raises:
        UserError: no permission, no space.
    """
    with durable_file(path) as file:
        figure.savefig(file, format="png")


def panels(rows: list[Row], panel: Callable[[Axes, list[Row]], None]) -> Figure:
    """A panel for each group of runs that may be compared."""
    groups = [(group, list(of_group)) for group, of_group in groupby(rows, key=lambda row: row.group)]
    figure = Figure(figsize=(9, 5 * len(groups)), dpi=140, layout="constrained")
    for axes, (group, of_group) in zip(_axes(figure, len(groups)), groups, strict=True):
        panel(axes, of_group)
        axes.set_ylabel("test CER, %")
        axes.grid(alpha=0.3)
        axes.set_title(textwrap.fill(group, 90), fontsize=9)
    return figure


def sparsity_panel(axes: Axes, rows: list[Row]) -> None:
    """CER against prunable sparsity: a colour for each model, a marker for each sparsifier and block, dense models as
    lines, and the Pareto front."""
    colours = _colours(rows)
    sizes = _sizes(rows)
    for row in rows:
        if row.sparsifier == "none":
            axes.axhline(100 * row.cer, color=colours[row.model], linestyle="--", linewidth=1)
        else:
            _point(axes, 100 * row.prunable_sparsity, row, colours[row.model], sizes[row.block])
    pruned = [row for row in rows if row.sparsifier != "none"]
    front = pareto_front([(row.prunable_sparsity, row.cer) for row in pruned])
    if len(front) > 1:
        axes.plot(
            [100 * x for x, _ in front], [100 * y for _, y in front], color="grey", linewidth=0.8, zorder=0
        )
    axes.set_xlabel("prunable sparsity, %")
    # At least ten points wide, so that sparsities hundredths apart are drawn as the same.
    shares = [100 * row.prunable_sparsity for row in pruned] or [50.0]
    axes.set_xlim(min(shares) - 5, min(max(shares) + 5, 101))
    _legend(axes, rows, colours, dense="--", front=len(front) > 1)


def nonzero_panel(axes: Axes, rows: list[Row]) -> None:
    """CER against nonzero parameters, dense and sparse on one axis."""
    colours = _colours(rows)
    sizes = _sizes(rows)
    for row in rows:
        _point(axes, row.nonzero / 1e6, row, colours[row.model], sizes[row.block])
    for cell in dict.fromkeys(row.cell for row in rows):
        dense = sorted(
            (r.nonzero / 1e6, 100 * r.cer) for r in rows if r.cell == cell and r.sparsifier == "none"
        )
        axes.plot(*zip(*dense, strict=True) if dense else ([], []), color="grey", linewidth=0.8, zorder=0)
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("nonzero parameters, M")
    _legend(axes, rows, colours, dense="D", front=False)


def of_several_blocks(rows: list[Row]) -> list[Row]:
    """Rows that differ from another one only in their block, and the dense models of their width."""
    blocks: dict[tuple, set[str]] = {}
    for row in rows:
        blocks.setdefault((row.group, _series(row)), set()).add(row.block)
    several = [row for row in rows if len(blocks[row.group, _series(row)]) > 1]
    models = {(row.group, row.model) for row in several}
    return [
        row
        for row in rows
        if row in several or (row.sparsifier == "none" and (row.group, row.model) in models)
    ]


def block_panel(axes: Axes, rows: list[Row]) -> None:
    """CER against block size: a colour for each model and sparsity, a line for each algorithm."""
    blocks = sorted({row.block for row in rows if row.block}, key=_area)
    colours = _colour_each((row.model, _series(row)[2]) for row in sorted(rows, key=_series))
    series = sorted((row for row in rows if row.block), key=_series)
    for key, members in groupby(series, key=_series):
        line = sorted(members, key=lambda row: _area(row.block))
        colour = colours[line[0].model, key[2]]
        axes.plot(
            [blocks.index(row.block) for row in line],
            [100 * row.cer for row in line],
            color=colour,
            marker=_MARKERS[line[0].sparsifier],
            mfc=_face(line[0], colour),
            linestyle=_STYLES.get(line[0].schedule, "--"),
            label=f"{key[0]} {key[1]} {key[2]:g} %",
        )
    for row in rows:
        if row.sparsifier == "none":
            axes.axhline(
                100 * row.cer,
                color=colours[row.model, _series(row)[2]],
                linestyle="--",
                linewidth=1,
                label=f"{row.model} dense",
            )
    axes.set_xticks(range(len(blocks)), blocks)
    axes.set_xlabel("block")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def schedules(runs: list[Run]) -> Figure:
    """Threshold, sparsity and dev CER of each run over its steps. Of more than ten runs the legend names models and
    schedules only."""
    figure = Figure(figsize=(9, 9), dpi=140, layout="constrained")
    curves = [read_curves(run) for run in runs]
    names = labels(runs) if len(runs) <= _MOST_NAMED else ["{} {}".format(*run.model) for run in runs]
    colours = _colour_each(names)
    metrics = {
        ("threshold/",): ("threshold", 1),
        ("sparsity/pruned", "sparsity/prunable"): ("prunable sparsity, %", 100),
        ("val/cer",): ("dev CER, %", 100),
    }
    every = figure.subplots(3, 1, sharex=True)
    for axes, (beginnings, (title, unit)) in zip(every, metrics.items(), strict=True):
        for run, name, of_run in zip(runs, names, curves, strict=True):
            steps, values = _first(of_run, beginnings)
            scaled = [unit * value for value in values]
            axes.plot(
                steps, scaled, linewidth=1, color=colours[name], linestyle=_STYLES.get(run.schedule, "--")
            )
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    used = dict.fromkeys(run.schedule for run in runs)
    handles += [
        Line2D(
            [],
            [],
            color="black",
            linewidth=1,
            linestyle=_STYLES.get(kind, "--"),
            label=f"{kind or 'no'} schedule",
        )
        for kind in used
    ]
    figure.legend(handles=handles, loc="outside right center", frameon=False, fontsize=7)
    return figure


def _first(curves: dict[str, Curve], beginnings: tuple[str, ...]) -> Curve:
    """The first metric, by name, that starts with the first of some beginnings that any metric has."""
    for beginning in beginnings:
        found = sorted(name for name in curves if name.startswith(beginning))
        if found:
            return curves[found[0]]
    return [], []


def layers(runs: list[Run]) -> Figure:
    """Sparsity of every matrix and gate, a column for each run; a panel for RNNs, one for GRUs."""
    families = [
        list(each) for _, each in groupby(sorted(runs, key=lambda r: r.model), key=lambda r: r.model[0])
    ]
    most = max(len(run.result["sparsity/matrices"]) for run in runs)
    figure = Figure(figsize=(9, 2 + 0.2 * most * len(families)), dpi=140, layout="constrained")
    for axes, family in zip(_axes(figure, len(families)), families, strict=True):
        names = list(dict.fromkeys(name for run in family for name in run.result["sparsity/matrices"]))
        shares = [
            [100 * run.result["sparsity/matrices"].get(name, np.nan) for run in family] for name in names
        ]
        picture = axes.imshow(shares, aspect="auto", vmin=0, vmax=100, cmap="viridis")
        axes.set_yticks(range(len(names)), [name.removeprefix("recurrent.") for name in names], fontsize=6)
        axes.set_xticks(range(len(family)), labels(family), rotation=90, fontsize=6)
        figure.colorbar(picture, ax=axes, label="sparsity, %")
    return figure


def labels(runs: list[Run]) -> list[str]:
    """Short names of runs; with the seed where two would be the same."""
    names = [_label(run) for run in runs]
    return [
        f"{name} seed {run.settings['seed']}" if names.count(name) > 1 else name
        for run, name in zip(runs, names, strict=True)
    ]


def _label(run: Run) -> str:
    cell, width = run.model
    target = "" if run.target is None else f" {100 * run.target:g} %"
    return f"{cell} {width} {run.algorithm} {run.block}{target}"


def pareto_front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points (sparsity, error rate) for which none is both sparser and lower, from dense to sparse."""
    front: list[tuple[float, float]] = []
    for sparsity, rate in sorted(points, key=lambda point: (-point[0], point[1])):
        if not front or rate < front[-1][1]:
            front.append((sparsity, rate))
    return front[::-1]


def _axes(figure: Figure, count: int) -> list[Axes]:
    return list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _colours(rows: list[Row]) -> dict[str, Any]:
    models = sorted({(row.cell != "rnn", row.width, row.model) for row in rows})
    return _colour_each(model for *_, model in models)


def _colour_each(keys: Iterable[_Key]) -> dict[_Key, Any]:
    """A colour for each of some keys, in their order; up to twenty differ."""
    found = list(dict.fromkeys(keys))
    palette = colormaps["tab10" if len(found) <= 10 else "tab20"]
    return {key: palette(i % palette.N) for i, key in enumerate(found)}


def _area(block: str) -> tuple[int, ...]:
    """Sort key of blocks: by number of weights, squares before rectangles."""
    rows, columns = map(int, block.split("x"))
    return rows * columns, abs(rows - columns), rows


def _series(row: Row) -> tuple[str, str, float]:
    # The target where there is one: runs with the same target end hundredths apart.
    share = row.prunable_sparsity if row.target is None else row.target
    return row.model, row.algorithm, round(100 * share, 1)


def _point(axes: Axes, x: float, row: Row, colour: Any, size: float) -> None:
    error = None if row.cer_deviation is None else 100 * row.cer_deviation
    marker, face = _MARKERS[row.sparsifier], _face(row, colour)
    axes.errorbar(
        x, 100 * row.cer, yerr=error, color=colour, marker=marker, mfc=face, markersize=size, capsize=3
    )


def _face(row: Row, colour: Any) -> Any:
    """Markers of the cubic schedule are hollow."""
    return "none" if row.schedule == "cubic" else colour


def _sizes(rows: list[Row]) -> dict[str, float]:
    """Block -> size of its markers; the block of dense models is ''."""
    blocks = sorted({row.block for row in rows if row.block}, key=_area)
    return {"": 6.0} | {block: 4.5 + 1.75 * i for i, block in enumerate(blocks)}


def _legend(axes: Axes, rows: list[Row], colours: dict[str, Any], dense: str, front: bool) -> None:
    """Colours and markers in use; `dense` is the line or the marker of dense models."""
    handles = [Line2D([], [], color=c, linewidth=4, label=model) for model, c in colours.items()]
    sizes = _sizes(rows)
    kinds = sorted(
        {(row.sparsifier, row.block) for row in rows}, key=lambda k: ([*_MARKERS].index(k[0]), sizes[k[1]])
    )
    for sparsifier, block in kinds:
        if sparsifier == "none" and dense == "--":
            handles.append(Line2D([], [], color="black", linewidth=1, linestyle="--", label="dense"))
        else:
            name = "dense" if sparsifier == "none" else f"{sparsifier} {block}"
            marker = Line2D([], [], color="black", marker=_MARKERS[sparsifier], linestyle="", label=name)
            marker.set_markersize(sizes[block])
            handles.append(marker)
    if any(row.schedule == "cubic" for row in rows):
        handles.append(
            Line2D([], [], color="black", marker="o", mfc="none", linestyle="", label="cubic schedule")
        )
    if front:
        handles.append(Line2D([], [], color="grey", linewidth=1, label="Pareto front"))
    axes.legend(handles=handles, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
