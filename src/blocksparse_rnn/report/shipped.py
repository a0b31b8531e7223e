"""What pruned runs are once shipped: the size of the file and the speed, by block, as bench.py measured them."""

import json
from pathlib import Path
from typing import Any

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.report.results import Row
from blocksparse_rnn.report.table import EMPTY, Table

SHIPPED = "shipped"
"""Folder beside the runs that `bench.py --only models --run RUN ... --out` writes."""
_HEADINGS = ("block", "fp32: MB", "smaller", "faster", "int8: MB", "smaller", "faster")


def shipped_by_block(rows: list[Row], folders: list[Path]) -> str:
    """A paragraph and a table of those rows that were measured; empty where none was.

    Args:
        rows: pruned rows of one width.
        folders: where runs lie; the first `shipped/bench.json` beside them counts.

    Raises:
        UserError: the file isn't such as bench.py writes.
    """
    paths = (folder / SHIPPED / "bench.json" for folder in folders)
    path = next(filter(Path.exists, paths), None)
    if path is None:
        return ""
    try:
        bench = json.loads(path.read_text(encoding="utf-8"))
        measured = {(r["model"], r["backend"], r["dtype"]): r for r in bench["rows"] if r["op"] == "model"}
        lines = [line for row in rows for name in row.names if (line := _line(row, name, measured))]
        device = bench["device"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a benchmark of models ({error}); write it with src/bench.py") from error
    if not lines:
        return ""
    return (
        f"Shipped, features to text, one utterance on one core ({device}): times smaller than the dense "
        "checkpoint, times as fast as the dense model in torch. Blocks without kernels of their own run in torch.\n\n"
        f"{Table('', _HEADINGS, lines, words=1).render('github')}\n"
    )


def _line(row: Row, name: str, measured: dict[tuple[str, str, str], dict[str, Any]]) -> tuple[str, ...]:
    dense = measured.get((name, "torch dense", "fp32"))
    if dense is None:
        return ()
    cells = [row.block]
    for dtype in ("fp32", "int8"):
        found = measured.get((name, "blocksparse", dtype))
        if found is None:
            cells += [EMPTY] * 3
        else:
            cells.append(f"{found['file_bytes'] / 1e6:.2f}")
            cells += [f"{dense['file_bytes'] / found['file_bytes']:.1f}", f"{found['ratio_to_dense']:.1f}"]
    return tuple(cells)
