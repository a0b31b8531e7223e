"""Training with a matrix whose zero blocks stay zero: products that skip them, forward and backward.

Weights change at every step, the blocks' positions don't. Positions are computed once; each step copies the
weights of these blocks into block-sparse matrices, one for the forward pass, its transpose for the backward pass.

Shapes: B vectors, N frames, O rows, I columns; R and C rows and columns of the grid, K blocks kept.
"""

from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSize, as_grid
from blocksparse_rnn.runtime.bsr import NATIVE_BLOCKS, BlockSparse
from blocksparse_rnn.runtime.library import native


def check_skipping(block: BlockSize) -> None:
    """Check that products can skip such blocks.

    Raises:
        UserError: there are no kernels for them.
    """
    if block[0] != block[1] or block[0] not in NATIVE_BLOCKS:
        raise UserError(
            f"skip_zeros=true: there are no kernels for block={block[0]}x{block[1]}; "
            f"choose {', '.join(map(str, NATIVE_BLOCKS))}, or skip_zeros=null"
        )


class KeptBlocks:
    """The kept blocks of a matrix, and products with a matrix that is zero elsewhere.

    Args:
        mask_RC: True where a block is kept.
        block: rows and columns of a block.
        threads: of the native kernels.

    Raises:
        UserError: there are no kernels for such blocks, or no native library on this machine.
    """

    def __init__(self, mask_RC: Tensor, block: BlockSize, threads: int) -> None:
        check_skipping(block)
        if native() is None:
            raise UserError(
                "skip_zeros=true: there is no native runtime here; install g++, or set skip_zeros=null"
            )
        self.block, self.threads = block, threads
        self.shape = (mask_RC.shape[0] * block[0], mask_RC.shape[1] * block[1])
        self._row_K, self._column_K = mask_RC.nonzero(as_tuple=True)
        self._pointer, self._pointer_back = _pointer(mask_RC.sum(1)), _pointer(mask_RC.sum(0))
        self._order_back_K = torch.argsort(self._column_K, stable=True)

    def matrix(self, weight_OI: Tensor) -> BlockSparse:
        """The block-sparse matrix of these weights."""
        return BlockSparse(self.shape, self._values(weight_OI), self._column_K.int(), self._pointer)

    def transposed(self, weight_OI: Tensor) -> BlockSparse:
        """Its transpose."""
        values_KRC = self._values(weight_OI)[self._order_back_K].transpose(1, 2).contiguous()
        columns_K = self._row_K[self._order_back_K].int()
        return BlockSparse((self.shape[1], self.shape[0]), values_KRC, columns_K, self._pointer_back)

    def product(self, weight_OI: Tensor) -> "SkippingProduct":
        """The product with these weights, as a recurrent core takes it (`models.recurrence.Product`)."""
        return SkippingProduct(self, weight_OI.detach())

    def project(self, x_NI: Tensor, weight_OI: Tensor) -> Tensor:
        """x W^T with gradients, as `torch.nn.functional.linear`."""
        return _Projection.apply(x_NI, weight_OI, self)

    def spread(self, values_KRC: Tensor) -> Tensor:
        """A matrix (O, I) that has these blocks, and zeros elsewhere."""
        matrix_OI = torch.zeros(self.shape)
        as_grid(matrix_OI, self.block).transpose(1, 2)[self._row_K, self._column_K] = values_KRC
        return matrix_OI

    def _values(self, weight_OI: Tensor) -> Tensor:
        weight_OI = weight_OI.detach().float().contiguous()
        return as_grid(weight_OI, self.block).transpose(1, 2)[self._row_K, self._column_K]


class SkippingProduct:
    """Multiplies with the weights of one step; the transpose is made at the first backward product."""

    def __init__(self, kept: KeptBlocks, weight_OI: Tensor) -> None:
        self._kept, self._weight_OI = kept, weight_OI
        self._matrix = kept.matrix(weight_OI)
        self._transposed: BlockSparse | None = None

    def forward(self, x_BI: Tensor, addend: Tensor | None, out: Tensor) -> None:
        self._matrix.add_product(x_BI, addend, out, self._kept.threads)

    def backward(self, x_BO: Tensor, addend: Tensor | None, out: Tensor) -> None:
        if self._transposed is None:
            self._transposed = self._kept.transposed(self._weight_OI)
        self._transposed.add_product(x_BO, addend, out, self._kept.threads)

    def gradient(self, grad_NO: Tensor, x_NI: Tensor) -> Tensor:
        """The gradient of kept weights; 0 for the others, which need none."""
        return self._kept.spread(self._matrix.gradient(grad_NO, x_NI, self._kept.threads)).to(grad_NO.dtype)


class _Projection(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, weight_OI: Tensor, kept: KeptBlocks) -> Tensor:
        ctx.product = kept.product(weight_OI)
        ctx.save_for_backward(x_NI)
        y_NO = x_NI.new_empty(len(x_NI), kept.shape[0])
        ctx.product.forward(x_NI, None, y_NO)
        return y_NO

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        [x_NI] = ctx.saved_tensors
        grad_x_NI = grad_weight_OI = None
        if ctx.needs_input_grad[0]:
            grad_x_NI = torch.empty_like(x_NI)
            ctx.product.backward(grad_NO, None, grad_x_NI)
        if ctx.needs_input_grad[1]:
            grad_weight_OI = ctx.product.gradient(grad_NO, x_NI)
        return grad_x_NI, grad_weight_OI, None


def _pointer(counts: Tensor) -> Tensor:
    """First block of each row of blocks, and the end of the last row."""
    return functional.pad(counts.cumsum(0), (1, 0)).int()
