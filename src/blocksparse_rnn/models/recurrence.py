"""The two recurrent cores: the recurrence over time, after the input projection.

Both work on packed sequences (`torch.nn.utils.rnn.PackedSequence`): frames of all utterances, time
step by time step, utterances sorted from long to short. Step t holds batch_sizes[t] rows, so no
padding is ever computed. Each is an autograd function of its own: the forward pass writes into one
buffer, the backward pass loops once over the steps in reverse, and the gradient of the recurrent
matrix is one product over all frames instead of one per step.

Shapes: N packed frames, H hidden units, T time steps.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

CLIP = 20.0
"""Upper limit of the clipped ReLU min(max(x, 0), 20) (Hannun et al., "Deep Speech", 2014)."""


class Product(Protocol):
    """Multiplies with the recurrent matrix U of one training step; `Dense` is torch's product."""

    def forward(self, x_BH: Tensor, addend: Tensor | None, out: Tensor) -> None:
        """out = addend + x U^T; the addend may be None, or `out` itself."""

    def backward(self, x_BO: Tensor, addend: Tensor, out: Tensor) -> None:
        """out = addend + x U; the addend may be `out` itself."""

    def gradient(self, grad_NO: Tensor, x_NH: Tensor) -> Tensor:
        """The gradient of U: grad^T x."""


class Dense:
    """The product with a dense matrix."""

    def __init__(self, weight_OH: Tensor) -> None:
        self.weight_OH = weight_OH

    def forward(self, x_BH: Tensor, addend: Tensor | None, out: Tensor) -> None:
        if addend is None:
            torch.mm(x_BH, self.weight_OH.t(), out=out)
        else:
            torch.addmm(addend, x_BH, self.weight_OH.t(), out=out)

    def backward(self, x_BO: Tensor, addend: Tensor, out: Tensor) -> None:
        torch.addmm(addend, x_BO, self.weight_OH, out=out)

    def gradient(self, grad_NO: Tensor, x_NH: Tensor) -> Tensor:
        return grad_NO.t() @ x_NH


MakeProduct = Callable[[Tensor], Product]
"""Recurrent matrix -> how to multiply with it."""


def rnn_both(
    a_NH: Tensor,
    weight_HH: Tensor,
    reverse_HH: Tensor,
    batch_sizes: list[int],
    products: tuple[MakeProduct, MakeProduct] = (Dense, Dense),
) -> Tensor:
    """The sum of `rnn` forward in time with one matrix and backward in time with the other."""
    forward, backward = products
    hidden_NH = rnn(a_NH, weight_HH, batch_sizes, False, forward)
    return hidden_NH + rnn(a_NH, reverse_HH, batch_sizes, True, backward)


def rnn(
    a_NH: Tensor, weight_HH: Tensor, batch_sizes: list[int], reverse: bool, product: MakeProduct = Dense
) -> Tensor:
    """h_t = clip(a_t + U h_{t-1}), or with h_{t+1} if `reverse`; each utterance's initial h is 0.

    Args:
        a_NH: input part of every frame, packed.
        weight_HH: recurrent matrix U.
        batch_sizes: rows of each time step, never growing.
        reverse: from each utterance's last frame to its first.
        product: how to multiply with U.

    Returns:
        Hidden states, packed like the input (N, H).
    """
    return _ClippedRNN.apply(a_NH, weight_HH, batch_sizes, reverse, product)


def gru_forward(
    a_NG: Tensor, weight_hh_GH: Tensor, batch_sizes: list[int], product: MakeProduct = Dense
) -> Tensor:
    """Gated recurrent unit with the reset applied after the product, as cuDNN does it.

    r = sigmoid(a_r + U_r h), z = sigmoid(a_z + U_z h), n = tanh(a_n + r * (U_n h)),
    h' = (1 - z) * n + z * h.

    Args:
        a_NG: input part of the gates r, z, n side by side (G = 3H), packed.
        weight_hh_GH: recurrent matrices of the three gates, one above the other.
        batch_sizes: rows of each time step, never growing.
        product: how to multiply with the recurrent matrix.

    Returns:
        Hidden states (N, H), packed like the input.
    """
    return _GRU.apply(a_NG, weight_hh_GH, batch_sizes, product)


def scan(
    input_NH: Tensor,
    multiply: Callable[[Tensor, Tensor, Tensor], None],
    batch_sizes: list[int],
    reverse: bool,
    activate: Callable[[Tensor, int], object],
) -> Tensor:
    """out_t = activate(input_t + out_{t-1} times a matrix), forward or backward in time."""
    out_NH = torch.empty_like(input_NH)
    inputs, outs = input_NH.split(batch_sizes), out_NH.split(batch_sizes)
    steps = range(len(batch_sizes))
    previous, alive = input_NH[:0], 0
    for t in reversed(steps) if reverse else steps:
        out, rows = outs[t], batch_sizes[t]
        # Backward in time, utterances join on the way: their first row has no state to add.
        old = min(rows, alive)
        if old == rows:
            state = previous if old == alive else previous[:old]
            multiply(state, inputs[t], out)
        else:
            out.copy_(inputs[t])
            if old:
                multiply(previous, out[:old], out[:old])
        activate(out, t)
        previous, alive = out, rows
    return out_NH


def _previous_states(hidden_NH: Tensor, batch_sizes: list[int], reverse: bool) -> Tensor:
    """The previous state of each frame: zeros where an utterance begins."""
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
    """Clipped-ReLU recurrence; keeps only the hidden states for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        a_NH: Tensor,
        weight_HH: Tensor,
        batch_sizes: list[int],
        reverse: bool,
        make_product: MakeProduct,
    ) -> Tensor:
        product = make_product(weight_HH)
        hidden_NH = scan(a_NH, product.forward, batch_sizes, reverse, lambda h, t: h.clamp_(0.0, CLIP))
        ctx.save_for_backward(hidden_NH)
        ctx.product, ctx.batch_sizes, ctx.reverse = product, batch_sizes, reverse
        return hidden_NH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
        [hidden_NH] = ctx.saved_tensors
        batch_sizes, reverse = ctx.batch_sizes, ctx.reverse
        slope_NH = ((hidden_NH > 0) & (hidden_NH < CLIP)).to(grad_NH.dtype)
        slopes = slope_NH.split(batch_sizes)
        multiply = ctx.product.backward
        grad_a_NH = scan(grad_NH, multiply, batch_sizes, not reverse, lambda d, t: d.mul_(slopes[t]))
        grad_weight_HH = None
        if ctx.needs_input_grad[1]:
            previous_NH = _previous_states(hidden_NH, batch_sizes, reverse)
            grad_weight_HH = ctx.product.gradient(grad_a_NH, previous_NH)
        return grad_a_NH, grad_weight_HH, None, None, None


class _GRU(torch.autograd.Function):
    """GRU recurrence; what doesn't depend on the previous step is computed for all frames at once."""

    @staticmethod
    def forward(
        ctx: Any, a_NG: Tensor, weight_GH: Tensor, batch_sizes: list[int], make_product: MakeProduct
    ) -> Tensor:
        product = make_product(weight_GH)
        hidden_NH, gates_NR, new_NH, recurrent_NG = gru_scan(a_NG, product.forward, batch_sizes)
        ctx.save_for_backward(hidden_NH, gates_NR, new_NH, recurrent_NG[:, 2 * new_NH.shape[1] :])
        ctx.product, ctx.batch_sizes = product, batch_sizes
        return hidden_NH

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NH: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        hidden_NH, gates_NR, new_NH, recurrent_new_NH = ctx.saved_tensors
        previous_NH = _previous_states(hidden_NH, ctx.batch_sizes, reverse=False)
        to_new_NH, factor_NGH = gru_factors(previous_NH, gates_NR, new_NH, recurrent_new_NH)
        update_NH = gates_NR[:, new_NH.shape[1] :]
        grad_hidden_NH, grad_recurrent_NG = gru_scan_back(
            grad_NH, update_NH, factor_NGH, ctx.product, ctx.batch_sizes
        )
        grad_weight_GH = None
        if ctx.needs_input_grad[1]:
            grad_weight_GH = ctx.product.gradient(grad_recurrent_NG, previous_NH)
        return gru_input_gradient(grad_hidden_NH, grad_recurrent_NG, to_new_NH), grad_weight_GH, None, None


def gru_scan(
    a_NG: Tensor,
    multiply: Callable[[Tensor, Tensor | None, Tensor], None],
    batch_sizes: list[int],
    state_BH: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The steps of a GRU from a state (default: zeros).

    Returns:
        Hidden states (N, H), gates r and z (N, 2H), n (N, H), and U h (N, 3H).
    """
    width = a_NG.shape[1] // 3
    hidden_NH = a_NG.new_empty(len(a_NG), width)
    recurrent_NG = torch.empty_like(a_NG)
    gates_NR = a_NG.new_empty(len(a_NG), 2 * width)
    new_NH = torch.empty_like(hidden_NH)
    state = a_NG.new_zeros(batch_sizes[0], width) if state_BH is None else state_BH
    for a, u, rz, n, h in _steps(batch_sizes, a_NG, recurrent_NG, gates_NR, new_NH, hidden_NH):
        state = state[: len(h)]
        multiply(state, None, u)
        torch.add(a[:, : 2 * width], u[:, : 2 * width], out=rz)
        rz.sigmoid_()
        torch.addcmul(a[:, 2 * width :], rz[:, :width], u[:, 2 * width :], out=n)
        n.tanh_()
        torch.lerp(n, state, rz[:, width:], out=h)
        state = h
    return hidden_NH, gates_NR, new_NH, recurrent_NG


def gru_factors(
    previous_NH: Tensor, gates_NR: Tensor, new_NH: Tensor, recurrent_new_NH: Tensor
) -> tuple[Tensor, Tensor]:
    """Factors from the state's gradient to that of a_n (N, H), and to that of U h (N, 3, H), of all frames at once."""
    reset_NH, update_NH = gates_NR.chunk(2, dim=1)
    to_new_NH = (1 - update_NH) * (1 - new_NH * new_NH)
    factor_NGH = torch.stack(
        (
            to_new_NH * recurrent_new_NH * reset_NH * (1 - reset_NH),
            (previous_NH - new_NH) * update_NH * (1 - update_NH),
            to_new_NH * reset_NH,
        ),
        dim=1,
    )
    return to_new_NH, factor_NGH


def gru_scan_back(
    grad_NH: Tensor, update_NH: Tensor, factor_NGH: Tensor, product: Product, batch_sizes: list[int]
) -> tuple[Tensor, Tensor]:
    """The steps of the backward pass: gradients of the hidden states (N, H) and of U h (N, 3H)."""
    grad_hidden_NH = torch.empty_like(grad_NH)
    grad_recurrent_NGH = torch.empty_like(factor_NGH)
    carry = grad_NH.new_empty(0, grad_NH.shape[1])
    columns = (grad_NH, update_NH, factor_NGH, grad_hidden_NH, grad_recurrent_NGH)
    for grad, update, factor, dh, du in reversed(list(_steps(batch_sizes, *columns))):
        if len(carry) == len(dh):
            torch.add(grad, carry, out=dh)
        else:
            dh.copy_(grad)
            dh[: len(carry)] += carry
        torch.mul(dh.unsqueeze(1), factor, out=du)
        carry = dh * update
        product.backward(du.flatten(1), carry, out=carry)
    return grad_hidden_NH, grad_recurrent_NGH.flatten(1)


def gru_input_gradient(grad_hidden_NH: Tensor, grad_recurrent_NG: Tensor, to_new_NH: Tensor) -> Tensor:
    """The gradient of a, written over that of U h, from which it differs in a_n only."""
    torch.mul(grad_hidden_NH, to_new_NH, out=grad_recurrent_NG[:, 2 * to_new_NH.shape[1] :])
    return grad_recurrent_NG


def _steps(batch_sizes: list[int], *packed: Tensor) -> Sequence[tuple[Tensor, ...]]:
    """Rows of every time step, of several packed tensors side by side."""
    return list(zip(*(p.split(batch_sizes) for p in packed), strict=True))
