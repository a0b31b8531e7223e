"""Products of one sparse matrix with a few vectors, and whole recurrent layers, timed beside their rivals."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from blocksparse_rnn.bench.machine import Machine
from blocksparse_rnn.bench.measure import medians
from blocksparse_rnn.bench.page import TWO_THREADS
from blocksparse_rnn.bench.rivals import Rival, as_tensor, dense_rivals, sparse_rivals
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import cores
from blocksparse_rnn.pruning.blocks import as_grid
from blocksparse_rnn.runtime.bsr import DTYPES, BlockSparse
from blocksparse_rnn.runtime.cpu_layers import gru_layer, rnn_layer

Row = dict[str, Any]
STEPS = 200
"""Frames of the sequences that layers run over."""
_ERRORS = {"fp32": 1e-5, "bf16": 2e-2, "int8": 4e-2}
"""Largest error allowed, as a share of the largest value; how a format rounds, not a bug."""
_WIDTHS = {"fp32": 4, "bf16": 2, "int8": 1}


def random_sparse(rows: int, columns: int, block: int, sparsity: float, seed: int = 0) -> Tensor:
    """A matrix (rows, columns) of normal weights in which a share of the blocks is zero."""
    generator = torch.Generator().manual_seed(seed)
    weight_OI = torch.randn(rows, columns, generator=generator) / (columns * (1 - sparsity)) ** 0.5
    kept_RC = torch.rand(rows // block, columns // block, generator=generator) >= sparsity
    as_grid(weight_OI, (block, block)).mul_(kept_RC[:, None, :, None])
    return weight_OI


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
        UserError: a rival computes something else.
    """
    for block, batch in itertools.product(blocks, batches):
        weight_OI = random_sparse(*shape, block, sparsity)
        x_BI = torch.randn(batch, shape[1])
        rivals = [*sparse_rivals(weight_OI, (block, block), x_BI, threads), *dense_rivals(weight_OI, x_BI)]
        expected = x_BI.double() @ weight_OI.double().t()
        for rival in rivals:
            _check(rival.backend, rival.dtype, as_tensor(rival.work()), expected)
        about = {"op": "product", "shape": list(shape), "block": block, "batch": batch, "sparsity": sparsity}
        nonzero = int((weight_OI != 0).sum())
        yield from _rows(machine, about, rivals, seconds, nonzero, 2.0 * nonzero * batch)


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
    """Rows of a whole recurrent layer with sparse W and U over a sequence, beside torch's dense one.

    Raises:
        UserError: they differ.
    """
    for block, batch in itertools.product(blocks, batches):
        reference, matrices = _layer(cell, width, block, sparsity)
        x_BTI = torch.randn(batch, STEPS, width)
        packed = pack_padded_sequence(x_BTI, [STEPS] * batch, batch_first=True)
        hidden_of = partial(_dense_layer, reference, packed)
        rivals = [
            Rival("blocksparse", dtype, _sparse_layer(matrices, block, dtype, packed, threads))
            for dtype in DTYPES
        ]
        if threads == 1 and cores() > 1:
            rivals.append(Rival(TWO_THREADS, "fp32", _sparse_layer(matrices, block, "fp32", packed, 2)))
        rivals.append(Rival(f"torch nn.{cell.upper()}", "fp32", hidden_of))
        expected = hidden_of().double()
        for rival in rivals:
            _check(rival.backend, rival.dtype, rival.work(), expected)
        nonzero = sum(int((m != 0).sum()) for m in matrices)
        about = {
            "op": f"{cell} layer, {STEPS} steps",
            "shape": [width, width],
            "block": block,
            "batch": batch,
            "sparsity": sparsity,
        }
        # Every step reads all weights of U; those of W are read once for many frames.
        recurrent = sum(int((m != 0).sum()) for m in matrices[1:])
        operations = 2.0 * nonzero * batch * STEPS
        yield from _rows(machine, about, rivals, seconds, recurrent, operations, steps=STEPS)


def _sparse_layer(
    matrices: list[Tensor], block: int, dtype: str, packed: PackedSequence, threads: int
) -> Callable[[], Tensor]:
    sparse = [BlockSparse.from_dense(m, (block, block), dtype) for m in matrices]
    layer: Callable[..., Tensor] = gru_layer if len(matrices) == 2 else rnn_layer
    sizes, bias_O = packed.batch_sizes.tolist(), torch.zeros(len(matrices[0]))
    return lambda: layer(*sparse, bias_O, packed.data, sizes, threads=threads)


def _dense_layer(reference: nn.RNNBase, packed: PackedSequence) -> Tensor:
    hidden = reference(packed)[0].data
    width = reference.hidden_size
    return hidden[:, :width] + hidden[:, width:] if reference.bidirectional else hidden


def _layer(cell: str, width: int, block: int, sparsity: float) -> tuple[nn.RNNBase, list[Tensor]]:
    gates = 3 if cell == "gru" else 1
    count = 2 if cell == "gru" else 3
    # Halved, so that a rectified state doesn't grow into the clip, which torch's layer lacks.
    matrices = [random_sparse(gates * width, width, block, sparsity, seed) / 2 for seed in range(count)]
    if cell == "gru":
        reference: nn.RNNBase = nn.GRU(width, width, bias=False)
        names = ["weight_ih_l0", "weight_hh_l0"]
    else:
        reference = nn.RNN(width, width, nonlinearity="relu", bias=False, bidirectional=True)
        names = ["weight_ih_l0", "weight_hh_l0", "weight_hh_l0_reverse"]
    for name, matrix in zip(names, matrices, strict=True):
        getattr(reference, name).data.copy_(matrix)
    if cell == "rnn":
        reference.weight_ih_l0_reverse.data.copy_(matrices[0])  # type: ignore[operator]
    return reference.requires_grad_(False), matrices


def _check(backend: str, dtype: str, result: Tensor, expected: Tensor) -> None:
    error, largest = float((result - expected).abs().max()), float(expected.abs().max())
    if not error <= _ERRORS[dtype] * largest:
        raise UserError(
            f"bench: {backend} {dtype} is off by {error:.3g} where the largest value is {largest:.3g}"
        )


def _rows(
    machine: Machine,
    about: Row,
    rivals: list[Rival],
    seconds: float,
    nonzero: int,
    operations: float,
    steps: int = 1,
) -> Iterator[Row]:
    """Time the rivals; the limit holds for what skips zeros, in the same number format."""
    times = medians({f"{r.backend} {r.dtype}": r.work for r in rivals}, seconds)
    dense = next(
        times[f"{r.backend} {r.dtype}"]
        for r in rivals
        if r.backend.startswith("torch dense") or "nn." in r.backend
    )
    for rival in rivals:
        taken = times[f"{rival.backend} {rival.dtype}"]
        size = nonzero * _WIDTHS[rival.dtype]
        limit, limited_by = machine.limit(size, operations / steps, rival.dtype)
        ours = rival.backend == "blocksparse"
        yield {
            **about,
            "backend": rival.backend,
            "dtype": rival.dtype,
            "microseconds": round(taken, 1),
            "ratio_to_dense": round(dense / taken, 2),
            "ratio_to_torch_bsr": _ratio(times.get("torch BSR fp32"), taken),
            "share_of_limit": round(1e6 * limit * steps / taken, 3) if ours else None,
            "limited_by": limited_by if ours else None,
        }


def _ratio(other: float | None, taken: float) -> float | None:
    return None if other is None else round(other / taken, 2)
