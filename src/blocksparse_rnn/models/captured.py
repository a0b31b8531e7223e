"""The recurrent cores on a GPU: padded sequences, both directions at once, all steps captured as a CUDA graph.

The steps are those of `models.recurrence`. A CUDA graph has fixed shapes, so sequences are padded: utterances
side by side, lengths rounded up to a bucket. Each direction lies in its own order of time, so that padding comes
last and its states are never used. Layers of one width share a graph; their weights are copied into it.
On a CPU nothing is captured and the steps simply run; tests compare them with `models.recurrence` there.

Shapes: N packed frames, T steps, D directions, B utterances, H hidden units, G = 3H.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as functional
from torch import Tensor

from blocksparse_rnn.models import recurrence
from blocksparse_rnn.models.cuda_graphs import CapturedGraphs, bucket, capture

_GRAPHS: "CapturedGraphs[_Captured]" = CapturedGraphs(8)
"""Of the whole process. Each holds its inputs and outputs, so memory bounds their number."""


class Order(NamedTuple):
    """Where packed frames lie in the padded layout of a graph, and back."""

    steps: int
    utterances: int
    padded_TDB: Tensor
    """Frame at each place, or N for padding."""
    packed_DN: Tensor
    """Place of each frame."""


@functools.lru_cache(maxsize=4)
def order_of(batch_sizes: tuple[int, ...], directions: int, device: torch.device) -> Order:
    """The layout of sequences with these batch sizes; the second direction is reversed in time."""
    sizes_T = torch.tensor(batch_sizes)
    starts_T = sizes_T.cumsum(0) - sizes_T
    steps, utterances, frames = bucket(len(sizes_T)), int(sizes_T[0]), int(sizes_T.sum())
    length_B = (sizes_T[:, None] > torch.arange(utterances)).sum(0)
    step_T1, utterance_B = torch.arange(steps)[:, None], torch.arange(utterances)
    times = [step_T1.expand(-1, utterances), length_B - 1 - step_T1][:directions]
    time_TDB = torch.stack(times, dim=1)
    frame_TDB = starts_T[time_TDB.clamp(0, len(sizes_T) - 1)] + utterance_B
    valid_TDB = (step_T1 < length_B)[:, None].expand_as(time_TDB)
    padded_TDB = frame_TDB.masked_fill(~valid_TDB, frames)
    place_TDB = torch.arange(padded_TDB.numel()).view_as(padded_TDB)
    packed_DN = torch.empty(directions, frames, dtype=torch.long)
    for d in range(directions):
        packed_DN[d, padded_TDB[:, d][valid_TDB[:, d]]] = place_TDB[:, d][valid_TDB[:, d]]
    return Order(steps, utterances, padded_TDB.to(device), packed_DN.to(device))


def rnn_core(a_NH: Tensor, weight_HH: Tensor, reverse_HH: Tensor, batch_sizes: list[int]) -> Tensor:
    """`recurrence.rnn_both`; on a GPU with padded sequences and a CUDA graph."""
    core = padded_rnn if a_NH.is_cuda else recurrence.rnn_both
    return core(a_NH, weight_HH, reverse_HH, batch_sizes)


def gru_core(a_NG: Tensor, weight_GH: Tensor, batch_sizes: list[int]) -> Tensor:
    """`recurrence.gru_forward`; on a GPU with padded sequences and a CUDA graph."""
    core = padded_gru if a_NG.is_cuda else recurrence.gru_forward
    return core(a_NG, weight_GH, batch_sizes)


def padded_rnn(a_NH: Tensor, weight_HH: Tensor, reverse_HH: Tensor, batch_sizes: list[int]) -> Tensor:
    """`recurrence.rnn_both` over padded sequences."""
    order = order_of(tuple(batch_sizes), 2, a_NH.device)
    hidden_TDBH = _RNN.apply(_pad(a_NH, order), torch.stack((weight_HH, reverse_HH)))
    return _pack(hidden_TDBH, order).sum(0)


def padded_gru(a_NG: Tensor, weight_GH: Tensor, batch_sizes: list[int]) -> Tensor:
    """`recurrence.gru_forward` over padded sequences."""
    order = order_of(tuple(batch_sizes), 1, a_NG.device)
    a_MG = _pad(a_NG, order).flatten(0, 2)
    hidden_MH = _GRU.apply(a_MG, weight_GH, [order.utterances] * order.steps)
    return _pack(hidden_MH.view(*order.padded_TDB.shape, -1), order)[0]


def _pad(x_N: Tensor, order: Order) -> Tensor:
    """Packed frames (N, ...) -> (T, D, B, ...), padding zero."""
    return _Layout.apply(x_N, order, True)


def _pack(x_TDB: Tensor, order: Order) -> Tensor:
    """(T, D, B, ...) -> each direction's frames (D, N, ...)."""
    return _Layout.apply(x_TDB, order, False)


class _Layout(torch.autograd.Function):
    """Packed to padded or back: a copy of rows in either direction, and so is the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Order, pad: bool) -> Tensor:
        ctx.order, ctx.pad = order, pad
        if pad:
            return functional.pad(x, (0, 0, 0, 1))[order.padded_TDB]
        return x.flatten(0, 2)[order.packed_DN]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        order = ctx.order
        if ctx.pad:
            return grad.flatten(0, 2)[order.packed_DN].sum(0), None, None
        # Frame n of direction d is row d * (N + 1) + n; each direction ends with a row of zeros.
        directions, frames = order.packed_DN.shape
        rows = functional.pad(grad, (0, 0, 0, 1)).flatten(0, 1)
        first_D1 = torch.arange(directions, device=grad.device)[:, None] * (frames + 1)
        return rows[order.padded_TDB + first_D1], None, None


class _Stacked:
    """Multiplies the states of all directions at once, (D, B, H) times (D, H, H)."""

    def __init__(self, weight_DHH: Tensor) -> None:
        self.weight_DHH = weight_DHH

    def forward(self, x_DBH: Tensor, addend: Tensor, out: Tensor) -> None:
        torch.baddbmm(addend, x_DBH, self.weight_DHH.mT, out=out)

    def backward(self, x_DBH: Tensor, addend: Tensor, out: Tensor) -> None:
        torch.baddbmm(addend, x_DBH, self.weight_DHH, out=out)


class _RNN(torch.autograd.Function):
    """Clipped-ReLU recurrence of all directions, each in its own order of time."""

    @staticmethod
    def forward(ctx: Any, a_TDBH: Tensor, weight_DHH: Tensor) -> Tensor:
        hidden_TDBH = _run(_rnn_scan, a_TDBH, weight_DHH).clone()
        ctx.save_for_backward(hidden_TDBH, weight_DHH)
        return hidden_TDBH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_TDBH: Tensor) -> tuple[Tensor, Tensor | None]:
        hidden_TDBH, weight_DHH = ctx.saved_tensors
        slope_TDBH = ((hidden_TDBH > 0) & (hidden_TDBH < recurrence.CLIP)).to(grad_TDBH.dtype)
        grad_TDBH = _run(_rnn_scan_back, grad_TDBH, slope_TDBH, weight_DHH).clone()
        grad_weight_DHH = None
        if ctx.needs_input_grad[1]:
            # The first step's previous state is zero, and so is the gradient of padding.
            grads, states = (x.transpose(0, 1).flatten(1, 2) for x in (grad_TDBH[1:], hidden_TDBH[:-1]))
            grad_weight_DHH = grads.mT @ states
        return grad_TDBH, grad_weight_DHH


def _rnn_scan(a_TDBH: Tensor, weight_DHH: Tensor) -> Tensor:
    steps, directions = a_TDBH.shape[:2]
    multiply, sizes = _Stacked(weight_DHH).forward, [directions] * steps
    hidden = recurrence.scan(
        a_TDBH.flatten(0, 1), multiply, sizes, False, lambda h, t: h.clamp_(0.0, recurrence.CLIP)
    )
    return hidden.view_as(a_TDBH)


def _rnn_scan_back(grad_TDBH: Tensor, slope_TDBH: Tensor, weight_DHH: Tensor) -> Tensor:
    steps, directions = grad_TDBH.shape[:2]
    multiply, sizes = _Stacked(weight_DHH).backward, [directions] * steps
    grad = recurrence.scan(grad_TDBH.flatten(0, 1), multiply, sizes, True, lambda d, t: d.mul_(slope_TDBH[t]))
    return grad.view_as(grad_TDBH)


class _GRU(torch.autograd.Function):
    """GRU recurrence over padded frames, M of them, step by step."""

    @staticmethod
    def forward(ctx: Any, a_MG: Tensor, weight_GH: Tensor, batch_sizes: list[int]) -> Tensor:
        def steps(a_MG: Tensor, weight_GH: Tensor) -> tuple[Tensor, ...]:
            return recurrence.gru_scan(a_MG, recurrence.Dense(weight_GH).forward, batch_sizes)

        width = weight_GH.shape[1]
        *kept, recurrent_MG = _run(steps, a_MG, weight_GH, key=("gru", batch_sizes[0]))
        kept = [x.clone() for x in (*kept, recurrent_MG[:, 2 * width :])]
        ctx.save_for_backward(weight_GH, *kept)
        ctx.batch_sizes = batch_sizes
        return kept[0]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_MH: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weight_GH, hidden_MH, gates_MR, new_MH, recurrent_new_MH = ctx.saved_tensors
        batch_sizes, utterances = ctx.batch_sizes, ctx.batch_sizes[0]

        def steps(grad: Tensor, update: Tensor, factor: Tensor, weight_GH: Tensor) -> tuple[Tensor, Tensor]:
            return recurrence.gru_scan_back(grad, update, factor, recurrence.Dense(weight_GH), batch_sizes)

        previous_MH = functional.pad(hidden_MH[:-utterances], (0, 0, utterances, 0))
        to_new_MH, factor_MGH = recurrence.gru_factors(previous_MH, gates_MR, new_MH, recurrent_new_MH)
        update_MH = gates_MR[:, new_MH.shape[1] :]
        inputs = (grad_MH, update_MH, factor_MGH, weight_GH)
        grad_hidden_MH, grad_recurrent_MG = _run(steps, *inputs, key=("gru back", utterances))
        grad_weight_GH = grad_recurrent_MG.t() @ previous_MH if ctx.needs_input_grad[1] else None
        grad_a_MG = recurrence.gru_input_gradient(grad_hidden_MH, grad_recurrent_MG.clone(), to_new_MH)
        return grad_a_MG, grad_weight_GH, None


class _Captured:
    """A function of tensors, captured with input and output buffers of its own."""

    def __init__(self, function: Callable[..., Any], inputs: tuple[Tensor, ...]) -> None:
        self.inputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
        self.outputs: Any = None

        def work() -> None:
            self.outputs = function(*self.inputs)

        self._replay = capture(work, inputs[0].device)

    def __call__(self, *inputs: Tensor) -> Any:
        for own, given in zip(self.inputs, inputs, strict=True):
            own.copy_(given)
        self._replay()
        return self.outputs


def _run(function: Callable[..., Any], *inputs: Tensor, key: Any = None) -> Any:
    """Run a function of these tensors through its graph, captured at the first call.

    A graph belongs to a key (by default the function) and the inputs' shapes, types and device. The next call
    overwrites the outputs.
    """
    shapes = tuple((tuple(x.shape), x.dtype, x.device) for x in inputs)
    captured = _GRAPHS.get((key or function, shapes), lambda: _Captured(function, inputs))
    return captured(*inputs)
