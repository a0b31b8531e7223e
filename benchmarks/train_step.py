"""Time of a training step of one recurrent layer, beside PyTorch's own layer.

Forward and backward. Our layers have batch norm, PyTorch's have none. Both take turns in one process; reported are
medians and the ratio of the medians.

python benchmarks/train_step.py [--threads 1] [--json results.json]
python benchmarks/train_step.py --device cuda --widths 704 1760 2560
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence

from blocksparse_rnn.models.layers import GRULayer, RNNLayer, pack
from blocksparse_rnn.runs.provenance import cpu_name

STEPS = 200
LIMITS = {"rnn": 0.8, "gru": 1.2}


def ours(layer: nn.Module, packed: PackedSequence) -> Callable[[], None]:
    def step() -> None:
        layer.zero_grad()
        layer(packed).data.square().mean().backward()
        finish(packed.data.device)

    return step


def theirs(layer: nn.RNNBase, x_TBI: torch.Tensor) -> Callable[[], None]:
    def step() -> None:
        layer.zero_grad()
        hidden, _ = layer(x_TBI)
        if layer.bidirectional:  # the paper's layer sums its directions
            hidden = hidden[..., : layer.hidden_size] + hidden[..., layer.hidden_size :]
        hidden.square().mean().backward()
        finish(x_TBI.device)

    return step


def finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def medians(steps: list[Callable[[], None]], repetitions: int) -> list[float]:
    """Milliseconds of each step; they take turns."""
    for step in steps:
        step()
    times: list[list[float]] = [[] for _ in steps]
    for _ in range(repetitions):
        for step, taken in zip(steps, times, strict=True):
            start = time.perf_counter()
            step()
            taken.append(1e3 * (time.perf_counter() - start))
    return [statistics.median(taken) for taken in times]


def compare(cell: str, width: int, batch: int, repetitions: int, device: torch.device) -> dict:
    x_TBI = torch.randn(STEPS, batch, width, device=device, requires_grad=True)
    packed = pack(x_TBI.transpose(0, 1), [STEPS] * batch)
    packed = PackedSequence(packed.data.detach().requires_grad_(), *packed[1:])
    if cell == "rnn":
        mine: nn.Module = RNNLayer(width, width)
        other: nn.RNNBase = nn.RNN(width, width, nonlinearity="relu", bidirectional=True)
    else:
        mine, other = GRULayer(width, width), nn.GRU(width, width)
    mine, other = mine.to(device), other.to(device)
    our_ms, torch_ms = medians([ours(mine, packed), theirs(other, x_TBI)], repetitions)
    ratio = our_ms / torch_ms
    row = {"cell": cell, "width": width, "batch": batch, "steps": STEPS, "our_ms": round(our_ms, 1)}
    limit = LIMITS[cell] if device.type == "cpu" else None
    return {**row, "torch_ms": round(torch_ms, 1), "ratio": round(ratio, 3), "limit": limit}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: PyTorch's)")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--widths", type=int, nargs="+", default=(256, 512))
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    on_gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if on_gpu else cpu_name()
    print(f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}, T = {STEPS}")
    print("cell  width  batch  ours ms  torch ms  ratio  limit")
    rows = []
    for cell in ("rnn", "gru"):
        for width in arguments.widths:
            for batch in (8, 16, 32):
                row = compare(cell, width, batch, arguments.repetitions, device)
                rows.append(row)
                print(
                    f"{cell:4}  {width:5}  {batch:5}  {row['our_ms']:7}  {row['torch_ms']:8}  "
                    f"{row['ratio']:5.2f}  {row['limit'] or '':5}",
                    flush=True,
                )
    if arguments.json:
        machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        machine |= {"gpu": name} if on_gpu else {}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
