"""Whole recurrent layers over whole packed sequences, with block-sparse matrices.

A layer computes what its layer of `models.layers` computes in eval mode, batch norm folded into W and a bias. It is
one native call; matrices without native kernels go through the loops of `models.recurrence`.

Shapes: N packed frames, I inputs, H units, G = 3H stacked gates r, z, n, B utterances.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.recurrence import CLIP, gru_scan, scan
from blocksparse_rnn.runtime.bsr import BlockSparse, check_memory, check_native
from blocksparse_rnn.runtime.library import native


def gru_layer(
    weight_GI: BlockSparse,
    weight_GH: BlockSparse,
    bias_G: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
    state_BH: Tensor | None = None,
    threads: int = 1,
) -> Tensor:
    """A GRU layer, the reset applied after the product as in cuDNN.

    Args:
        weight_GI: W, for the input.
        weight_GH: U, for the state.
        bias_G: added to W x.
        x_NI: packed frames: one time step after the other, utterances from long to short.
        batch_sizes: frames of each time step, never growing.
        state_BH: initial states, overwritten with the final ones; None for zeros.
        threads: of the native kernels.

    Returns:
        Hidden states (N, H), packed like the input.

    Raises:
        UserError: shapes that don't fit, tensors on a GPU, threads below 1.
    """
    check_layer(weight_GI, (weight_GH,), 3, bias_G, x_NI, batch_sizes, state_BH)
    check_native(threads, bias_G, x_NI, *([] if state_BH is None else [state_BH]))
    if not _are_native(weight_GI, weight_GH):
        return _torch_gru(weight_GI.product(x_NI) + bias_G, weight_GH, list(batch_sizes), state_BH)
    if state_BH is None:
        return _native_layer("bsr_gru", (weight_GI, weight_GH), bias_G, x_NI, batch_sizes, threads, None)
    state = state_BH.float().contiguous()
    matrices = (weight_GI, weight_GH)
    out_NH = _native_layer("bsr_gru", matrices, bias_G, x_NI, batch_sizes, threads, state.data_ptr())
    state_BH.copy_(state)
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
    """A bidirectional clipped-ReLU layer: h_t = clip(W x_t + b + U h_{t-1}), directions summed.

    Args:
        weight_HI: W, shared by both directions.
        weight_HH: U, forward in time.
        reverse_HH: U, backward in time.
        bias_H: added to W x.
        x_NI: packed frames.
        batch_sizes: frames of each time step, never growing.
        threads: of the native kernels.

    Returns:
        Hidden states (N, H), packed like the input.

    Raises:
        UserError: shapes that don't fit, tensors on a GPU, threads below 1.
    """
    check_layer(weight_HI, (weight_HH, reverse_HH), 1, bias_H, x_NI, batch_sizes)
    check_native(threads, bias_H, x_NI)
    if not _are_native(weight_HI, weight_HH, reverse_HH):
        return _torch_rnn(weight_HI.product(x_NI) + bias_H, weight_HH, reverse_HH, list(batch_sizes))
    return _native_layer("bsr_rnn", (weight_HI, weight_HH, reverse_HH), bias_H, x_NI, batch_sizes, threads)


def _native_layer(
    function: str,
    matrices: Sequence[BlockSparse],
    bias_O: Tensor,
    x_NI: Tensor,
    batch_sizes: Sequence[int],
    threads: int,
    *state: int | None,
) -> Tensor:
    """Call a layer of `bsr.cpp`; a GRU also takes a pointer to its state, or None."""
    x_NI, bias_O = x_NI.float().contiguous(), bias_O.float().contiguous()
    sizes = torch.tensor(batch_sizes, dtype=torch.int32)
    out_NH = torch.empty(len(x_NI), matrices[1].shape[1])
    handles = (matrix.handle for matrix in matrices)
    step_sizes = (len(sizes), sizes.data_ptr())
    call = getattr(native(), function)
    check_memory(
        call(*handles, bias_O.data_ptr(), threads, *step_sizes, x_NI.data_ptr(), *state, out_NH.data_ptr())
    )
    return out_NH


def _are_native(*matrices: BlockSparse) -> bool:
    """Whether all have native kernels, of one block, as native layers require."""
    return len({m.native_block for m in matrices}) == 1 and matrices[0].native_block is not None


class Shaped(Protocol):
    """A matrix on any device."""

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
    """Check that the shapes of a layer's arguments fit each other.

    Raises:
        UserError: they don't.
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


def last_frames(batch_sizes: Sequence[int]) -> Tensor:
    """Packed position of each utterance's last frame, (B,)."""
    sizes, utterance_B = torch.tensor(batch_sizes), torch.arange(batch_sizes[0])
    length_B = (sizes[:, None] > utterance_B).sum(0)
    return (sizes.cumsum(0) - sizes)[length_B - 1] + utterance_B


@torch.no_grad()
def _torch_gru(
    a_NG: Tensor, weight_GH: BlockSparse, batch_sizes: list[int], state_BH: Tensor | None
) -> Tensor:
    hidden_NH = gru_scan(a_NG, weight_GH.add_product, batch_sizes, state_BH)[0]
    if state_BH is not None:
        state_BH.copy_(hidden_NH[last_frames(batch_sizes)])
    return hidden_NH


@torch.no_grad()
def _torch_rnn(
    a_NH: Tensor, weight_HH: BlockSparse, reverse_HH: BlockSparse, batch_sizes: list[int]
) -> Tensor:
    directions = ((weight_HH, False), (reverse_HH, True))
    forward_NH, backward_NH = (
        scan(a_NH, matrix.add_product, batch_sizes, reverse, lambda h, _: h.clamp_(0.0, CLIP))
        for matrix, reverse in directions
    )
    return forward_NH + backward_NH
