"""A picture of the kept blocks of every prunable matrix.

Shapes: R and C rows and columns of a matrix's grid of blocks.
"""

import math
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from blocksparse_rnn.files import durable_file
from blocksparse_rnn.pruning.blocks import BlockSize, block_max
from blocksparse_rnn.pruning.prunable import prunable_matrices

_PIXELS = 256  # most pixels per side of a matrix
_COLUMNS = 6


@torch.no_grad()
def draw_blocks(model: nn.Module, prunable: dict[str, list[str]], block: BlockSize, path: Path) -> None:
    """Draw the kept blocks in black; a pixel that also covers pruned blocks is grey.

    Raises:
        UserError: the file cannot be written.
    """
    matrices = list(prunable_matrices(model, prunable))
    lines = math.ceil(len(matrices) / _COLUMNS)
    figure = Figure(figsize=(2.4 * _COLUMNS, 2.6 * lines), dpi=100, layout="constrained")
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    for axis, matrix in zip(axes, matrices, strict=False):
        kept_RC = (block_max(matrix.weight.detach(), block) > 0).float().cpu()
        drawn = 1 - _shrink(kept_RC).numpy()
        rows, columns = matrix.weight.shape
        # The aspect ratio of the matrix, also with blocks that are not square.
        aspect = rows / columns * drawn.shape[1] / drawn.shape[0]
        axis.imshow(drawn, cmap="gray", vmin=0, vmax=1, interpolation="nearest", aspect=aspect)
        name = matrix.name.removeprefix("recurrent.")
        axis.set_title(f"{name}\n{1 - kept_RC.mean():.1%} pruned", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([k * len(drawn) / len(matrix.gates) for k in range(1, len(matrix.gates))])
        axis.set_yticklabels([])
    for axis in axes[len(matrices) :]:
        axis.set_axis_off()
    figure.suptitle(f"kept blocks of {block[0]}x{block[1]}", fontsize=10)
    with durable_file(path) as file:
        figure.savefig(file, format="png")


def _shrink(kept_RC: Tensor) -> Tensor:
    rows, columns = kept_RC.shape
    return adaptive_avg_pool2d(kept_RC[None], (min(rows, _PIXELS), min(columns, _PIXELS)))[0]
