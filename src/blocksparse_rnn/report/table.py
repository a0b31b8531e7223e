"""Tables as text: aligned for a terminal, markdown, LaTeX or CSV."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby

from tabulate import tabulate

from blocksparse_rnn.report.results import Row

EMPTY = "-"
_HEADINGS = (
    *("model", "sparsifier", "block", "seeds", "CER %", "WER %", "sparsity %", "prunable sparsity %"),
    *("nonzero", "PERF %", "PERF same width %"),
)


@dataclass(frozen=True)
class Table:
    """Cells with a title and headings; the first `words` columns are words, the rest numbers."""

    title: str
    headings: Sequence[str]
    cells: Sequence[Sequence[str]]
    words: int

    def render(self, form: str) -> str:
        """The cells in one of tabulate's formats, such as `plain`, `github` or `latex_booktabs`."""
        align = ["left"] * self.words + ["right"] * (len(self.headings) - self.words)
        return tabulate(
            self.cells,
            self.headings,
            tablefmt=form,
            colalign=align,
            disable_numparse=True,
        )


def run_tables(rows: list[Row]) -> list[Table]:
    """A table for each group of runs."""
    groups = groupby(rows, key=lambda row: row.group)
    return [_table(group, list(of_group)) for group, of_group in groups]


def _table(group: str, rows: list[Row]) -> Table:
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    if any(row.reevaluated for row in rows):
        lines = _with(lines, "dev CER %", [percent(row.dev_cer, 2) for row in rows])
    # Both sparsities count as choices: they tell rows apart that differ in their target.
    if len({(*cells[:4], *cells[6:8]) for cells in lines[1:]}) < len(rows):
        lines = _with(lines, "run", [" ".join(row.names) for row in rows])
    return Table(group, lines[0], lines[1:], words=3)


def brief_table(rows: list[Row]) -> Table:
    """Rows of one group in few columns; the relative CER increase is over the dense model of the same width."""
    headings = (
        *("model", "sparsifier", "block", "prunable sparsity %", "nonzero M"),
        *("CER %", "relative CER increase %", "seeds"),
    )
    cells = [
        (
            *(row.model, row.algorithm, row.block or EMPTY, percent(row.prunable_sparsity)),
            *(f"{row.nonzero / 1e6:.2f}", rate(row), increase(row)),
            ",".join(map(str, row.seeds)),
        )
        for row in rows
    ]
    return Table("", headings, cells, words=3)


def _with(lines: list[tuple[str, ...]], heading: str, cells: list[str]) -> list[tuple[str, ...]]:
    """Lines, the headings first, with one more column."""
    return [(*line, cell) for line, cell in zip(lines, [heading, *cells], strict=True)]


def as_text(tables: list[Table]) -> str:
    """For a terminal."""
    return "\n\n".join(f"{table.title}\n{table.render('plain')}" for table in tables)


def as_markdown(tables: list[Table]) -> str:
    """For a page."""
    return "\n".join(f"### {table.title}\n\n{table.render('github')}\n" for table in tables)


def as_latex(tables: list[Table]) -> str:
    """For a paper; needs the package booktabs."""
    return "\n\n".join(f"% {table.title}\n{table.render('latex_booktabs')}" for table in tables) + "\n"


def as_csv(rows: list[Row]) -> str:
    """All figures unrounded, a line for each row."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        values = asdict(row)
        writer.writerow(values | {"names": " ".join(row.names), "seeds": " ".join(map(str, row.seeds))})
    return file.getvalue()


def percent(value: float | None, places: int = 1) -> str:
    """A fraction as a percentage; None as a dash."""
    if value is None:
        return EMPTY
    text = f"{100 * value:.{places}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def rate(row: Row) -> str:
    """A row's CER, with its standard deviation where there are several seeds."""
    spread = "" if row.cer_deviation is None else f" ± {percent(row.cer_deviation, 2)}"
    return percent(row.cer, 2) + spread


def increase(row: Row) -> str:
    """A row's relative CER increase over the dense model of the same width."""
    return percent(None if row.perf_same_width is None else -row.perf_same_width)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.model,
        row.algorithm,
        row.block or EMPTY,
        ",".join(map(str, row.seeds)),
        rate(row),
        percent(row.wer),
        percent(row.sparsity),
        percent(row.prunable_sparsity),
        f"{row.nonzero / 1e6:.3f} M",
        percent(row.perf),
        percent(row.perf_same_width),
    )
