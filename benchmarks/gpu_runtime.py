"""Whole recurrent layers on a GPU: block-sparse (Triton kernels in a CUDA graph) beside PyTorch's dense layers.

Both matrices of a layer are 90 % sparse, in random blocks. The methods of a row take turns in one process,
after their results were compared; medians of milliseconds. nn.RNN has no clip, so states are kept below it.

python benchmarks/gpu_runtime.py [--json results/gpu/runtime.json]
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence

from blocksparse_bench.products import dense_layer, random_layer
from blocksparse_rnn.runs.provenance import cpu_name
from blocksparse_rnn.runtime.bsr import BlockSparse
from blocksparse_rnn.runtime.cuda_layers import DeviceMatrix, gru_layer, rnn_layer

LAYERS = (("gru", 2560), ("rnn", 1760))
STEPS, SPARSITY = 200, 0.9
BLOCKS, BATCHES, DTYPES = (4, 8, 16, 32), (1, 8, 32), ("fp32", "bf16", "int8")
ALLOWED = {"fp32": 1e-4, "bf16": 3e-2, "int8": 5e-2}
"""Largest error, as a share of the largest value: the rounding of the format."""


def compare(
    cell: str, width: int, block: int, batch: int, steps: int, device: torch.device, repetitions: int
) -> list[dict[str, Any]]:
    """A row for each method of one layer, block and batch."""
    reference, matrices = random_layer(cell, width, block, SPARSITY)
    packed = pack_padded_sequence(torch.randn(batch, steps, width), [steps] * batch, batch_first=True)
    sizes, bias_O = packed.batch_sizes.tolist(), torch.zeros(len(matrices[0]), device=device)
    packed = packed.to(device)  # type: ignore[arg-type]
    torch_name = f"torch nn.{cell.upper()}"
    methods: dict[tuple[str, str], Callable[[], Tensor]] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        dense = deepcopy(reference).to(device, dtype)
        methods[torch_name, name] = partial(dense_layer, dense, packed._replace(data=packed.data.to(dtype)))
    layer: Callable[..., Tensor] = gru_layer if cell == "gru" else rnn_layer
    for name in DTYPES:
        sparse = [DeviceMatrix.of(BlockSparse.from_dense(m, (block, block), name), device) for m in matrices]
        methods["blocksparse", name] = partial(layer, *sparse, bias_O, packed.data, sizes)
    expected = methods[torch_name, "fp32"]()
    errors = {
        key: float((work() - expected).abs().max() / expected.abs().max()) for key, work in methods.items()
    }
    wrong = [f"{key[0]} {key[1]} is off by {e:.1%}" for key, e in errors.items() if not e <= ALLOWED[key[1]]]
    if wrong:
        raise SystemExit(f"gpu_runtime: {cell} {width}, block {block}, batch {batch}: {'; '.join(wrong)}")
    times = medians(methods, device, repetitions)
    dense_ms = times[torch_name, "fp32"]
    about = {
        "cell": cell,
        "width": width,
        "block": block,
        "batch": batch,
        "steps": steps,
        "sparsity": SPARSITY,
    }
    return [
        {
            **about,
            "backend": backend,
            "dtype": dtype,
            "ms": round(ms, 3),
            "ratio_to_dense_fp32": round(dense_ms / ms, 2),
            "error": float(f"{errors[backend, dtype]:.1e}"),
        }
        for (backend, dtype), ms in times.items()
    ]


def medians(
    methods: dict[tuple[str, str], Callable[[], Tensor]], device: torch.device, repetitions: int
) -> dict[tuple[str, str], float]:
    """Milliseconds of each, taking turns."""
    times: dict[tuple[str, str], list[float]] = {name: [] for name in methods}
    for _ in range(repetitions):
        for name, work in methods.items():
            work()
            wait(device)
            start = time.perf_counter()
            work()
            wait(device)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(taken) for name, taken in times.items()}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_runtime: torch finds no GPU on this machine")
    torch.manual_seed(0)
    device = torch.device("cuda")
    machine = {"gpu": torch.cuda.get_device_name(), "cpu": cpu_name(), "torch": torch.__version__}
    print(f"{machine['gpu']}, torch {torch.__version__}, {STEPS} steps, {SPARSITY:.0%} of the blocks zero")
    print("cell  width  block  batch  backend      dtype       ms  x dense fp32    error")
    rows = []
    for (cell, width), block, batch in itertools.product(LAYERS, BLOCKS, BATCHES):
        for row in compare(cell, width, block, batch, STEPS, device, arguments.repetitions):
            rows.append(row)
            print(
                f"{cell:4}  {width:5}  {block:5}  {batch:5}  {row['backend']:11}  {row['dtype']:5}  "
                f"{row['ms']:7.3f}  {row['ratio_to_dense_fp32']:12.2f}  {row['error']:.1e}",
                flush=True,
            )
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
