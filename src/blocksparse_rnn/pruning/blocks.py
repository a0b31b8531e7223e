"""A weight matrix as a grid of blocks: block sizes, largest magnitudes, norms and masks per block.

Shapes: O rows, I columns, R and C rows and columns of the grid, K and L those of a block, with
O = R * K and I = C * L.
"""

import math
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import PlainValidator
from torch import Tensor

from blocksparse_rnn.errors import UserError

BlockSize = tuple[int, int]
"""Rows and columns of a block."""
_LARGEST_SHOWN = 64
_BLOCK = "must be a side or ROWSxCOLUMNS, such as 4 or 8x2"
_TINY = 1e-30  # lower bound of a squared norm, so that its root has a finite gradient


def _side_or_sides(given: Any) -> int | str:
    if not isinstance(given, int | str):
        raise ValueError(_BLOCK)
    return given


BlockSetting = Annotated[int | str, PlainValidator(_side_or_sides)]
"""A block as typed; without the validator pydantic would name settings that do not exist (block.int)."""


def parse_block(block: int | str) -> BlockSize:
    """Rows and columns of a block given as `4` or `8x2`.

    Raises:
        UserError: it is neither, or a side is 0.
    """
    match = re.fullmatch(r"([1-9]\d*)(?:x([1-9]\d*))?", str(block))
    if not match:
        raise UserError(f"block={block}: {_BLOCK}")
    rows, columns = match[1], match[2] or match[1]
    return int(rows), int(columns)


def check_block(block: BlockSize, sides: dict[str, tuple[int, int]]) -> None:
    """Check that whole blocks cover every matrix.

    Args:
        block: rows and columns of a block.
        sides: name -> rows and columns of each matrix, or of one gate of it where gates are stacked.

    Raises:
        UserError: they do not; names the matrix and the sizes that fit all matrices.
    """
    for axis, word in enumerate(("rows", "columns")):
        for name, shape in sides.items():
            if shape[axis] % block[axis]:
                common = math.gcd(*(other[axis] for other in sides.values()))
                fitting = [n for n in range(1, _LARGEST_SHOWN + 1) if common % n == 0]
                raise UserError(
                    f"block={block[0]}x{block[1]}: {block[axis]} {word} do not divide the {shape[axis]} "
                    f"{word} of {name}; choose one that divides all: {', '.join(map(str, fitting))}"
                )


def as_grid(weight_OI: Tensor, block: BlockSize) -> Tensor:
    """A view of the same memory as (R, K, C, L)."""
    rows, columns = weight_OI.shape
    return weight_OI.view(rows // block[0], block[0], columns // block[1], block[1])


def block_max(weight_OI: Tensor, block: BlockSize) -> Tensor:
    """Largest magnitude of each block, (R, C)."""
    return _reduce(weight_OI.abs(), block, Tensor.amax)


def block_norm(weight_OI: Tensor, block: BlockSize) -> Tensor:
    """Euclidean norm of each block, (R, C); its gradient at an all-zero block is 0, not NaN."""
    return _reduce(weight_OI.square(), block, Tensor.sum).clamp_min(_TINY).sqrt()


def _reduce(values_OI: Tensor, block: BlockSize, reduction: Callable[..., Tensor]) -> Tensor:
    # One axis after the other, the contiguous one last, and only axes longer than 1: on a CPU a speed-up
    # of up to 30 over both at once.
    rows, columns = values_OI.shape
    if block[0] > 1:
        values_OI = reduction(values_OI.view(-1, block[0], columns), dim=1)
    if block[1] > 1:
        values_OI = reduction(values_OI.view(rows // block[0], -1, block[1]), dim=2)
    return values_OI


def expand(grid_RC: Tensor, block: BlockSize) -> Tensor:
    """A value per block -> the same value for each of its weights, (O, I)."""
    return grid_RC.repeat_interleave(block[0], dim=0).repeat_interleave(block[1], dim=1)


def scale_blocks_(weight_OI: Tensor, factor_RC: Tensor, block: BlockSize) -> None:
    """Multiply each block by its own factor, in place."""
    as_grid(weight_OI, block).mul_(factor_RC[:, None, :, None])


def best_blocks(score_RC: Tensor, max_sparsity: float) -> Tensor:
    """Flat indices of the highest scores: the blocks that a matrix keeps at any threshold, at least one."""
    # Rounded, because (1 - 0.99) * 100 is 1.0000000000000009.
    least = math.ceil(round((1 - max_sparsity) * score_RC.numel(), 6))
    return score_RC.flatten().topk(max(1, least)).indices


def quantile(values: Iterable[Tensor], fraction: float) -> float:
    """The smallest value that at least a `fraction` of all values do not exceed.

    torch.quantile takes at most 16 million values; a recogniser at the paper's scale has more.
    """
    flat = torch.cat([each.flatten() for each in values])
    rank = min(max(math.ceil(fraction * len(flat)), 1), len(flat))
    if flat.is_cuda:
        return flat.kthvalue(rank).values.item()
    return float(np.partition(flat.detach().numpy(), rank - 1)[rank - 1])  # speed-up of 3 on a CPU
