"""Training with a matrix of which zero blocks stay zero: products that skip them, forward and backward.

Weights change at every step, the places of the blocks don't: they are looked up once, and each step copies
the weights of these blocks into block-sparse matrices, one for the way forward, its transpose for the way back.

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

_VECTORS = 64
"""Vectors multiplied at a time: they stay in a near cache while all blocks pass by."""


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
    """Where a matrix may have weights. It multiplies with a matrix that has none elsewhere.

    Args:
        mask_RC: True where a block is kept.
        block: rows and columns of a block.
        threads: of the native kernels.

    Raises:
        UserError: no kernels for such blocks, or none at all on this machine.
    """

    def __init__(self, mask_RC: Tensor, block: BlockSize, threads: int) -> None:
        check_skipping(block)
        if native() is None:
            raise UserError(
                "skip_zeros=true: there is no native runtime here; install g++, or skip_zeros=null"
            )
        self.block, self.threads = block, threads
        self.shape = (mask_RC.shape[0] * block[0], mask_RC.shape[1] * block[1])
        self._row_K, self._column_K = mask_RC.nonzero(as_tuple=True)
        self._pointer, self._pointer_back = _pointer(mask_RC.sum(1)), _pointer(mask_RC.sum(0))
        self._order_back_K = torch.argsort(self._column_K, stable=True)

    def matrix(self, weight_OI: Tensor) -> BlockSparse:
        """The matrix as it is now."""
        return BlockSparse(self.shape, self._values(weight_OI), self._column_K.int(), self._pointer)

    def transposed(self, weight_OI: Tensor) -> BlockSparse:
        """Its transpose as it is now."""
        values_KRC = self._values(weight_OI)[self._order_back_K].transpose(1, 2).contiguous()
        columns_K = self._row_K[self._order_back_K].int()
        return BlockSparse((self.shape[1], self.shape[0]), values_KRC, columns_K, self._pointer_back)

    def product(self, weight_OI: Tensor) -> "SkippingProduct":
        """How a recurrent core multiplies with it (`models.recurrence.Product`)."""
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
    """Multiplies with a matrix as it is now; the transpose is made when it is needed."""

    def __init__(self, kept: KeptBlocks, weight_OI: Tensor) -> None:
        self._kept, self._weight_OI = kept, weight_OI
        self._matrix = kept.matrix(weight_OI)
        self._transposed: BlockSparse | None = None

    def forward(self, x_BI: Tensor, addend: Tensor | None, out: Tensor) -> None:
        _multiply(self._matrix, x_BI, addend, out, self._kept.threads)

    def backward(self, x_BO: Tensor, addend: Tensor | None, out: Tensor) -> None:
        if self._transposed is None:
            self._transposed = self._kept.transposed(self._weight_OI)
        _multiply(self._transposed, x_BO, addend, out, self._kept.threads)

    def gradient(self, grad_NO: Tensor, x_NI: Tensor) -> Tensor:
        """The gradient of kept weights; that of others is not needed, and 0."""
        return self._kept.spread(self._matrix.gradient(grad_NO, x_NI, self._kept.threads)).to(grad_NO.dtype)


def _multiply(matrix: BlockSparse, x_BI: Tensor, addend: Tensor | None, out_BO: Tensor, threads: int) -> None:
    """out = addend + x times the transposed matrix, a few vectors at a time."""
    for start in range(0, len(x_BI), _VECTORS):
        some = slice(start, start + _VECTORS)
        y_BO = matrix.product(x_BI[some], threads)
        if addend is None:
            out_BO[some] = y_BO
        else:
            torch.add(addend[some], y_BO, out=out_BO[some])


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
    """Where each row of blocks begins, and where the last one ends."""
    return functional.pad(counts.cumsum(0), (1, 0)).int()
