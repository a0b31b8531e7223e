"""Batch norm over the frames of the global batch, over any number of ranks.

torch's SyncBatchNorm does not run on a CPU, and counts frames of a rank whose share of the batch is a stand-in.

Shapes: N frames, C channels, F frequencies, W ranks.
"""

from typing import Any

import torch
from torch import Tensor, nn

from blocksparse_rnn import distributed


class BatchNorm(nn.BatchNorm1d):
    """nn.BatchNorm1d over packed frames (N, C) or (N, C, F); in training its statistics are those of all ranks."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or distributed.world() == 1:
            return super().forward(input)
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        statistics = (self.running_mean, self.running_var, self.momentum)
        return _OverRanks.apply(input, self.weight, self.bias, self.eps, *statistics)


class _OverRanks(torch.autograd.Function):
    """Mean and variance over all ranks; their gradients are summed over all ranks too."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight_C: Tensor,
        bias_C: Tensor,
        eps: float,
        running_mean_C: Tensor,
        running_var_C: Tensor,
        momentum: float,
    ) -> Tensor:
        dims = [dim for dim in range(x.ndim) if dim != 1]
        counts = distributed.batch_counts()
        frames = x.numel() // x.shape[1] if counts else 0
        var_C, mean_C = torch.var_mean(_full(x), dims, correction=0)
        rows_W = distributed.gather(torch.cat([mean_C, var_C, mean_C.new_tensor([frames])]))
        mean_WC, var_WC = rows_W[:, :-1].chunk(2, dim=1)
        total = rows_W[:, -1].sum()
        share_W1 = (rows_W[:, -1] / total).unsqueeze(1)
        mean_C = (share_W1 * mean_WC).sum(0)
        # The mean of the ranks' variances lacks the variance of their means (Chan et al., 1979).
        var_C = (share_W1 * (var_WC + (mean_WC - mean_C).square())).sum(0)
        running_mean_C.lerp_(mean_C, momentum)
        running_var_C.lerp_(var_C * total / (total - 1), momentum)
        scale_C = (var_C + eps).rsqrt()
        ctx.save_for_backward(x, weight_C, mean_C, scale_C, total)
        ctx.dims, ctx.counts = dims, counts
        normal = (_full(x) - _wide(mean_C, x)) * _wide(scale_C, x)
        return (normal * _wide(weight_C, x) + _wide(bias_C, x)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight_C, mean_C, scale_C, total = ctx.saved_tensors
        grad = _full(grad)
        normal = (_full(x) - _wide(mean_C, x)) * _wide(scale_C, x)
        grad_bias_C, grad_weight_C = grad.sum(ctx.dims), (grad * normal).sum(ctx.dims)
        # A stand-in's loss is not counted, so its sums are zero; it takes part because the others wait for it.
        through_C, along_C = (distributed.sum_all(torch.cat([grad_bias_C, grad_weight_C])) / total).chunk(2)
        if ctx.counts:
            grad = grad - _wide(through_C, x) - normal * _wide(along_C, x)
        grad_x = (grad * _wide(weight_C * scale_C, x)).to(x.dtype)
        return grad_x, grad_weight_C, grad_bias_C, None, None, None, None


def _wide(value_C: Tensor, like: Tensor) -> Tensor:
    """A value per channel, shaped to broadcast with (N, C) or (N, C, F)."""
    return value_C.view(1, -1, *[1] * (like.ndim - 2))


def _full(x: Tensor) -> Tensor:
    """At least float32: bf16 is too coarse for sums over thousands of frames."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
