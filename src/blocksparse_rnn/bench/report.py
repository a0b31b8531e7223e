"""The figures of a benchmark: a terminal table, JSON, a page, and a picture of speed-up against sparsity."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from blocksparse_rnn.bench.machine import Machine
from blocksparse_rnn.bench.page import bench_page
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.report.table import EMPTY, Table

_HEADINGS = ("op", "shape", "zero %", "block", "batch", "backend", "dtype", "us", "x dense", "x torch BSR")


def as_table(rows: list[dict[str, Any]]) -> Table:
    """A line for each row, with what limits it."""
    lines = [
        (
            *(row["op"], "x".join(map(str, row["shape"])), f"{100 * row['sparsity']:.0f}", str(row["block"])),
            *(str(row["batch"]), row["backend"], row["dtype"], f"{row['microseconds']:.0f}"),
            *(_number(row["ratio_to_dense"]), _number(row["ratio_to_torch_bsr"])),
            EMPTY if row["share_of_limit"] is None else f"{100 * row['share_of_limit']:.0f}",
            row["limited_by"] or EMPTY,
        )
        for row in rows
    ]
    return Table("", (*_HEADINGS, "of limit %", "limit"), lines, words=1)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows alone, a JSON list.

    Raises:
        UserError: no permission, no space.
    """
    _write(path, json.dumps(rows, indent=1) + "\n")


def write_report(
    folder: Path, machine: Machine, about: dict[str, Any], rows: list[dict[str, Any]]
) -> list[Path]:
    """bench.json: the rows, and beside them what the machine can do; bench.md: as a page; speed.png.

    Raises:
        UserError: no permission, no space.
    """
    limits = {"operations_per_second": machine.operations, "bytes_per_second": machine.bandwidth}
    text = json.dumps({**about, "variant": machine.variant, **limits, "rows": rows}, indent=1) + "\n"
    written = [folder / "bench.json", folder / "bench.md"]
    _write(written[0], text)
    _write(written[1], bench_page(json.loads(text)))
    if any(row["op"] == "product" for row in rows):
        draw_speed(folder / "speed.png", rows)
        written.append(folder / "speed.png")
    return written


def _write(path: Path, text: str) -> None:
    with durable_file(path, "w") as file:
        file.write(text)


def draw_speed(path: Path, rows: list[dict[str, Any]]) -> None:
    """Speed-up over torch's dense product against sparsity, a panel for each batch, a line for each block."""
    ours = [row for row in rows if row["backend"] == "blocksparse" and row["op"] == "product"]
    largest = max((row["shape"] for row in ours), default=None)
    ours = [row for row in ours if row["shape"] == largest and row["dtype"] == "fp32"]
    batches = sorted({row["batch"] for row in ours})
    if not batches:
        return
    figure = Figure(figsize=(4 * len(batches), 3.6), layout="constrained")
    panels = figure.subplots(1, len(batches), squeeze=False)[0]
    for panel, batch in zip(panels, batches, strict=True):
        for block in sorted({row["block"] for row in ours}):
            points = sorted(
                (100 * row["sparsity"], row["ratio_to_dense"])
                for row in ours
                if row["batch"] == batch and row["block"] == block
            )
            panel.plot(*zip(*points, strict=True), marker="o", label=f"{block}x{block}")
        panel.set(title=f"batch {batch}", xlabel="zero weights, %")
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("times as fast as torch dense, fp32")
    panels[0].legend(title="block")
    shape = "x".join(map(str, largest or ()))
    figure.suptitle(f"A product with a {shape} matrix on one core")
    figure.savefig(path, dpi=120)


def _number(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.1f}"
