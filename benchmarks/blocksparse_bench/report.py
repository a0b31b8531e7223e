"""The rows of a benchmark as a table, as JSON, as a Markdown page, and as a plot of speed-up against sparsity."""

import json
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from blocksparse_bench.machine import Machine
from blocksparse_bench.products import TWO_THREADS, Row
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.report.table import EMPTY, Table
from blocksparse_rnn.runtime.bsr import DTYPES

_SPARSITY = 0.9
_BLOCK = 16
"""Of the tables that show one block size."""


def write_report(folder: Path, machine: Machine, about: dict[str, Any], rows: list[Row]) -> list[Path]:
    """bench.json: the rows and the machine's limits; bench.md: the page; speed.png where products were timed.

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


def write_rows(path: Path, rows: list[Row]) -> None:
    """The rows alone, a JSON list.

    Raises:
        UserError: no permission, no space.
    """
    _write(path, json.dumps(rows, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    with durable_file(path, "w") as file:
        file.write(text)


def rows_table(rows: list[Row]) -> Table:
    """A line for each row of products or layers, with its limit."""
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
    headings = ("op", "shape", "sparsity %", "block", "batch", "backend", "dtype", "us")
    speed_up = ("x dense", "x torch BSR", "of limit %", "limit")
    return Table("", (*headings, *speed_up), lines, words=1)


def models_table(rows: list[Row]) -> Table:
    """A line for each model and way to compute it, with the share of each part."""
    lines = [
        (
            row["model"],
            f"{row['backend']} {row['dtype']}",
            str(row["block"] or EMPTY),
            f"{100 * row['sparsity']:.0f}",
            f"{row['real_time_factor']:.4f}",
            f"{row['ratio_to_dense']:.1f}",
            f"{row['file_bytes'] / 1e6:.1f}",
            f"{row['memory_bytes'] / 1e6:.0f}",
            EMPTY if row["cer"] is None else f"{100 * row['cer']:.2f}",
            ", ".join(f"{part} {share:.0%}" for part, share in row["shares"].items()),
        )
        for row in rows
    ]
    headings = ("model", "weights", "block", "zero %", "real-time factor", "x dense", "file MB", "memory MB")
    return Table("", (*headings, "CER %", "time in"), lines, words=2)


def bench_page(report: dict[str, Any]) -> str:
    """Markdown for what `bench.json` holds."""
    rows = report["rows"]
    products = [row for row in rows if row["op"] == "product"]
    largest = max((row["shape"] for row in products), default=None)
    products = [row for row in products if row["shape"] == largest]
    layers = [row for row in rows if row["op"].endswith("steps")]
    models = [row for row in rows if row["op"] == "model"]
    parts = [_head(report)]
    if products:
        parts += [_products(products), _against_baselines(products)]
    if layers:
        parts.append(_layers(layers))
    if models:
        parts.append(_models(models))
    return "\n".join(parts)


def _head(report: dict[str, Any]) -> str:
    operations = ", ".join(
        f"{name} {rate / 1e9:.0f}" for name, rate in report["operations_per_second"].items()
    )
    reading = ", ".join(
        f"{int(kib) // 1024} MiB {rate / 1e9:.0f}"
        for kib, rate in report["bytes_per_second"].items()
        if int(kib) >= 1024
    )
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    return (
        "# Speed of the runtime\n\n"
        f"Written by `{report['command']}` on one machine: {report['device']}, kernels {report['variant']}, "
        f"{report['threads']} thread(s) unless a line says otherwise. {versions}.\n\n"
        f"Limits of one core, measured in the same process: {operations} G operations/s; reading a working set "
        f"again and again, by its size: {reading} GB/s. The limit of a product is the larger of two times: to read "
        "its nonzero blocks at the speed of a working set of that size, and to multiply at the peak of the format.\n\n"
        "Times are medians in microseconds; the methods of a comparison take turns in one process.\n"
    )


def _products(rows: list[Row]) -> str:
    at = _by_key([row for row in rows if row["sparsity"] == _SPARSITY])
    blocks, batches = sorted({key[2] for key in at}), sorted({key[3] for key in at})
    heads = [f"batch {batch}" for batch in batches]
    lines = [
        (f"{b}x{b}", dtype, *(_product_cell(at.get(("blocksparse", dtype, b, n))) for n in batches))
        for b in blocks
        for dtype in DTYPES
    ]
    ours = Table("", ("block", "weights", *heads), lines, words=2 + len(heads))
    lines = [
        (backend, dtype, *(_microseconds(at.get((backend, dtype, _BLOCK, n))) for n in batches))
        for backend, dtype in sorted({key[:2] for key in at if key[0] != "blocksparse"})
    ]
    baselines = Table("", (f"others, {_BLOCK}x{_BLOCK}", "weights", *heads), lines, words=2)
    shape = "x".join(map(str, rows[0]["shape"]))
    return (
        f"## One product, {shape}, sparsity {_SPARSITY:.0%}\n\n"
        "Each cell: microseconds; speed-up over torch dense fp32; over torch BSR; share of the limit, and what sets "
        f"it.\n\n{ours.render('github')}\n\n{baselines.render('github')}\n"
    )


def _against_baselines(rows: list[Row]) -> str:
    backends = {row["backend"] for row in rows} - {"blocksparse"}
    dense = {name for name in backends if name.endswith("dense")}
    groups = {
        "torch dense": {"torch dense"},
        "the best dense": dense,
        "the best sparse library": backends - dense,
    }
    batches = sorted({row["batch"] for row in rows})
    lines = []
    for sparsity in sorted({row["sparsity"] for row in rows}):
        at = _by_key([row for row in rows if row["sparsity"] == sparsity])
        for name, group in groups.items():
            cells = []
            for batch in batches:
                ours, *others = (
                    at[key]["microseconds"] if (key := (backend, "fp32", _BLOCK, batch)) in at else None
                    for backend in ("blocksparse", *group)
                )
                best = min((time for time in others if time is not None), default=None)
                cells.append(EMPTY if ours is None or best is None else f"{best / ours:.1f}x")
            lines.append((f"{100 * sparsity:.0f} %", name, *cells))
    table = Table("", ("zero", "against, fp32", *(f"batch {batch}" for batch in batches)), lines, words=2)
    return f"## Speed-up over baselines\n\n{_BLOCK}x{_BLOCK} blocks, fp32.\n\n{table.render('github')}\n"


def _layers(rows: list[Row]) -> str:
    lines = []
    for op, width in sorted({(row["op"], row["shape"][1]) for row in rows}):
        at = _by_key([row for row in rows if (row["op"], row["shape"][1]) == (op, width)])
        for block, batch in sorted({key[2:] for key in at}):
            dense = next(at[key] for key in at if "nn." in key[0] and key[2:] == (block, batch))
            ours = [at.get(("blocksparse", dtype, block, batch)) for dtype in DTYPES]
            two = at.get((TWO_THREADS, "fp32", block, batch))
            lines.append(
                (
                    *(f"{op}, width {width}", f"{block}x{block}", str(batch)),
                    f"{dense['microseconds'] / 1e3:.0f}",
                    *(EMPTY if row is None else f"{row['ratio_to_dense']:.1f}x" for row in ours),
                    EMPTY
                    if ours[0] is None or two is None
                    else f"{ours[0]['microseconds'] / two['microseconds']:.2f}",
                )
            )
    headings = ("layer", "block", "batch", "torch, ms", *DTYPES, "two threads over one")
    table = Table("", headings, lines, words=2)
    return (
        f"## Whole layers, sparsity of W and U {_SPARSITY:.0%}\n\n"
        "Speed-up over torch's dense layer on one core; the last column: of two threads over one, fp32.\n\n"
        f"{table.render('github')}\n"
    )


def _models(rows: list[Row]) -> str:
    return (
        "## Whole recognisers, features to text\n\n"
        f"One utterance of {rows[0]['seconds_of_audio']:g} s. The real-time factor is computing time per second of "
        "audio. Memory is the growth of the process's peak RSS from loading the model and transcribing the utterance. "
        f"CER is that of the run's test split.\n\n{models_table(rows).render('github')}\n"
    )


def draw_speed(path: Path, rows: list[Row]) -> None:
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
        panel.set(title=f"batch {batch}", xlabel="sparsity, %")
        panel.axhline(1, color="grey", linewidth=0.8)
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("speed-up over torch dense, fp32")
    panels[0].legend(title="block")
    figure.suptitle(f"A product with a {'x'.join(map(str, largest or ()))} matrix on one core")
    figure.savefig(path, dpi=120)


def _by_key(rows: list[Row]) -> dict[tuple[str, str, int, int], Row]:
    return {(row["backend"], row["dtype"], row["block"], row["batch"]): row for row in rows}


def _product_cell(row: Row | None) -> str:
    if row is None:
        return EMPTY
    bsr = EMPTY if row["ratio_to_torch_bsr"] is None else f"{row['ratio_to_torch_bsr']:.1f}x"
    return (
        f"{row['microseconds']:.0f}; {row['ratio_to_dense']:.0f}x; {bsr}; "
        f"{100 * row['share_of_limit']:.0f} % {row['limited_by']}"
    )


def _microseconds(row: Row | None) -> str:
    return EMPTY if row is None else f"{row['microseconds']:.0f}"


def _number(value: float | None) -> str:
    return EMPTY if value is None else f"{value:.1f}"
