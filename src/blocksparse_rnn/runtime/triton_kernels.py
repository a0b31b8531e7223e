"""Block-sparse products and recurrent steps as Triton kernels.

A program computes one row of blocks for a few vectors. It gathers several blocks of the row at a time, so that
blocks of any size fill a tile. A step of a layer is one kernel: product, gates and new state.

Vectors are rows of packed frames. Step t has the rows[t] vectors from frame first[t] on, by two tables. The
previous step is another entry of the tables; a vector that it lacks starts from zeros.

Inside kernels: V vectors of a tile, K columns of gathered blocks, R rows of a block. Weights in bf16 and int8
multiply activations rounded to bf16, which holds an int8 weight exactly; sums are float32. DOT uses tensor cores.
WIDE widens both sides to float32 first, which products without DOT and Triton's interpreter need.
"""

# Triton interprets annotations, so kernels have none but its own.
import triton
import triton.language as tl


@triton.jit
def _row_sum(
    row,
    matrix,
    x,
    frame_V,
    valid_V,
    width,
    V: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    DOT: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
):
    """One row of blocks of a matrix (pointer, column, value, scale) times V vectors: (V, R)."""
    pointer, column, value, scale = matrix
    k_K = tl.arange(0, K)
    r_R = tl.arange(0, R)
    sum_VR = tl.zeros((V, R), tl.float32)
    last = tl.load(pointer + row + 1)
    for first in range(tl.load(pointer + row), last, K // C):
        block_K = first + k_K // C
        inside_K = block_K < last
        column_K = tl.load(column + block_K, mask=inside_K, other=0) * C + k_K % C
        at_KR = block_K.to(tl.int64)[:, None] * (R * C) + r_R[None, :] * C + (k_K % C)[:, None]
        weight_KR = tl.load(value + at_KR, mask=inside_K[:, None], other=0)
        x_VK = tl.load(
            x + frame_V[:, None] * width + column_K[None, :],
            mask=valid_V[:, None] & inside_K[None, :],
            other=0.0,
        )
        if weight_KR.dtype != tl.float32:
            x_VK = x_VK.to(tl.bfloat16)
            weight_KR = weight_KR.to(tl.float32).to(tl.bfloat16)
        if WIDE:
            x_VK = x_VK.to(tl.float32)
            weight_KR = weight_KR.to(tl.float32)
        if DOT:
            sum_VR = tl.dot(x_VK, weight_KR, sum_VR, input_precision="ieee")
        else:
            sum_VR += tl.sum(x_VK[:, :, None] * weight_KR[None, :, :], axis=1)
    if SCALED:
        sum_VR *= tl.load(scale + row * R + r_R)[None, :]
    return sum_VR


@triton.jit
def product(
    pointer,
    column,
    value,
    scale,
    x,
    bias,
    y,
    frames,
    rows,
    width,
    V: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    DOT: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
):
    """y = x W^T + bias, x (frames, width), y (frames, rows); a program for each row of blocks and V frames."""
    row = tl.program_id(0)
    frame_V = tl.program_id(1).to(tl.int64) * V + tl.arange(0, V)
    valid_V = frame_V < frames
    matrix = (pointer, column, value, scale)
    sum_VR = _row_sum(row, matrix, x, frame_V, valid_V, width, V, K, R, C, DOT, WIDE, SCALED)
    unit_R = row * R + tl.arange(0, R)
    sum_VR += tl.load(bias + unit_R)[None, :]
    tl.store(y + frame_V[:, None] * rows + unit_R[None, :], sum_VR, mask=valid_V[:, None])


@triton.jit(do_not_specialize=["t"])
def gru_step(
    pointer,
    column,
    value,
    scale,
    a,
    out,
    rows,
    first,
    t,
    width,
    V: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    DOT: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
):
    """Step t of a GRU: a (frames, 3 * width) in, out (frames, width) read at step t - 1, written at t."""
    block = tl.program_id(0)
    vector_V = tl.program_id(1) * V + tl.arange(0, V)
    count = tl.load(rows + t)
    if tl.program_id(1) * V < count:
        valid_V = vector_V < count
        old_V = valid_V & (vector_V < tl.load(rows + t - 1))
        frame_V = tl.load(first + t).to(tl.int64) + vector_V
        before_V = tl.load(first + t - 1).to(tl.int64) + vector_V
        blocks = width // R
        matrix = (pointer, column, value, scale)
        r_VR = _row_sum(block, matrix, out, before_V, old_V, width, V, K, R, C, DOT, WIDE, SCALED)
        z_VR = _row_sum(blocks + block, matrix, out, before_V, old_V, width, V, K, R, C, DOT, WIDE, SCALED)
        n_VR = _row_sum(
            2 * blocks + block, matrix, out, before_V, old_V, width, V, K, R, C, DOT, WIDE, SCALED
        )
        unit_R = block * R + tl.arange(0, R)
        at_VR = frame_V[:, None] * (3 * width) + unit_R[None, :]
        r_VR = tl.sigmoid(r_VR + tl.load(a + at_VR, mask=valid_V[:, None], other=0.0))
        z_VR = tl.sigmoid(z_VR + tl.load(a + at_VR + width, mask=valid_V[:, None], other=0.0))
        n_VR = tl.load(a + at_VR + 2 * width, mask=valid_V[:, None], other=0.0) + r_VR * n_VR
        n_VR = 2.0 * tl.sigmoid(2.0 * n_VR) - 1.0  # tanh
        h_VR = tl.load(out + before_V[:, None] * width + unit_R[None, :], mask=old_V[:, None], other=0.0)
        h_VR = n_VR + z_VR * (h_VR - n_VR)
        tl.store(out + frame_V[:, None] * width + unit_R[None, :], h_VR, mask=valid_V[:, None])


@triton.jit(do_not_specialize=["step", "last"])
def rnn_step(
    pointer,
    column,
    value,
    scale,
    reverse_pointer,
    reverse_column,
    reverse_value,
    reverse_scale,
    a,
    out,
    rows,
    first,
    step,
    last,
    frames,
    width,
    clip,
    V: tl.constexpr,
    K: tl.constexpr,
    R: tl.constexpr,
    C: tl.constexpr,
    DOT: tl.constexpr,
    WIDE: tl.constexpr,
    SCALED: tl.constexpr,
):
    """A step of both directions of a clipped-ReLU layer: a (frames, width) in, out (2, frames, width).

    The first direction goes from step 1 to `last`, the second with the reverse matrix back from `last` to 1.
    """
    block = tl.program_id(0)
    direction = tl.program_id(2)
    t = step + direction * (last + 1 - 2 * step)
    vector_V = tl.program_id(1) * V + tl.arange(0, V)
    count = tl.load(rows + t)
    if tl.program_id(1) * V < count:
        before = t - 1 + 2 * direction
        valid_V = vector_V < count
        old_V = valid_V & (vector_V < tl.load(rows + before))
        frame_V = tl.load(first + t).to(tl.int64) + vector_V
        before_V = tl.load(first + before).to(tl.int64) + vector_V
        out += direction.to(tl.int64) * frames * width
        matrix = (pointer, column, value, scale)
        reverse = (reverse_pointer, reverse_column, reverse_value, reverse_scale)
        if direction == 0:
            sum_VR = _row_sum(block, matrix, out, before_V, old_V, width, V, K, R, C, DOT, WIDE, SCALED)
        else:
            sum_VR = _row_sum(block, reverse, out, before_V, old_V, width, V, K, R, C, DOT, WIDE, SCALED)
        unit_R = block * R + tl.arange(0, R)
        at_VR = frame_V[:, None] * width + unit_R[None, :]
        sum_VR += tl.load(a + at_VR, mask=valid_V[:, None], other=0.0)
        # Both comparisons are false for NaN, which stays.
        sum_VR = tl.where(sum_VR < 0.0, 0.0, sum_VR)
        sum_VR = tl.where(sum_VR > clip, clip, sum_VR)
        tl.store(out + at_VR, sum_VR, mask=valid_V[:, None])
