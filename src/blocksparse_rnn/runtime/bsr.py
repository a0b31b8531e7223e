"""A matrix that stores its nonzero blocks only, and its product with vectors.

Shapes: O rows, I columns; R and C rows and columns of a block, N blocks; B vectors.
"""

import ctypes
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import BlockSize, as_grid, check_block
from blocksparse_rnn.runtime.library import native

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.int8}
"""Number formats of the weights. Activations are rounded to the same: int8 with a scale for each vector, bf16 where
the processor multiplies bf16 itself."""
NATIVE_BLOCKS = (4, 8, 16, 32)
"""Sides of the square blocks for which there are native kernels."""
_FILLED_UP, _IN_CACHE = 4, 1 << 20
"""Native blocks may store this many times the values of the blocks that they replace, or this many values.

Beyond both, torch's sparse product is faster for several vectors: single weights of a large matrix."""
_VECTORS = 64
"""Vectors that `add_product` multiplies at a time: they stay in a near cache while all blocks are read."""
_FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2}
_MOST_COLUMNS = 1 << 16


@dataclass(frozen=True)
class BlockSparse:
    """A block-sparse matrix (O, I) in rows of blocks (BSR).

    Raises:
        UserError: parts that don't fit each other; native code checks nothing itself.
    """

    shape: tuple[int, int]
    values_NRC: Tensor
    """The blocks, one row of blocks after the other; float32, bfloat16 or int8."""
    columns_N: Tensor
    """Column of each block, counted in blocks; int32 (uint16 in memory and on disk)."""
    row_pointer: Tensor
    """First block of each row of blocks in `values_NRC`, and the end of the last row; int32."""
    row_scale_O: Tensor | None = None
    """Scale of each row of int8 weights; None for other formats."""
    _handle: "_Handle | None" = field(init=False, repr=False, compare=False, default=None)

    def __post_init__(self) -> None:
        rows, columns = self.block
        if min(*self.shape, *self.block) < 1:
            raise UserError(
                f"a matrix of {self.shape} in blocks of {self.block}: each side must be at least 1"
            )
        check_block(self.block, {"the matrix": self.shape})
        if self.shape[1] // columns > _MOST_COLUMNS:
            raise UserError(f"{self.shape[1]} columns: {_MOST_COLUMNS} blocks of {columns} at most")
        # As int64: a difference of int32 pointers may overflow, and a negative column must stay one.
        pointer, columns_N = self.row_pointer.long(), self.columns_N.long()
        if not (
            tuple(pointer.shape) == (self.shape[0] // rows + 1,)
            and tuple(columns_N.shape) == (len(self.values_NRC),)
            and (int(pointer[0]), int(pointer[-1])) == (0, len(columns_N))
            and bool((pointer[1:] >= pointer[:-1]).all())
        ):
            raise UserError("a block-sparse matrix's row pointers do not fit its rows and blocks")
        if bool(((columns_N < 0) | (columns_N >= self.shape[1] // columns)).any()):
            raise UserError("a block-sparse matrix has a block beyond its last column")
        dtype, scale_O = self.values_NRC.dtype, self.row_scale_O
        if dtype not in _FORMATS or (scale_O is not None) != (dtype == torch.int8):
            raise UserError(
                f"a block-sparse matrix holds float32, bfloat16, or int8 with a scale for each row, not {dtype} "
                f"{'without' if scale_O is None else 'with'} scales"
            )
        if scale_O is not None and tuple(scale_O.shape) != self.shape[:1]:
            raise UserError(f"{tuple(scale_O.shape)} scales for a matrix of {self.shape[0]} rows")
        if native() is not None:
            object.__setattr__(self, "_handle", self._native_handle())

    @classmethod
    def from_dense(cls, weight_OI: Tensor, block: BlockSize, dtype: str = "fp32") -> "BlockSparse":
        """Store the nonzero blocks of a dense matrix (a NaN is nonzero).

        Args:
            weight_OI: the matrix.
            block: rows and columns of a block.
            dtype: fp32, bf16, or int8 with a scale for each row.

        Raises:
            UserError: the block doesn't divide the matrix, or the dtype is unknown.
        """
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype}: must be one of {', '.join(DTYPES)}")
        weight_OI = weight_OI.detach().float().contiguous()
        check_block(block, {"the matrix": (weight_OI.shape[0], weight_OI.shape[1])})
        kept_RC = (as_grid(weight_OI, block) != 0).any(3).any(1)
        scale_O = None
        if dtype == "int8":
            weight_OI, scale_O = quantise(weight_OI)
        return cls._of_blocks(as_grid(weight_OI, block), kept_RC, DTYPES[dtype], scale_O)

    @classmethod
    def _of_blocks(
        cls, grid_RKCL: Tensor, kept_RC: Tensor, dtype: torch.dtype, scale_O: Tensor | None
    ) -> "BlockSparse":
        rows, height, columns, width = grid_RKCL.shape
        values_NKL = grid_RKCL.transpose(1, 2)[kept_RC].to(dtype)
        ends = kept_RC.sum(1).cumsum(0)
        row_pointer = torch.cat((ends.new_zeros(1), ends)).int()
        shape = (rows * height, columns * width)
        return cls(shape, values_NKL.contiguous(), kept_RC.nonzero()[:, 1].int(), row_pointer, scale_O)

    @property
    def block(self) -> BlockSize:
        """Rows and columns of a block."""
        return self.values_NRC.shape[1], self.values_NRC.shape[2]

    @property
    def native_block(self) -> int | None:
        """Side of the square blocks in which native kernels multiply; None where torch multiplies."""
        return None if self._handle is None else self._handle.block

    @property
    def handle(self) -> Any:
        """Its pointer in the native library."""
        assert self._handle is not None
        return self._handle.pointer

    def to_dense(self) -> Tensor:
        """The matrix (O, I) in float32, int8 weights scaled back."""
        weight_OI = self._unscaled_OI()
        return weight_OI if self.row_scale_O is None else weight_OI * self.row_scale_O[:, None]

    def _unscaled_OI(self) -> Tensor:
        rows, columns = self.block
        grid_RCKL = torch.zeros(self.shape[0] // rows, self.shape[1] // columns, rows, columns)
        row_of_N = torch.repeat_interleave(torch.arange(len(grid_RCKL)), self.row_pointer.diff().long())
        grid_RCKL[row_of_N, self.columns_N.long()] = self.values_NRC.float()
        return grid_RCKL.transpose(1, 2).reshape(self.shape)

    def _native_handle(self) -> "_Handle | None":
        """The native copy: in its own blocks, in square parts of them, or in the smallest native blocks around them."""
        within = [n for n in NATIVE_BLOCKS if not any(length % n for length in self.block)]
        side = within[-1] if within else NATIVE_BLOCKS[0]
        if self.block == (side, side):
            return _Handle(self)
        if any(length % side for length in self.shape):
            return None
        grid_RKCL = as_grid(self._unscaled_OI(), (side, side))
        kept_RC = (grid_RKCL != 0).any(3).any(1)
        if int(kept_RC.sum()) * side**2 > max(_FILLED_UP * self.values_NRC.numel(), _IN_CACHE):
            return None
        return self._of_blocks(grid_RKCL, kept_RC, self.values_NRC.dtype, self.row_scale_O)._handle

    def product(self, x_BI: Tensor, threads: int = 1) -> Tensor:
        """y = x times the transposed matrix: (B, I) -> (B, O), float32.

        Raises:
            UserError: the vectors' size is not the number of columns, or they are on a GPU; threads below 1.
        """
        if x_BI.ndim != 2 or x_BI.shape[1] != self.shape[1]:
            raise UserError(
                f"a matrix of {self.shape[1]} columns multiplies vectors (B, {self.shape[1]}), not {tuple(x_BI.shape)}"
            )
        check_native(threads, x_BI)
        if self._handle is None:
            return self._torch_product(x_BI.float())
        x_BI = x_BI.float().contiguous()
        y_BO = torch.empty(len(x_BI), self.shape[0])
        arguments = (self.handle, threads, len(x_BI), x_BI.data_ptr(), y_BO.data_ptr())
        check_memory(self._handle.library.bsr_product(*arguments))
        return y_BO

    def add_product(self, x_BI: Tensor, addend_BO: Tensor | None, out_BO: Tensor, threads: int = 1) -> None:
        """out = addend + x times the transposed matrix; the addend may be None, or `out` itself."""
        for start in range(0, len(x_BI), _VECTORS):
            some = slice(start, start + _VECTORS)
            y_BO = self.product(x_BI[some], threads)
            if addend_BO is None:
                out_BO[some] = y_BO
            else:
                torch.add(addend_BO[some], y_BO, out=out_BO[some])

    def gradient(self, grad_NO: Tensor, x_NI: Tensor, threads: int = 1) -> Tensor:
        """Each block's part of grad^T x, the gradient of the matrix in y = x W^T, as `values_NRC` (N, R, C).

        Args:
            grad_NO: gradient of y, a row for each vector.
            x_NI: the vectors.
            threads: of the native kernels, which this needs.

        Raises:
            UserError: vectors on a GPU; threads below 1.
        """
        assert self._handle is not None
        assert self.block == (self._handle.block,) * 2
        check_native(threads, grad_NO, x_NI)
        grad_NO, x_NI = grad_NO.float().contiguous(), x_NI.float().contiguous()
        assert (len(x_NI), *self.shape) == (len(grad_NO), grad_NO.shape[1], x_NI.shape[1])
        values_NRC = torch.empty(self.values_NRC.shape)
        arguments = (self.handle, threads, len(x_NI), *(t.data_ptr() for t in (grad_NO, x_NI, values_NRC)))
        check_memory(self._handle.library.bsr_gradient(*arguments))
        return values_NRC

    def _torch_product(self, x_BI: Tensor) -> Tensor:
        """The same with torch's sparse product; int8 activations are rounded as in the kernels, bf16 ones are not."""
        scale_B1 = None
        if self.values_NRC.dtype == torch.int8:
            largest_B1 = x_BI.abs().amax(1, keepdim=True)
            scale_B1 = torch.where(largest_B1.isfinite(), largest_B1 / 127, torch.nan)
            x_BI = torch.round(x_BI / torch.where(scale_B1 > 0, scale_B1, 1.0))
        y_BO = (self._csr_OI @ x_BI.t()).t()
        return y_BO if scale_B1 is None else y_BO * scale_B1

    @cached_property
    def _csr_OI(self) -> Tensor:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            return self.to_dense().to_sparse_csr()


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (O, ...) as whole numbers from -127 to 127, in float32, and the scale (O,) of each row."""
    largest_O = weight.flatten(1).abs().amax(1)
    scale_O = torch.where(largest_O > 0, largest_O / 127, 1.0)
    return torch.round(weight / along_rows(scale_O, weight)), scale_O


def along_rows(scale_O: Tensor, weight: Tensor) -> Tensor:
    """A scale per row, shaped to broadcast with a weight (O, ...)."""
    return scale_O.view(-1, *[1] * (weight.ndim - 1))


def check_native(threads: int, *tensors: Tensor) -> None:
    """Check what native code doesn't check itself: the number of threads, and that tensors are on the CPU.

    Raises:
        UserError: threads below 1, or a tensor elsewhere.
    """
    if threads < 1:
        raise UserError(f"threads={threads}: must be at least 1")
    for tensor in tensors:
        if tensor.device.type != "cpu":
            raise UserError(
                f"the block-sparse runtime computes on the CPU, not on {tensor.device}; use runtime.cuda_layers there"
            )


def check_memory(status: int) -> None:
    """Raise MemoryError where a native function reports a lack of memory or threads."""
    if status:
        raise MemoryError("the block-sparse runtime got no memory, or no thread")


class _Handle:
    """The native copy of a matrix in square blocks, in the order in which kernels read it; freed with its owner."""

    def __init__(self, matrix: BlockSparse) -> None:
        library = native()
        assert library is not None
        values_NRC = matrix.values_NRC.contiguous()
        columns_N = matrix.columns_N.to(torch.uint16).contiguous()
        row_pointer = matrix.row_pointer.int().contiguous()
        scale_O = torch.ones(1) if matrix.row_scale_O is None else matrix.row_scale_O.float().contiguous()
        check_native(1, values_NRC, columns_N, row_pointer, scale_O)
        self.library: ctypes.CDLL = library
        self.block = matrix.block[0]
        self.pointer = library.bsr_create(
            *(_FORMATS[values_NRC.dtype], *matrix.shape, matrix.block[0]),
            *(t.data_ptr() for t in (row_pointer, columns_N, values_NRC, scale_O)),
        )
        if not self.pointer:
            raise MemoryError("the block-sparse runtime got no memory")

    def __del__(self) -> None:
        if getattr(self, "pointer", None):
            self.library.bsr_free(self.pointer)
