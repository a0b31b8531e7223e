"""Whole recurrent layers over whole packed sequences, with block-sparse matrices.

What a layer of `models.layers` computes in eval mode, its batch norm folded into W and a bias. One native
call per layer; where the matrices have no native kernels, a loop in torch.

Shapes: N packed frames, I inputs, H units, G = 3H stacked gates r, z, n, B utterances.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runtime.bsr import BlockSparse, check_memory, check_native
from blocksparse_rnn.runtime.library import native

CLIP = 20.0
"""Upper limit of the clipped rectifier, as in `models.recurrence` and `bsr.cpp`."""


def gru_layer(
    weight_GI: BlockSparse,
    weight_GH: BlockSparse,
    bias_G: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
    state_BH: Tensor | None = None,
    threads: int = 1,
) -> Tensor:
    """A GRU layer with the reset applied after the product, as cuDNN does it.

    Args:
        weight_GI: W, of the input.
        weight_GH: U, of the state.
        bias_G: added to W x.
        x_NI: packed frames: time step by time step, utterances from long to short.
        batch_sizes: frames of each time step, never growing.
        state_BH: state before the first step, overwritten with that after the last; None for zeros.
        threads: of the native kernels.

    Returns:
        Hidden states (N, H), packed like the input.

    Raises:
        UserError: shapes that don't fit, tensors on a GPU, no threads.
    """
    hidden = weight_GH.shape[1]
    check_layer(weight_GI, (weight_GH,), 3, bias_G, x_NI, batch_sizes, state_BH)
    check_native(threads, bias_G, x_NI, *([] if state_BH is None else [state_BH]))
    if not _are_native(weight_GI, weight_GH):
        return _torch_gru(weight_GI, weight_GH, bias_G, x_NI, batch_sizes, state_BH)
    x_NI, bias_G = x_NI.float().contiguous(), bias_G.float().contiguous()
    state = None if state_BH is None else state_BH.float().contiguous()
    sizes = torch.tensor(batch_sizes, dtype=torch.int32)
    out_NH = torch.empty(len(x_NI), hidden)
    library = native()
    assert library is not None
    check_memory(
        library.bsr_gru(
            *(weight_GI.handle, weight_GH.handle, bias_G.data_ptr(), threads, len(sizes), sizes.data_ptr()),
            *(x_NI.data_ptr(), None if state is None else state.data_ptr(), out_NH.data_ptr()),
        )
    )
    if state_BH is not None and state is not state_BH:
        state_BH.copy_(state)  # type: ignore[arg-type]
    return out_NH


def rnn_layer(
    weight_HI: BlockSparse,
    weight_HH: BlockSparse,
    reverse_HH: BlockSparse,
    bias_H: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
    threads: int = 1,
) -> Tensor:
    """A bidirectional clipped-rectifier layer: h_t = clip(W x_t + b + U h_{t-1}), directions summed.

    Args:
        weight_HI: W, shared by both directions.
        weight_HH: U from the first frame to the last.
        reverse_HH: U from the last frame to the first.
        bias_H: added to W x.
        x_NI: packed frames.
        batch_sizes: frames of each time step, never growing.
        threads: of the native kernels.

    Returns:
        Hidden states (N, H), packed like the input.

    Raises:
        UserError: shapes that don't fit, tensors on a GPU, no threads.
    """
    check_layer(weight_HI, (weight_HH, reverse_HH), 1, bias_H, x_NI, batch_sizes)
    check_native(threads, bias_H, x_NI)
    if not _are_native(weight_HI, weight_HH, reverse_HH):
        a_NH = weight_HI.product(x_NI) + bias_H
        return _torch_rnn(a_NH, weight_HH, batch_sizes, False) + _torch_rnn(
            a_NH, reverse_HH, batch_sizes, True
        )
    x_NI, bias_H = x_NI.float().contiguous(), bias_H.float().contiguous()
    sizes = torch.tensor(batch_sizes, dtype=torch.int32)
    out_NH = torch.empty(len(x_NI), weight_HH.shape[0])
    library = native()
    assert library is not None
    check_memory(
        library.bsr_rnn(
            *(weight_HI.handle, weight_HH.handle, reverse_HH.handle, bias_H.data_ptr(), threads),
            *(len(sizes), sizes.data_ptr(), x_NI.data_ptr(), out_NH.data_ptr()),
        )
    )
    return out_NH


def _are_native(*matrices: BlockSparse) -> bool:
    """Whether the native layers take these: kernels for all, of one block."""
    return len({m.native_block for m in matrices}) == 1 and matrices[0].native_block is not None


class Shaped(Protocol):
    """A matrix, wherever it lies."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""


def check_layer(
    weight: Shaped,
    recurrent: Sequence[Shaped],
    gates: int,
    bias: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
    state_BH: Tensor | None = None,
) -> None:
    """Hold a layer's arguments against one another.

    Raises:
        UserError: they don't fit.
    """
    rows, inputs = weight.shape
    for matrix in recurrent:
        if matrix.shape != (rows, rows // gates):
            raise UserError(f"a recurrent matrix must be {(rows, rows // gates)}, not {matrix.shape}")
    if tuple(bias.shape) != (rows,):
        raise UserError(f"the bias must have {rows} values, not {tuple(bias.shape)}")
    if x_NI.ndim != 2 or tuple(x_NI.shape) != (sum(batch_sizes), inputs):
        raise UserError(f"the frames must be {(sum(batch_sizes), inputs)}, not {tuple(x_NI.shape)}")
    falling = all(a >= b for a, b in zip(batch_sizes, batch_sizes[1:], strict=False))
    if not batch_sizes or batch_sizes[-1] < 1 or not falling:
        raise UserError("batch_sizes must be positive and never grow: utterances from long to short")
    state = (batch_sizes[0], rows // gates)
    if state_BH is not None and tuple(state_BH.shape) != state:
        raise UserError(f"the state must be {state}, not {tuple(state_BH.shape)}")


def _torch_gru(
    weight_GI: BlockSparse,
    weight_GH: BlockSparse,
    bias_G: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
    state_BH: Tensor | None,
) -> Tensor:
    state = torch.zeros(batch_sizes[0], weight_GH.shape[1]) if state_BH is None else state_BH.clone()
    outs = []
    for a in (weight_GI.product(x_NI) + bias_G).split(list(batch_sizes)):
        h = state[: len(a)]
        (a_r, a_z, a_n), (u_r, u_z, u_n) = a.chunk(3, 1), weight_GH.product(h).chunk(3, 1)
        reset, update = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
        h = torch.lerp(torch.tanh(a_n + reset * u_n), h, update)
        state[: len(a)] = h
        outs.append(h)
    if state_BH is not None:
        state_BH.copy_(state)
    return torch.cat(outs)


def _torch_rnn(a_NH: Tensor, weight_HH: BlockSparse, batch_sizes: Sequence[int], reverse: bool) -> Tensor:
    parts = a_NH.split(list(batch_sizes))
    outs: list[Tensor] = [*parts]
    state = torch.zeros(batch_sizes[0], weight_HH.shape[0])
    steps = range(len(parts))
    for t in reversed(steps) if reverse else steps:
        rows = batch_sizes[t]
        outs[t] = (parts[t] + weight_HH.product(state[:rows])).clamp(0.0, CLIP)
        state[:rows] = outs[t]
    return torch.cat(outs)
