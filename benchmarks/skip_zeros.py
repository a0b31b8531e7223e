"""Speed-up of a training step whose products skip pruned blocks (skip_zeros=true).

Measured are a layer with its batch norm, forward and backward, and the whole step of a recogniser at scale=mini:
features, forward, CTC loss, backward, clipping, AdamW. Masks are random, 90 % of the blocks zero. Dense and skipping
take turns in one process, with the same weights. Times are processor time, since the machine is shared; reported are
medians and the ratio of the medians. The gradients of both are compared with float64 first.

python benchmarks/skip_zeros.py --json results/runtime/skip_zeros.json
"""

import argparse
import itertools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.models.layers import GRULayer, RNNLayer
from blocksparse_rnn.pruning.blocks import block_max, scale_blocks_
from blocksparse_rnn.pruning.prunable import prunable_matrices
from blocksparse_rnn.runs.provenance import cpu_name
from blocksparse_rnn.training.recogniser import build_recogniser
from blocksparse_rnn.training.skip_zeros import skip_nothing, skip_zeros
from sparsifier_step import BATCH, SECONDS, random_batch

WIDTHS = {"layer": (440, 640, 880, 1280, 1760), "step": (440, 880, 1760)}
FRAMES = 100  # of a layer's sequences: 4 seconds at a time stride of 4
SPARSITY = 0.9
WORTH = 1.2
PRUNABLE = {"all": ["*weight_ih", "*weight_hh*", "fc.weight"]}


def prune(model: nn.Module, block: int) -> dict[str, Tensor]:
    """Zero random blocks of every matrix; return the masks by name."""
    masks = {}
    for matrix in prunable_matrices(model, PRUNABLE):
        grid_RC = block_max(matrix.weight.detach(), (block, block))
        masks[matrix.name] = torch.rand(grid_RC.shape) >= SPARSITY
        with torch.no_grad():
            scale_blocks_(matrix.weight, masks[matrix.name].float(), (block, block))
    return masks


def layer_step(layer: nn.Module, packed: PackedSequence) -> Callable[[], None]:
    def step() -> None:
        layer.zero_grad()
        packed.data.grad = None
        layer(packed).data.square().mean().backward()

    return step


def whole_step(cell: str, width: int) -> tuple[nn.Module, Callable[[], None], Callable[[], None]]:
    """A recogniser's model, its step up to the gradients, and its whole step."""
    settings = compose_settings(["scale=mini", f"model={cell}", f"width={width}"])
    recogniser = build_recogniser(settings)
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=0.0)  # the same weights at every step
    batch = random_batch(recogniser)
    matrices = [m.weight for m in prunable_matrices(recogniser.model, settings.prunable)]

    def gradients() -> None:
        recogniser.model.zero_grad()
        logits_BTV, frames = recogniser(batch.wave_BS, batch.samples)
        recogniser.ctc_loss(logits_BTV, frames, batch).backward()

    def step() -> None:
        gradients()
        for weight in matrices:  # the sparsifier does it too, before gradients are clipped
            assert weight.grad is not None
            weight.grad.mul_(weight.detach() != 0)
        torch.nn.utils.clip_grad_norm_(recogniser.parameters(), 20.0)
        optimizer.step()

    return recogniser.model, gradients, step


def compare(
    model: nn.Module,
    gradients: Callable[[], None],
    step: Callable[[], None],
    block: int,
    repetitions: int,
) -> dict[str, Any]:
    masks = prune(model, block)
    expected = exact_gradients(model, gradients, masks, block)
    ways: dict[str, Callable[[], None]] = {
        "dense": lambda: skip_nothing(model),
        "skipping": lambda: skip_zeros(model, masks, (block, block)),
    }
    errors = {}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for name, choose in ways.items():
        choose()
        gradients()
        error = (kept_gradients(model, masks, block) - expected).norm() / expected.norm()
        errors[f"{name}_error"] = float(f"{float(error):.1e}")
    for repetition in range(repetitions + 1):
        for name, choose in ways.items():
            choose()
            start = time.process_time()
            step()
            if repetition:  # the first warms up
                times[name].append(1e3 * (time.process_time() - start))
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    return {
        **{f"{name}_ms": round(ms, 1) for name, ms in medians.items()},
        "ratio": round(medians["dense"] / medians["skipping"], 2),
        **errors,
    }


def exact_gradients(
    model: nn.Module, gradients: Callable[[], None], masks: dict[str, Tensor], block: int
) -> Tensor:
    """The gradients of dense training in float64."""
    hook = model.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(torch.float64), *inputs[1:]))
    model.double()
    gradients()
    expected = kept_gradients(model, masks, block)
    hook.remove()
    model.float()
    return expected


def kept_gradients(model: nn.Module, masks: dict[str, Tensor], block: int) -> Tensor:
    """All gradients in one vector, those of pruned weights zero."""
    gradients = []
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        gradient = parameter.grad.double()
        if name in masks:
            scale_blocks_(gradient, masks[name].double(), (block, block))
        gradients.append(gradient.flatten())
    return torch.cat(gradients)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch and the runtime")
    parser.add_argument("--only", choices=WIDTHS, help="layers or whole steps")
    parser.add_argument("--cell", choices=("rnn", "gru"), help="one instead of both")
    parser.add_argument(
        "--widths", type=int, nargs="+", help="instead of those from a quarter to the full scale"
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    print(f"{cpu_name()}, {arguments.threads} threads, torch {torch.__version__}, batch {BATCH}")
    print("what   cell  width  block  dense ms  skipping ms  ratio  gradient errors: dense, skipping")
    rows = []
    points = [
        (what, cell, width, block)
        for what, cell in itertools.product(WIDTHS, ("rnn", "gru"))
        if arguments.only in (None, what) and arguments.cell in (None, cell)
        for width in arguments.widths or WIDTHS[what]
        for block in (4, 8 if width % 16 else 16)
    ]
    for what, cell, width, block in points:
        if what == "layer":
            x_NI = torch.randn(FRAMES * BATCH, width, requires_grad=True)
            packed = PackedSequence(x_NI, torch.full((FRAMES,), BATCH))
            model: nn.Module = (RNNLayer if cell == "rnn" else GRULayer)(width, width)
            gradients = step = layer_step(model, packed)
        else:
            model, gradients, step = whole_step(cell, width)
        row = {"what": what, "cell": cell, "width": width, "block": block}
        row |= compare(model, gradients, step, block, arguments.repetitions)
        rows.append(row)
        print(
            f"{what:5}  {cell:4}  {width:5}  {block:5}  {row['dense_ms']:8}  {row['skipping_ms']:11}  "
            f"{row['ratio']:5.2f}  {row['dense_error']:.0e}  {row['skipping_error']:.0e}",
            flush=True,
        )
        if arguments.json:
            machine = {"cpu": cpu_name(), "threads": arguments.threads, "torch": torch.__version__}
            about = {"sparsity": SPARSITY, "batch": BATCH, "seconds": SECONDS, "layer_frames": FRAMES}
            document = {"machine": machine, **about, "worth": WORTH, "rows": rows}
            arguments.json.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
