"""Rows as text: aligned for a terminal, or as markdown."""

from itertools import groupby

from blocksparse_rnn.report.results import Row

_HEADINGS = (
    *("model", "sparsifier", "block", "seeds", "CER %", "WER %", "sparsity %", "of prunable %"),
    *("nonzero", "PERF %", "vs same width %"),
)
_LEFT = 3  # columns of words; the rest are numbers
_EMPTY = "-"


def as_text(rows: list[Row]) -> str:
    """Aligned tables, one for each group of runs that may be compared."""
    parts = []
    for group, of_group in groupby(rows, key=lambda row: row.group):
        cells = [_HEADINGS, *(_cells(row) for row in of_group)]
        widths = [max(len(line[i]) for line in cells) for i in range(len(_HEADINGS))]
        lines = [
            "  ".join(
                cell.ljust(width) if i < _LEFT else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        parts.append("\n".join([group, *lines]))
    return "\n\n".join(parts)


def as_markdown(rows: list[Row]) -> str:
    """The same as markdown."""
    parts = []
    for group, of_group in groupby(rows, key=lambda row: row.group):
        marks = ["---" if i < _LEFT else "---:" for i in range(len(_HEADINGS))]
        lines = ["| " + " | ".join(line) + " |" for line in [_HEADINGS, marks, *map(_cells, of_group)]]
        parts.append("\n".join([f"### {group}", "", *lines, ""]))
    return "\n".join(parts)


def _cells(row: Row) -> tuple[str, ...]:
    deviation = "" if row.cer_deviation is None else f" ± {100 * row.cer_deviation:.2f}"
    return (
        f"{row.cell} {row.width}",
        "dense" if row.sparsifier == "none" else row.sparsifier,
        row.block or _EMPTY,
        ",".join(map(str, row.seeds)),
        f"{100 * row.cer:.2f}{deviation}",
        f"{100 * row.wer:.1f}",
        f"{100 * row.sparsity:.1f}",
        f"{100 * row.prunable_sparsity:.1f}",
        f"{row.nonzero / 1e6:.3f} M",
        _percent(row.perf),
        _percent(row.against_dense),
    )


def _percent(value: float | None) -> str:
    return _EMPTY if value is None else f"{100 * value:.1f}".replace("-0.0", "0.0")
