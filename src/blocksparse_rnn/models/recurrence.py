"""The two recurrent cores: what happens over time once the input projection is done.

Both work on packed sequences (`torch.nn.utils.rnn.PackedSequence`): frames of all utterances, time
step by time step, utterances sorted from long to short. Step t holds batch_sizes[t] rows, so no
padding is ever computed. Each is an autograd function of its own: the forward pass writes into one
buffer, the backward pass runs the same kind of loop once more, and the gradient of the recurrent
matrix is one product over all frames instead of one a step.

Shapes: N packed frames, H hidden units, T time steps.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

CLIP = 20.0
"""Upper limit of the clipped rectifier min(max(x, 0), 20) (Hannun et al., "Deep Speech", 2014)."""

Core = Callable[[Tensor, Tensor, list[int]], Tensor]
"""A recurrent core: (input part a, recurrent matrix, batch_sizes) -> hidden states of every frame."""


def rnn_forward(a_NH: Tensor, weight_hh_HH: Tensor, batch_sizes: list[int]) -> Tensor:
    """h_t = clip(a_t + U h_{t-1}) from the first frame to the last, h before the first being 0.

    Args:
        a_NH: input part of every frame, packed.
        weight_hh_HH: recurrent matrix U.
        batch_sizes: rows of each time step, never growing.

    Returns:
        Hidden states, packed like the input (N, H).
    """
    return _ClippedRNN.apply(a_NH, weight_hh_HH, batch_sizes, False)


def rnn_backward(a_NH: Tensor, weight_hh_HH: Tensor, batch_sizes: list[int]) -> Tensor:
    """The same from each utterance's last frame to its first: h_t = clip(a_t + U h_{t+1})."""
    return _ClippedRNN.apply(a_NH, weight_hh_HH, batch_sizes, True)


def gru_forward(a_NG: Tensor, weight_hh_GH: Tensor, batch_sizes: list[int]) -> Tensor:
    """Gated recurrent unit with the reset applied after the product, as cuDNN does it.

    r = sigmoid(a_r + U_r h), z = sigmoid(a_z + U_z h), n = tanh(a_n + r * (U_n h)),
    h' = (1 - z) * n + z * h.

    Args:
        a_NG: input part of the gates r, z, n side by side (G = 3H), packed.
        weight_hh_GH: recurrent matrices of the three gates, one above the other.
        batch_sizes: rows of each time step, never growing.

    Returns:
        Hidden states (N, H), packed like the input.
    """
    return _GRU.apply(a_NG, weight_hh_GH, batch_sizes)


def _scan(
    input_NH: Tensor,
    matrix_HH: Tensor,
    batch_sizes: list[int],
    reverse: bool,
    activate: Callable[[Tensor, int], object],
) -> Tensor:
    """out_t = activate(input_t + out_{t-1} @ matrix), in the order of time or against it."""
    out_NH = torch.empty_like(input_NH)
    inputs, outs = input_NH.split(batch_sizes), out_NH.split(batch_sizes)
    steps = range(len(batch_sizes))
    previous, alive = input_NH[:0], 0
    for t in reversed(steps) if reverse else steps:
        out, rows = outs[t], batch_sizes[t]
        # Against time utterances join on the way: their first row has no state to add.
        old = min(rows, alive)
        if old == rows:
            state = previous if old == alive else previous[:old]
            torch.addmm(inputs[t], state, matrix_HH, out=out)
        else:
            out.copy_(inputs[t])
            if old:
                out[:old].addmm_(previous, matrix_HH)
        activate(out, t)
        previous, alive = out, rows
    return out_NH


def _previous_states(hidden_NH: Tensor, batch_sizes: list[int], reverse: bool) -> Tensor:
    """The state that entered each frame: zeros where an utterance begins."""
    states = hidden_NH.split(batch_sizes)
    start = hidden_NH.new_zeros(batch_sizes[0], hidden_NH.shape[1])
    pieces: list[Tensor] = []
    for t, rows in enumerate(batch_sizes):
        if reverse:
            old = batch_sizes[t + 1] if t + 1 < len(batch_sizes) else 0
            pieces += [states[t + 1][:old]] if old else []
            pieces += [start[: rows - old]] if rows > old else []
        else:
            pieces.append(states[t - 1][:rows] if t else start)
    return torch.cat(pieces)


class _ClippedRNN(torch.autograd.Function):
    """Clipped-rectifier recurrence; keeps only the hidden states for the backward pass."""

    @staticmethod
    def forward(ctx: Any, a_NH: Tensor, weight_HH: Tensor, batch_sizes: list[int], reverse: bool) -> Tensor:
        hidden_NH = _scan(a_NH, weight_HH.t(), batch_sizes, reverse, lambda h, t: h.clamp_(0.0, CLIP))
        ctx.save_for_backward(weight_HH, hidden_NH)
        ctx.batch_sizes, ctx.reverse = batch_sizes, reverse
        return hidden_NH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        weight_HH, hidden_NH = ctx.saved_tensors
        batch_sizes, reverse = ctx.batch_sizes, ctx.reverse
        slope_NH = ((hidden_NH > 0) & (hidden_NH < CLIP)).to(grad_NH.dtype)
        slopes = slope_NH.split(batch_sizes)
        grad_a_NH = _scan(grad_NH, weight_HH, batch_sizes, not reverse, lambda d, t: d.mul_(slopes[t]))
        grad_weight_HH = None
        if ctx.needs_input_grad[1]:
            grad_weight_HH = grad_a_NH.t() @ _previous_states(hidden_NH, batch_sizes, reverse)
        return grad_a_NH, grad_weight_HH, None, None


class _GRU(torch.autograd.Function):
    """GRU recurrence; everything that doesn't depend on the step before is done for all frames at once."""

    @staticmethod
    def forward(ctx: Any, a_NG: Tensor, weight_GH: Tensor, batch_sizes: list[int]) -> Tensor:
        width = weight_GH.shape[1]
        hidden_NH = a_NG.new_empty(len(a_NG), width)
        recurrent_NG = torch.empty_like(a_NG)
        gates_NR = a_NG.new_empty(len(a_NG), 2 * width)
        new_NH = torch.empty_like(hidden_NH)
        weight_HG = weight_GH.t()
        state = a_NG.new_zeros(batch_sizes[0], width)
        for a, u, rz, n, h in _steps(batch_sizes, a_NG, recurrent_NG, gates_NR, new_NH, hidden_NH):
            state = state[: len(h)]
            torch.mm(state, weight_HG, out=u)
            torch.add(a[:, : 2 * width], u[:, : 2 * width], out=rz)
            rz.sigmoid_()
            torch.addcmul(a[:, 2 * width :], rz[:, :width], u[:, 2 * width :], out=n)
            n.tanh_()
            torch.lerp(n, state, rz[:, width:], out=h)
            state = h
        ctx.save_for_backward(weight_GH, hidden_NH, gates_NR, new_NH, recurrent_NG[:, 2 * width :])
        ctx.batch_sizes = batch_sizes
        return hidden_NH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, Tensor | None, None]:
        weight_GH, hidden_NH, gates_NR, new_NH, recurrent_new_NH = ctx.saved_tensors
        width = weight_GH.shape[1]
        reset_NH, update_NH = gates_NR[:, :width], gates_NR[:, width:]
        previous_NH = _previous_states(hidden_NH, ctx.batch_sizes, reverse=False)
        # The gradients of the gates are the state's gradient times factors that need no recurrence.
        to_new_NH = (1 - update_NH) * (1 - new_NH * new_NH)
        factor_NGH = torch.stack(
            (
                to_new_NH * recurrent_new_NH * reset_NH * (1 - reset_NH),
                (previous_NH - new_NH) * update_NH * (1 - update_NH),
                to_new_NH * reset_NH,
            ),
            dim=1,
        )
        grad_hidden_NH = torch.empty_like(hidden_NH)
        grad_recurrent_NGH = torch.empty_like(factor_NGH)
        carry = grad_NH.new_empty(0, width)
        columns = (grad_NH, update_NH, factor_NGH, grad_hidden_NH, grad_recurrent_NGH)
        for grad, update, factor, dh, du in reversed(list(_steps(ctx.batch_sizes, *columns))):
            if len(carry) == len(dh):
                torch.add(grad, carry, out=dh)
            else:
                dh.copy_(grad)
                dh[: len(carry)] += carry
            torch.mul(dh.unsqueeze(1), factor, out=du)
            carry = torch.addmm(dh * update, du.flatten(1), weight_GH)
        grad_recurrent_NG = grad_recurrent_NGH.flatten(1)
        grad_weight_GH = grad_recurrent_NG.t() @ previous_NH if ctx.needs_input_grad[1] else None
        # a_n differs from U_n h only by the reset gate, so the same memory serves both gradients.
        torch.mul(grad_hidden_NH, to_new_NH, out=grad_recurrent_NG[:, 2 * width :])
        return grad_recurrent_NG, grad_weight_GH, None


def _steps(batch_sizes: list[int], *packed: Tensor) -> Sequence[tuple[Tensor, ...]]:
    """Rows of every time step, of several packed tensors side by side."""
    return list(zip(*(p.split(batch_sizes) for p in packed), strict=True))
