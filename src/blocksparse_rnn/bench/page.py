"""A benchmark's figures as a page: one product, whole layers, where the gain shrinks, beside what limits each."""

from typing import Any

from blocksparse_rnn.report.table import EMPTY, Table

Row = dict[str, Any]
TWO_THREADS = "blocksparse, 2 threads"
"""Backend of layers that two threads compute."""
_SPARSITY = 0.9


def bench_page(run: dict[str, Any]) -> str:
    """Markdown for what `bench.json` holds."""
    products = [row for row in run["rows"] if row["op"] == "product"]
    layers = [row for row in run["rows"] if row["op"].endswith("steps")]
    parts = [_head(run)]
    if products:
        largest = max(row["shape"] for row in products)
        products = [row for row in products if row["shape"] == largest]
        parts += [_product_part(products, "x".join(map(str, largest))), _shrinking_part(products)]
    if layers:
        parts.append(_layer_part(layers))
    models = [row for row in run["rows"] if row["op"] == "model"]
    if models:
        parts.append(_model_part(models))
    return "\n".join(parts)


def _head(run: dict[str, Any]) -> str:
    operations = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in run["operations_per_second"].items())
    reading = ", ".join(
        f"{int(k) // 1024} MiB {v / 1e9:.0f}" for k, v in run["bytes_per_second"].items() if int(k) >= 1024
    )
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    return (
        "# The runtime's speed, measured\n\n"
        f"Written by `{run['command']}` on one machine: {run['device']}, kernels {run['variant']}, "
        f"{run['threads']} thread(s) unless a line says otherwise. {versions}.\n\n"
        f"What one core can do, measured in the same process: {operations} G operations/s; reading over and over "
        f"a working set of {reading} GB/s. The limit of a product is the larger of two times: reading its nonzero "
        "blocks at the speed of a working set of that size, and its multiplications at the peak of their format.\n\n"
        "Every time is a median of rivals that take turns in one process, in microseconds.\n"
    )


def _product_part(rows: list[Row], shape: str) -> str:
    at = [row for row in rows if row["sparsity"] == _SPARSITY]
    batches = sorted({row["batch"] for row in at})
    lines = []
    for block in sorted({row["block"] for row in at}):
        for dtype in ("fp32", "bf16", "int8"):
            cells = [_cell(_find(at, "blocksparse", dtype, block, batch)) for batch in batches]
            lines.append((f"{block}x{block}", dtype, *cells))
    ours = Table("", ("block", "weights", *(f"batch {b}" for b in batches)), lines, words=5)
    others = []
    for backend, dtype in sorted(
        {(row["backend"], row["dtype"]) for row in at if row["backend"] != "blocksparse"}
    ):
        cells = [_microseconds(_find(at, backend, dtype, 16, batch)) for batch in batches]
        others.append((backend, dtype, *cells))
    rivals = Table("", ("others, 16x16", "weights", *(f"batch {b}" for b in batches)), others, words=2)
    return (
        f"## One product, {shape}, {100 * _SPARSITY:.0f} % zero\n\n"
        "Microseconds; times as fast as torch dense fp32; as torch BSR; share of the limit, and what sets it.\n\n"
        f"{ours.render('github')}\n\n{rivals.render('github')}\n"
    )


def _shrinking_part(rows: list[Row]) -> str:
    batches = sorted({row["batch"] for row in rows})
    lines = []
    for sparsity in sorted({row["sparsity"] for row in rows}):
        at = [row for row in rows if row["sparsity"] == sparsity and row["block"] == 16]
        dense = [row for row in at if row["backend"].endswith("dense") and row["dtype"] == "fp32"]
        sparse = [
            row for row in at if not row["backend"].endswith("dense") and row["backend"] != "blocksparse"
        ]
        for name, rivals in (
            ("torch dense", dense[:1]),
            ("the best dense", dense),
            ("the best sparse library", sparse),
        ):
            cells = []
            for batch in batches:
                ours = _find(at, "blocksparse", "fp32", 16, batch)
                named = {"torch dense"} if name == "torch dense" else {row["backend"] for row in rivals}
                best = min(
                    (
                        r["microseconds"]
                        for r in at
                        if r["backend"] in named and r["batch"] == batch and r["dtype"] == "fp32"
                    ),
                    default=None,
                )
                cells.append(EMPTY if ours is None or best is None else f"{best / ours['microseconds']:.1f}x")
            lines.append((f"{100 * sparsity:.0f} %", name, *cells))
    table = Table("", ("zero", "against, fp32", *(f"batch {b}" for b in batches)), lines, words=2)
    return f"## Where the gain shrinks\n\n16x16 blocks, fp32.\n\n{table.render('github')}\n"


def _layer_part(rows: list[Row]) -> str:
    lines = []
    keys = sorted({(row["op"], row["shape"][1], row["block"], row["batch"]) for row in rows})
    for op, width, block, batch in keys:
        at = [
            r
            for r in rows
            if (r["op"], r["shape"][1]) == (op, width) and (r["block"], r["batch"]) == (block, batch)
        ]
        dense = next(row for row in at if "nn." in row["backend"])
        one = _find(at, "blocksparse", "fp32", block, batch)
        two = _find(at, TWO_THREADS, "fp32", block, batch)
        gain = EMPTY if one is None or two is None else f"{one['microseconds'] / two['microseconds']:.2f}"
        ratios = [_ratio(_find(at, "blocksparse", dtype, block, batch)) for dtype in ("fp32", "bf16", "int8")]
        lines.append(
            (
                f"{op}, width {width}",
                f"{block}x{block}",
                str(batch),
                f"{dense['microseconds'] / 1e3:.0f}",
                *ratios,
                gain,
            )
        )
    headings = ("layer", "block", "batch", "torch, ms", "fp32", "bf16", "int8", "two threads over one")
    table = Table("", headings, lines, words=2)
    return (
        f"## Whole layers, W and U {100 * _SPARSITY:.0f} % zero\n\n"
        "Times as fast as torch's own dense layer, one core; and what a second thread brings, fp32.\n\n"
        f"{table.render('github')}\n"
    )


def _model_part(rows: list[Row]) -> str:
    seconds = rows[0]["seconds_of_audio"]
    return (
        "## Whole recognisers, features to text\n\n"
        f"One utterance of {seconds:g} s; real-time factor: seconds of computing for a second of audio. Memory is by "
        "how much a process grows at most that loads the model and hears the utterance; error rates are those of "
        f"the run's test split.\n\n{models_table(rows).render('github')}\n"
    )


def models_table(rows: list[Row]) -> Table:
    """A line for each model and way of computing it, with the share of each part."""
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


def _find(rows: list[Row], backend: str, dtype: str, block: int, batch: int) -> Row | None:
    wanted = (backend, dtype, block, batch)
    return next((r for r in rows if (r["backend"], r["dtype"], r["block"], r["batch"]) == wanted), None)


def _cell(row: Row | None) -> str:
    if row is None:
        return EMPTY
    bsr = EMPTY if row["ratio_to_torch_bsr"] is None else f"{row['ratio_to_torch_bsr']:.1f}x"
    return (
        f"{row['microseconds']:.0f}; {row['ratio_to_dense']:.0f}x; {bsr}; "
        f"{100 * row['share_of_limit']:.0f} % {row['limited_by']}"
    )


def _microseconds(row: Row | None) -> str:
    return EMPTY if row is None else f"{row['microseconds']:.0f}"


def _ratio(row: Row | None) -> str:
    return EMPTY if row is None else f"{row['ratio_to_dense']:.1f}x"
