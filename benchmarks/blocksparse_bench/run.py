"""All benchmarks of the runtime, one comparison after the other; each prints its table when it is done."""

import itertools
import os
import platform
import sys
import time
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from blocksparse_bench.baselines import OPTIONAL
from blocksparse_bench.machine import Machine, measure_machine
from blocksparse_bench.models import PAPER_SCALE, time_random_models, time_trained_run
from blocksparse_bench.products import Row, time_layers, time_products
from blocksparse_bench.report import models_table, rows_table, write_report, write_rows
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import create_folder
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.provenance import cpu_name
from blocksparse_rnn.runtime.library import native

_SHAPES = ((7680, 2560), (1760, 1760))
_SPARSITIES = (0.8, 0.9, 0.95)
_BLOCKS = [4, 8, 16, 32]
_BATCHES = [1, 8, 32]
_LAYERS = (("gru", 2560), ("rnn", 1760))


def run_benchmarks(
    *,
    quick: bool,
    only: str | None,
    threads: int,
    seconds: float,
    runs: list[Path],
    json: Path | None,
    out: Path | None,
) -> None:
    """Measure, print a table, write what was asked for.

    Raises:
        UserError: no native library to measure, a baseline that computes something else, or no permission.
    """
    if threads < 1 or seconds <= 0:
        raise UserError("bench: --threads must be 1 or more, --seconds more than 0")
    if native() is None:
        raise UserError("bench: there is no native runtime to measure; install g++ and unset BSR_NATIVE")
    for run in runs:
        RunFolder.existing(run)
    if json is not None and json.is_dir():
        raise UserError(f"{json}: is a folder; name the file to write, such as {json / 'rows.json'}")
    for folder in (out, None if json is None else json.parent):
        if folder is not None:
            create_folder(folder)
    torch.set_num_threads(threads)
    os.environ["MKL_NUM_THREADS"] = str(threads)
    machine = measure_machine()
    print(_describe(machine), flush=True)
    rows: list[Row] = []
    paths: list[Path] = []
    started = time.monotonic()
    for part in _comparisons(machine, quick, only, threads, seconds, runs):
        found = list(part)
        rows += found
        if out is not None:
            paths = write_report(out, machine, _circumstances(threads, seconds), rows)
        table = models_table(found) if found[0]["op"] == "model" else rows_table(found)
        print(f"\n{table.render('simple')}\n{time.monotonic() - started:.0f} s in all", flush=True)
    if json is not None:
        write_rows(json, rows)
        paths.append(json)
    if paths:
        print(f"\nwritten: {', '.join(map(str, paths))}")


def _comparisons(
    machine: Machine, quick: bool, only: str | None, threads: int, seconds: float, runs: list[Path]
) -> Iterator[Iterator[Row]]:
    blocks, batches = ([4, 16], [1, 8]) if quick else (_BLOCKS, _BATCHES)
    if only in (None, "products"):
        for shape, sparsity in itertools.product(_SHAPES[:1] if quick else _SHAPES, _SPARSITIES):
            if not quick or sparsity == 0.9:
                yield time_products(machine, shape, sparsity, blocks, batches, seconds, threads)
    if only in (None, "layers"):
        for cell, width in _LAYERS:
            layer_blocks, layer_batches = ([16], [1]) if quick else (_BLOCKS, [1, 8])
            yield time_layers(machine, cell, width, 0.9, layer_blocks, layer_batches, seconds, threads)
    if only in (None, "models"):
        for run in runs:
            yield time_trained_run(run, seconds, threads)
        paper_scale = PAPER_SCALE[:1] if quick else PAPER_SCALE
        for cell, width in () if runs else paper_scale:
            yield time_random_models(cell, width, [16] if quick else [4, 16], seconds, threads)


def _describe(machine: Machine) -> str:
    operations = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in machine.operations.items())
    sizes = {1 << 10: "1 MiB", 8 << 10: "8 MiB", 128 << 10: "128 MiB"}
    reading = ", ".join(f"{name} {machine.bandwidth[kib] / 1e9:.0f}" for kib, name in sizes.items())
    return (
        f"{cpu_name()}, kernels {machine.variant}; one core: {operations} G operations/s, "
        f"reads {reading} GB/s"
    )


def _circumstances(threads: int, seconds: float) -> dict[str, Any]:
    """What a reader needs to judge or repeat the figures."""
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    for package in OPTIONAL:
        try:
            versions[package] = version(package.replace("_", "-"))
        except PackageNotFoundError:
            continue
    script = sys.argv[0].endswith(".py")
    program = ["python", os.path.relpath(sys.argv[0])] if script else [sys.argv[0]]
    return {
        "command": " ".join([*program, *sys.argv[1:]]),
        "device": cpu_name(),
        "threads": threads,
        "seconds": seconds,
        "versions": versions,
    }
