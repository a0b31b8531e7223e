"""Whole recurrent layers with block-sparse matrices on a GPU: one Triton kernel per step, one CUDA graph per layer.

The layers of `runtime.cpu_layers`, for matrices on a GPU. A graph is captured for a bucket of lengths and a bucket
of utterances, and serves every batch that fits: steps beyond a batch's end do nothing. With TRITON_INTERPRET=1 in
the environment everything also runs on a CPU, slowly, for tests.

Shapes: N packed frames, I inputs, O outputs, H units, G = 3H stacked gates r, z, n, B utterances, T steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.cuda_graphs import CapturedGraphs, bucket, capture
from blocksparse_rnn.models.recurrence import CLIP
from blocksparse_rnn.pruning.blocks import BlockSize
from blocksparse_rnn.runtime.bsr import BlockSparse
from blocksparse_rnn.runtime.cpu_layers import check_layer, last_frames

MOST_GRAPHS = 8
"""Graphs that a layer keeps."""
_SIDES = (1, 2, 4, 8, 16, 32, 64)
_TILE = 8192  # values of a tile where blocks are too small for the tensor cores
_LEAST_DOT = 16  # smallest side that tensor cores multiply
_MOST_VECTORS = 32  # of a tile


@dataclass(frozen=True)
class DeviceMatrix:
    """A block-sparse matrix (O, I) in GPU memory."""

    shape: tuple[int, int]
    block: BlockSize
    values_NRC: Tensor
    columns_N: Tensor
    row_pointer: Tensor
    row_scale_O: Tensor
    """Scale of each row of int8 weights; empty for other formats."""
    _graphs: "CapturedGraphs[_Sequence]" = field(
        default_factory=lambda: CapturedGraphs(MOST_GRAPHS), repr=False
    )

    @classmethod
    def of(cls, matrix: BlockSparse, device: torch.device | str) -> "DeviceMatrix":
        """A copy on a device.

        Raises:
            UserError: there are no kernels for its blocks.
        """
        if any(side not in _SIDES for side in matrix.block):
            raise UserError(
                f"block={matrix.block[0]}x{matrix.block[1]}: kernels for GPUs take sides of "
                f"{', '.join(map(str, _SIDES))}"
            )
        scale_O = torch.empty(0) if matrix.row_scale_O is None else matrix.row_scale_O.float()
        return cls(
            matrix.shape,
            matrix.block,
            matrix.values_NRC.contiguous().to(device),
            matrix.columns_N.int().to(device),
            matrix.row_pointer.int().to(device),
            scale_O.to(device),
        )

    @property
    def device(self) -> torch.device:
        """The device that holds it."""
        return self.values_NRC.device

    @property
    def arrays(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first arguments of every kernel."""
        return self.row_pointer, self.columns_N, self.values_NRC, self.row_scale_O

    def tiles(self, vectors: int) -> dict[str, Any]:
        """The constants of every kernel, for this number of vectors."""
        rows, columns = self.block
        dot = rows >= _LEAST_DOT
        tile = 1 << (min(vectors, _MOST_VECTORS) - 1).bit_length()
        tile = max(tile, _LEAST_DOT) if dot else tile
        gathered = 64 if dot else max(8, min(64, _TILE // (tile * rows)))
        sizes = {"V": tile, "K": max(gathered, columns), "R": rows, "C": columns}
        wide = not dot or self.device.type == "cpu"
        return {**sizes, "DOT": dot, "WIDE": wide, "SCALED": len(self.row_scale_O) > 0}

    def product(self, x_NI: Tensor, bias_O: Tensor, out_NO: Tensor | None = None) -> Tensor:
        """x times the transposed matrix, plus a bias: (N, I) -> (N, O), float32."""
        from blocksparse_rnn.runtime import triton_kernels as kernels

        x_NI, bias_O = x_NI.float().contiguous(), bias_O.float().contiguous()
        y_NO = x_NI.new_empty(len(x_NI), self.shape[0]) if out_NO is None else out_NO
        tiles = self.tiles(len(x_NI))
        grid = (self.shape[0] // self.block[0], -(-len(x_NI) // tiles["V"]))
        kernels.product[grid](*self.arrays, x_NI, bias_O, y_NO, len(x_NI), *self.shape, **tiles)
        return y_NO


def gru_layer(
    weight_GI: DeviceMatrix,
    weight_GH: DeviceMatrix,
    bias_G: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
    state_BH: Tensor | None = None,
) -> Tensor:
    """`cpu_layers.gru_layer` with all tensors on one device.

    Raises:
        UserError: shapes that don't fit.
    """
    check_layer(weight_GI, (weight_GH,), 3, bias_G, x_NI, batch_sizes, state_BH)
    sequence = _sequence(_GRUSequence, (weight_GH,), batch_sizes)
    return sequence(weight_GI, bias_G, x_NI, batch_sizes, state_BH)


def rnn_layer(
    weight_HI: DeviceMatrix,
    weight_HH: DeviceMatrix,
    reverse_HH: DeviceMatrix,
    bias_H: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
) -> Tensor:
    """`cpu_layers.rnn_layer` with all tensors on one device.

    Raises:
        UserError: shapes that don't fit, or recurrent matrices of different blocks or number formats.
    """
    check_layer(weight_HI, (weight_HH, reverse_HH), 1, bias_H, x_NI, batch_sizes)
    if (weight_HH.block, weight_HH.values_NRC.dtype) != (reverse_HH.block, reverse_HH.values_NRC.dtype):
        raise UserError("the recurrent matrices of both directions must have one block and number format")
    sequence = _sequence(_RNNSequence, (weight_HH, reverse_HH), batch_sizes)
    return sequence(weight_HI, bias_H, x_NI, batch_sizes)


def _sequence(
    make: "type[_Sequence]", matrices: tuple[DeviceMatrix, ...], batch_sizes: Sequence[int]
) -> "_Sequence":
    """The graph for this number of steps and utterances."""
    steps, vectors = bucket(len(batch_sizes)), bucket(batch_sizes[0])
    key = (steps, vectors, *map(id, matrices))
    return matrices[0]._graphs.get(key, lambda: make(matrices, steps, vectors))


class _Sequence:
    """All steps of a layer over buffers of its own, captured once.

    Args:
        matrices: the recurrent matrix of each direction.
        steps: at most.
        vectors: utterances, at most.
    """

    def __init__(self, matrices: tuple[DeviceMatrix, ...], steps: int, vectors: int) -> None:
        (rows, width), device = matrices[0].shape, matrices[0].device
        self.matrices, self.steps, self.width = matrices, steps, width
        self.frames = steps * vectors
        self.a_NO = torch.zeros(self.frames, rows, device=device)
        # Hidden states of each direction; the initial state lies behind the frames.
        self.out_DNH = torch.zeros(len(matrices), self.frames + vectors, width, device=device)
        # Entry t is step t, from 1 on; one more at each end, so that every step has neighbours.
        self.tables_2T = torch.zeros(2, steps + 2, dtype=torch.int32, device=device)
        self.tiles = matrices[0].tiles(vectors)
        self.grid = (width // matrices[0].block[0], -(-vectors // self.tiles["V"]), len(matrices))
        self.tensors = (
            *(array for matrix in matrices for array in matrix.arrays),
            *(self.a_NO, self.out_DNH, *self.tables_2T),
        )
        self.replay = capture(self.run, device)

    def run(self) -> None:
        """Launch the kernels of all steps."""
        raise NotImplementedError

    def __call__(
        self,
        weight_OI: DeviceMatrix,
        bias_O: Tensor,
        x_NI: Tensor,
        batch_sizes: Sequence[int],
        state_BH: Tensor | None = None,
    ) -> Tensor:
        """The output of the layer, directions summed."""
        weight_OI.product(x_NI, bias_O, out_NO=self.a_NO)
        sizes = torch.tensor(batch_sizes, dtype=torch.int32)
        tables_2T = torch.zeros(2, self.steps + 2, dtype=torch.int32)
        tables_2T[0, 1 : len(sizes) + 1] = sizes
        tables_2T[1, 1 : len(sizes) + 1] = sizes.cumsum(0) - sizes
        if state_BH is not None:
            tables_2T[0, 0], tables_2T[1, 0] = len(state_BH), self.frames
            self.out_DNH[0, self.frames : self.frames + len(state_BH)] = state_BH
        self.tables_2T.copy_(tables_2T)
        self.replay()
        if state_BH is not None:
            state_BH.copy_(self.out_DNH[0, last_frames(batch_sizes).to(state_BH.device)])
        return self.out_DNH[:, : len(x_NI)].sum(0)


class _GRUSequence(_Sequence):
    def run(self) -> None:
        from blocksparse_rnn.runtime import triton_kernels as kernels

        for t in range(1, self.steps + 1):
            kernels.gru_step[self.grid](*self.tensors, t, self.width, **self.tiles)


class _RNNSequence(_Sequence):
    def run(self) -> None:
        from blocksparse_rnn.runtime import triton_kernels as kernels

        for step in range(1, self.steps + 1):
            numbers = (step, self.steps, self.out_DNH.shape[1], self.width, CLIP)
            kernels.rnn_step[self.grid](*self.tensors, *numbers, **self.tiles)
