"""Products of one sparse matrix with a few vectors, and whole recurrent layers, timed beside baselines.

B batch, T frames, I inputs, O outputs (gates times width in a recurrent layer), R×C block grid.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from blocksparse_bench.baselines import Method, as_tensor, dense_methods, sparse_methods
from blocksparse_bench.machine import Machine, medians
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import cores
from blocksparse_rnn.pruning.blocks import as_grid
from blocksparse_rnn.runtime.bsr import DTYPES, BlockSparse
from blocksparse_rnn.runtime.cpu_layers import gru_layer, rnn_layer

Row = dict[str, Any]
STEPS = 200
"""Frames of the sequences that layers run over."""
TWO_THREADS = "blocksparse, 2 threads"
"""Backend of layers that two threads compute."""
_ERRORS = {"fp32": 1e-5, "bf16": 2e-2, "int8": 4e-2}
"""Largest error allowed, as a share of the largest value: the rounding of the format."""
_BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def random_sparse(rows: int, columns: int, block: int, sparsity: float, seed: int = 0) -> Tensor:
    """A matrix (rows, columns) of normal weights in which a share of the blocks is zero."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(rows, columns, generator=generator) / (columns * (1 - sparsity)) ** 0.5
    kept_RC = torch.rand(rows // block, columns // block, generator=generator) >= sparsity
    as_grid(weight_OI, (block, block)).mul_(kept_RC[:, None, :, None])
    return weight_OI


def random_layer(cell: str, width: int, block: int, sparsity: float) -> tuple[nn.RNNBase, list[Tensor]]:
    """A recurrent layer of torch without biases, and its weights: W, then U of each direction.

    They are halved, so that states stay below the clip of ReLU, which torch's layer lacks.
    """
    gates, count = (3, 2) if cell == "gru" else (1, 3)
    matrices = [random_sparse(gates * width, width, block, sparsity, seed) / 2 for seed in range(count)]
    weights = {"weight_ih_l0": matrices[0], "weight_hh_l0": matrices[1]}
    if cell == "gru":
        reference: nn.RNNBase = nn.GRU(width, width, bias=False)
    else:
        reference = nn.RNN(width, width, nonlinearity="relu", bias=False, bidirectional=True)
        weights |= {"weight_ih_l0_reverse": matrices[0], "weight_hh_l0_reverse": matrices[2]}
    reference.load_state_dict(weights)
    return reference.requires_grad_(False), matrices


def dense_layer(reference: nn.RNNBase, packed: PackedSequence) -> Tensor:
    """Hidden states of torch's layer; directions are summed, as in the paper."""
    hidden = reference(packed)[0].data
    width = reference.hidden_size
    return hidden[:, :width] + hidden[:, width:] if reference.bidirectional else hidden


def time_products(
    machine: Machine,
    shape: tuple[int, int],
    sparsity: float,
    blocks: list[int],
    batches: list[int],
    seconds: float,
    threads: int,
) -> Iterator[Row]:
    """Rows of one matrix shape and sparsity; a dense product takes part in every comparison.

    Raises:
        UserError: a baseline computes something else.
    """
    for block, batch in itertools.product(blocks, batches):
        weight_OI = random_sparse(*shape, block, sparsity)
        x_BI = torch.randn(batch, shape[1])
        methods = [
            *sparse_methods(weight_OI, (block, block), x_BI, threads),
            *dense_methods(weight_OI, x_BI),
        ]
        _check(methods, x_BI.double() @ weight_OI.double().t())
        about = {"op": "product", "shape": list(shape), "block": block, "batch": batch, "sparsity": sparsity}
        nonzero = int(weight_OI.count_nonzero())
        yield from _rows(machine, about, methods, seconds, nonzero, 2.0 * nonzero * batch)


def time_layers(
    machine: Machine,
    cell: str,
    width: int,
    sparsity: float,
    blocks: list[int],
    batches: list[int],
    seconds: float,
    threads: int,
) -> Iterator[Row]:
    """Rows of a whole recurrent layer with sparse W and U over a sequence, beside torch's dense layer.

    Raises:
        UserError: their results differ.
    """
    for block, batch in itertools.product(blocks, batches):
        reference, matrices = random_layer(cell, width, block, sparsity)
        packed = pack_padded_sequence(torch.randn(batch, STEPS, width), [STEPS] * batch, batch_first=True)
        hidden = partial(dense_layer, reference, packed)
        methods = [
            Method("blocksparse", dtype, _sparse_layer(matrices, block, dtype, packed, threads))
            for dtype in DTYPES
        ]
        if threads == 1 and cores() > 1:
            methods.append(Method(TWO_THREADS, "fp32", _sparse_layer(matrices, block, "fp32", packed, 2)))
        methods.append(Method(f"torch nn.{cell.upper()}", "fp32", hidden))
        _check(methods, hidden().double())
        # Every step reads all of U; W is read once for many frames.
        recurrent = sum(int(m.count_nonzero()) for m in matrices[1:])
        operations = 2.0 * sum(int(m.count_nonzero()) for m in matrices) * batch * STEPS
        about = {
            "op": f"{cell} layer, {STEPS} steps",
            "shape": [width, width],
            "block": block,
            "batch": batch,
            "sparsity": sparsity,
        }
        yield from _rows(machine, about, methods, seconds, recurrent, operations, steps=STEPS)


def _sparse_layer(
    matrices: list[Tensor], block: int, dtype: str, packed: PackedSequence, threads: int
) -> Callable[[], Tensor]:
    sparse = [BlockSparse.from_dense(m, (block, block), dtype) for m in matrices]
    layer: Callable[..., Tensor] = gru_layer if len(matrices) == 2 else rnn_layer
    sizes, bias_O = packed.batch_sizes.tolist(), torch.zeros(len(matrices[0]))
    return lambda: layer(*sparse, bias_O, packed.data, sizes, threads=threads)


def _check(methods: Sequence[Method], expected: Tensor) -> None:
    largest = float(expected.abs().max())
    for method in methods:
        error = float((as_tensor(method.work()) - expected).abs().max())
        if not error <= _ERRORS[method.dtype] * largest:
            raise UserError(
                f"bench: {method.backend} {method.dtype} is off by {error:.3g} where the largest value is {largest:.3g}"
            )


def _rows(
    machine: Machine,
    about: Row,
    methods: list[Method],
    seconds: float,
    nonzero: int,
    operations: float,
    steps: int = 1,
) -> Iterator[Row]:
    """Time the methods; the limit holds for what skips zeros, in the same number format."""
    times = medians({f"{m.backend} {m.dtype}": m.work for m in methods}, seconds)
    dense = next(taken for name, taken in times.items() if name.startswith(("torch dense", "torch nn.")))
    bsr = times.get("torch BSR fp32")
    for method in methods:
        taken = times[f"{method.backend} {method.dtype}"]
        limit, limited_by = machine.limit(nonzero * _BYTES[method.dtype], operations / steps, method.dtype)
        ours = method.backend == "blocksparse"
        yield {
            **about,
            "backend": method.backend,
            "dtype": method.dtype,
            "microseconds": round(taken, 1),
            "ratio_to_dense": round(dense / taken, 2),
            "ratio_to_torch_bsr": None if bsr is None else round(bsr / taken, 2),
            "share_of_limit": round(1e6 * limit * steps / taken, 3) if ours else None,
            "limited_by": limited_by if ours else None,
        }
