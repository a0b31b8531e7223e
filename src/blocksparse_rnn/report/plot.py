"""CER against sparsity, a panel for each group of runs that may be compared."""

from itertools import groupby
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from blocksparse_rnn.files import durable_file
from blocksparse_rnn.report.results import Row

_MARKERS = {"bp": "o", "glp": "s", "gl": "^"}


def draw(rows: list[Row], path: Path) -> None:
    """Draw all rows: a colour for each model, a marker for each sparsifier, dense models as lines.

    Raises:
        UserError: no permission, no space.
    """
    groups = [(group, list(of_group)) for group, of_group in groupby(rows, key=lambda row: row.group)]
    figure = Figure(figsize=(9, 5 * len(groups)), dpi=140, layout="constrained")
    panels = figure.subplots(len(groups), 1, squeeze=False)[:, 0]
    for axes, (group, of_group) in zip(panels, groups, strict=True):
        _panel(axes, group, of_group)
    with durable_file(path) as file:
        figure.savefig(file, format="png")


def _panel(axes: Axes, group: str, rows: list[Row]) -> None:
    models = list(dict.fromkeys(row.model for row in rows))
    colours = {model: f"C{i % 10}" for i, model in enumerate(models)}
    for row in rows:
        colour = colours[row.model]
        if row.sparsifier == "none":
            axes.axhline(100 * row.cer, color=colour, linestyle="--", linewidth=1)
            continue
        error = None if row.cer_deviation is None else 100 * row.cer_deviation
        x, y = 100 * row.prunable_sparsity, 100 * row.cer
        axes.errorbar(x, y, yerr=error, color=colour, marker=_MARKERS[row.sparsifier], capsize=3)
    _label_blocks(axes, [row for row in rows if row.sparsifier != "none"])
    axes.set_xlabel("sparsity of the prunable weights, %")
    axes.set_ylabel("test CER, %")
    axes.set_ylim(bottom=0)
    # At least ten points wide: sparsities that differ by hundredths are the same.
    shares = [100 * row.prunable_sparsity for row in rows if row.sparsifier != "none"] or [50.0]
    axes.set_xlim(min(shares) - 5, min(max(shares) + 5, 101))
    axes.grid(alpha=0.3)
    axes.set_title(group, fontsize=9)
    axes.legend(handles=_legend(rows, colours), loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)


def _label_blocks(axes: Axes, rows: list[Row]) -> None:
    """Write each point's block beside it, by turns right and left so that neighbours stay apart."""
    for i, row in enumerate(sorted(rows, key=lambda row: row.cer)):
        right = i % 2 == 0
        axes.annotate(
            row.block,
            (100 * row.prunable_sparsity, 100 * row.cer),
            xytext=(7 if right else -7, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=8,
        )


def _legend(rows: list[Row], colours: dict[str, str]) -> list[Line2D]:
    handles = [Line2D([], [], color=c, linewidth=4, label=m) for m, c in colours.items()]
    used = dict.fromkeys(row.sparsifier for row in rows)
    handles += [
        Line2D([], [], color="black", marker=_MARKERS[s], linestyle="", label=s) for s in used if s != "none"
    ]
    if "none" in used:
        handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label="dense"))
    return handles
