"""Grids of blocks against plain loops."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import (
    block_max,
    block_norm,
    check_block,
    expand,
    parse_block,
    quantile,
    scale_blocks_,
)

SIDES = st.integers(1, 5)


@st.composite
def weights_in_blocks(draw):
    block = draw(SIDES), draw(SIDES)
    rows, columns = draw(SIDES) * block[0], draw(SIDES) * block[1]
    seed = draw(st.integers(0, 1000))
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)), block


def each_block(weight, block):
    for i in range(weight.shape[0] // block[0]):
        for j in range(weight.shape[1] // block[1]):
            rows = slice(i * block[0], (i + 1) * block[0])
            yield (i, j), weight[rows, j * block[1] : (j + 1) * block[1]]


@given(weights_in_blocks())
def test_maxima_norms_and_masks_equal_a_loop_over_blocks(case):
    weight, block = case
    largest, norms = block_max(weight, block), block_norm(weight, block)
    mask = largest > 1
    expanded = expand(mask, block)
    for at, values in each_block(weight, block):
        assert largest[at] == values.abs().max()
        assert norms[at] == pytest.approx(float(values.norm()), rel=1e-5)
    for at, values in each_block(expanded, block):
        assert (values == mask[at]).all()
    scaled = weight.clone()
    scale_blocks_(scaled, norms, block)
    assert torch.allclose(scaled, weight * expand(norms, block))


@given(weights_in_blocks())
def test_the_gradient_of_a_norm_is_finite_even_where_a_block_is_zero(case):
    weight, block = case
    weight[: block[0], : block[1]] = 0
    weight.requires_grad_()
    block_norm(weight, block).sum().backward()
    assert weight.grad is not None
    assert (weight.grad[: block[0], : block[1]] == 0).all()
    expected = (weight / expand(block_norm(weight, block), block)).detach()
    assert torch.allclose(weight.grad[block[0] :], expected[block[0] :], atol=1e-6)


@pytest.mark.parametrize(
    ("block", "sides"), [(4, (4, 4)), ("4", (4, 4)), ("8x2", (8, 2)), (1, (1, 1)), ("16x32", (16, 32))]
)
def test_a_block_is_a_side_or_rows_by_columns(block, sides):
    assert parse_block(block) == sides


@pytest.mark.parametrize("block", ["0", 0, -4, "8x", "x2", "8x0", "8 x 2", "4.0", "big", "4x4x4", ""])
def test_anything_else_is_refused(block):
    with pytest.raises(UserError, match=r"such as 4 or 8x2"):
        parse_block(block)


def test_a_side_that_does_not_divide_is_refused_with_those_that_do():
    sides = {"weight_ih": (48, 32), "a gate of weight_hh": (48, 48)}
    check_block((16, 16), sides)
    with pytest.raises(
        UserError, match=r"block=32x8: 32 rows do not divide the 48 .* weight_ih; .*: 1, 2, 3, 4"
    ):
        check_block((32, 8), sides)
    with pytest.raises(UserError, match=r"12 columns do not divide the 32 .*: 1, 2, 4, 8, 16$"):
        check_block((8, 12), sides)


def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed():
    values = [torch.tensor([[5.0, 1.0], [4.0, 2.0]]), torch.tensor([3.0])]
    assert [quantile(values, f) for f in (0.0, 0.2, 0.21, 0.5, 0.8, 1.0)] == [1, 1, 2, 3, 4, 5]
