"""The paper's table beside ours.

Source: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, table of results.
Its sparse rows have blocks of 4x4 (table 2).
"""

from dataclasses import replace
from typing import NamedTuple

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.report.results import Row, comparable
from blocksparse_rnn.report.table import EMPTY, Table, percent, rate


class PaperRow(NamedTuple):
    """A line of the paper's table; rates are fractions."""

    cell: str
    width: int
    sparsifier: str
    parameters: float
    """Nonzero ones, in millions."""
    sparsity: float
    """Among all parameters."""
    target: float | None
    """Sparsity of the prunable parameters that makes it, at the paper's scale."""
    cer: float
    perf: float

    @property
    def name(self) -> str:
        kind = "Dense" if self.sparsifier == "none" else "Sparse"
        return f"{self.cell.upper()} {kind} {self.width}"

    @property
    def algorithm(self) -> str:
        return EMPTY if self.sparsifier == "none" else self.sparsifier.upper()


PAPER = (
    PaperRow("rnn", 1760, "none", 67, 0.0, None, 0.1536, 0.0),
    PaperRow("rnn", 704, "none", 11.6, 0.0, None, 0.1895, -0.234),
    PaperRow("rnn", 1760, "bp", 7.3, 0.892, 0.896, 0.1793, -0.167),
    PaperRow("rnn", 2560, "glp", 12.9, 0.908, 0.910, 0.1589, -0.034),
    PaperRow("rnn", 3072, "bp", 25.8, 0.873, 0.875, 0.1566, -0.019),
    PaperRow("gru", 2560, "none", 115, 0.0, None, 0.1542, 0.0),
    PaperRow("gru", 704, "none", 11.0, 0.0, None, 0.2126, -0.379),
    PaperRow("gru", 2560, "glp", 10.8, 0.906, 0.909, 0.1678, -0.088),
    PaperRow("gru", 3584, "bp", 25.6, 0.884, 0.886, 0.1623, -0.052),
)
_HEADINGS = (
    *("row", "algorithm", "ours", "paper: M", "ours: M", "paper: sparsity %", "ours: sparsity %"),
    *("prunable sparsity %", "paper: CER %", "ours: CER %", "paper: PERF %", "ours: PERF %", "seeds"),
)


def paper_tables(rows: list[Row]) -> list[Table]:
    """The nine rows, the paper's figures beside ours, for each group and recipe of runs that has any of them.

    Raises:
        UserError: none has.
    """
    ours = [alike for alike in comparable(rows) if any(match(paper, alike) for paper in PAPER)]
    if not ours:
        raise UserError(
            "none of these runs is a row of the paper's table; `make reproduce-table` trains them"
        )
    groups = [alike[0].group for alike in ours]
    tables = []
    for alike in ours:
        table = paper_table(alike)
        several = groups.count(alike[0].group) > 1
        trained = f", trained as {alike[0].names[0]}" if several else ""
        tables.append(replace(table, title=table.title + trained))
    return tables


def paper_table(rows: list[Row], missing: bool = True) -> Table:
    """The nine rows beside runs of one group and recipe; `missing`: also those without a run."""
    both = [(paper, match(paper, rows)) for paper in PAPER]
    lines = [_cells(paper, row) for paper, row in both if missing or row is not None]
    return Table(f"The paper's table, {rows[0].group}", _HEADINGS, lines, words=3)


def match(paper: PaperRow, rows: list[Row]) -> Row | None:
    """Our row for one of the paper's."""
    return find(rows, paper.cell, paper.width, paper.sparsifier, paper.target)


def find(
    rows: list[Row],
    cell: str,
    paper_width: int,
    sparsifier: str = "none",
    target: float | None = None,
    block: str = "4x4",
    schedule: str = "paper",
) -> Row | None:
    """The trained row with these choices; what was only re-evaluated is none."""
    wanted = (cell, paper_width, sparsifier, target)
    pruned = ("", None) if sparsifier == "none" else (block, schedule)
    for row in rows:
        found = (row.cell, row.paper_width, row.sparsifier, row.target)
        if not row.reevaluated and found == wanted and (row.block, row.schedule) == pruned:
            return row
    return None


def _cells(paper: PaperRow, row: Row | None) -> tuple[str, ...]:
    ours = [EMPTY] * 7
    if row is not None:
        ours = [
            row.model,
            f"{row.nonzero / 1e6:.2f}",
            percent(row.sparsity),
            percent(row.prunable_sparsity),
            rate(row),
            percent(row.perf),
            ",".join(map(str, row.seeds)),
        ]
    model, nonzero, sparsity, prunable, cer, perf, seeds = ours
    return (
        paper.name,
        paper.algorithm,
        model,
        f"{paper.parameters:g}",
        nonzero,
        percent(paper.sparsity),
        sparsity,
        prunable,
        percent(paper.cer, 2),
        cer,
        percent(paper.perf),
        perf,
        seeds,
    )
