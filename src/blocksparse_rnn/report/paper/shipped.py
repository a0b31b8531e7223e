"""What pruned runs are once shipped: the size of the file and the speed, by block, as bench.py measured them."""

import json
from pathlib import Path

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.report.results import Row
from blocksparse_rnn.report.table import EMPTY, Table

SHIPPED = "shipped*"
"""Folders beside the runs that `bench.py --only models --run RUN ... --out` writes."""
_HEADINGS = ("block", "kernels", "fp32: MB", "smaller", "faster", "int8: MB", "smaller", "faster")


def shipped_by_block(rows: list[Row], folders: list[Path]) -> str:
    """A paragraph and a table of those rows that were measured; empty where none was.

    Args:
        rows: pruned rows of one width.
        folders: where runs lie; every `shipped*/bench.json` beside them counts.

    Raises:
        UserError: a file isn't such as bench.py writes.
    """
    measured: dict[tuple[str, str, str], tuple[float, float, str]] = {}
    devices: set[str] = set()
    for path in sorted(path for folder in folders for path in folder.glob(f"{SHIPPED}/bench.json")):
        try:
            bench = json.loads(path.read_text(encoding="utf-8"))
            devices.add(bench["device"])
            for of in bench["rows"]:
                if of["op"] == "model":
                    key = of["model"], of["backend"], of["dtype"]
                    measured[key] = of["file_bytes"], of["ratio_to_dense"], bench["variant"]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a benchmark of models ({error}); write it with src/bench.py"
            ) from error
    lines = [line for row in rows for name in row.names if (line := _line(row, name, measured))]
    if not lines:
        return ""
    return (
        f"Shipped, those of the paper's schedule, features to text, one utterance on one core ({', '.join(sorted(devices))}; the instructions that "
        "its kernels use): times smaller than the dense checkpoint, times as fast as the dense model in torch on the "
        "same processor. Single weights and 8x2 are multiplied in blocks of 4, with zeros beside them.\n\n"
        f"{Table('', _HEADINGS, lines, words=2).render('github')}\n"
    )


def _line(
    row: Row, name: str, measured: dict[tuple[str, str, str], tuple[float, float, str]]
) -> tuple[str, ...]:
    """Of each number format the size, how much smaller it is than the dense model's, and how much faster."""
    dense = measured.get((name, "torch dense", "fp32"))
    if dense is None:
        return ()
    cells = [row.block, dense[2]]
    for dtype in ("fp32", "int8"):
        found = measured.get((name, "blocksparse", dtype))
        if found is None:
            cells += [EMPTY] * 3
        else:
            size, speed, _ = found
            cells += [f"{size / 1e6:.2f}", f"{dense[0] / size:.1f}", f"{speed:.1f}"]
    return tuple(cells)
