"""The recurrent cores against plain loops, the paper's parameter counts, and no leak from padding."""

import pytest
import torch
from torch import Tensor

from blocksparse_rnn.cli.summary import summarise
from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.models.deepspeech2 import DeepSpeech2
from blocksparse_rnn.models.layers import GRULayer, RNNLayer, pack
from blocksparse_rnn.models.recurrence import gru_forward, rnn

LENGTHS = [5, 4, 2]  # sorted from long to short, as packed sequences are
MINI = [
    {"channels": 4, "kernel": [11, 11], "stride": [2, 2]},
    {"channels": 4, "kernel": [5, 5], "stride": [2, 2]},
]


def packed_example(columns: int) -> tuple[Tensor, list[int]]:
    x_BTC = torch.randn(len(LENGTHS), max(LENGTHS), columns, dtype=torch.float64)
    packed = pack(x_BTC, LENGTHS)
    return packed.data.requires_grad_(), packed.batch_sizes.tolist()


def rows_of(batch_sizes: list[int], utterance: int) -> list[int]:
    starts = [sum(batch_sizes[:t]) for t in range(len(batch_sizes))]
    return [start + utterance for start, size in zip(starts, batch_sizes, strict=True) if utterance < size]


def loop(step, a_N: Tensor, batch_sizes: list[int], width: int, reverse: bool = False) -> Tensor:
    """One utterance after the other, frame by frame."""
    out = torch.zeros(len(a_N), width, dtype=a_N.dtype)
    for utterance in range(batch_sizes[0]):
        state = torch.zeros(width, dtype=a_N.dtype)
        rows = rows_of(batch_sizes, utterance)
        for row in reversed(rows) if reverse else rows:
            state = step(a_N[row], state)
            out = out.index_put((torch.tensor(row),), state)
    return out


def gru_step(weight: Tensor):
    def step(a: Tensor, h: Tensor) -> Tensor:
        a_r, a_z, a_n = a.chunk(3)
        u_r, u_z, u_n = (weight @ h).chunk(3)
        r, z = torch.sigmoid(a_r + u_r), torch.sigmoid(a_z + u_z)
        n = torch.tanh(a_n + r * u_n)
        return (1 - z) * n + z * h

    return step


@pytest.mark.parametrize("reverse", [False, True])
def test_clipped_rnn_equals_a_plain_loop_and_its_gradient_is_right(reverse):
    torch.manual_seed(0)
    a, batch_sizes = packed_example(4)
    weight = (2 * torch.randn(4, 4, dtype=torch.float64)).requires_grad_()
    expected = loop(lambda x, h: (x + weight @ h).clamp(0, 20), a, batch_sizes, 4, reverse)
    torch.testing.assert_close(rnn(a, weight, batch_sizes, reverse), expected)
    assert torch.autograd.gradcheck(lambda x, u: rnn(x, u, batch_sizes, reverse), (a, weight))


def test_relu_clips_at_20():
    a = torch.full((3, 1), 15.0, dtype=torch.float64)
    weight = torch.ones(1, 1, dtype=torch.float64)
    assert rnn(a, weight, [1, 1, 1], False).flatten().tolist() == [15, 20, 20]


def test_gru_equals_a_plain_loop_and_its_gradient_is_right():
    torch.manual_seed(0)
    a, batch_sizes = packed_example(12)
    weight = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
    expected = loop(gru_step(weight), a, batch_sizes, 4)
    torch.testing.assert_close(gru_forward(a, weight, batch_sizes), expected)
    assert torch.autograd.gradcheck(lambda x, u: gru_forward(x, u, batch_sizes), (a, weight))


def test_gru_with_frozen_recurrent_matrix_still_gives_the_input_gradient():
    torch.manual_seed(0)
    a, batch_sizes = packed_example(12)
    weight = torch.randn(12, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: gru_forward(x, weight, batch_sizes), (a,))


@pytest.mark.parametrize("layer_type", [RNNLayer, GRULayer])
def test_batch_norm_counts_valid_frames_only(layer_type):
    torch.manual_seed(0)
    layer = layer_type(3, 4)
    x_BTI = torch.randn(2, 6, 3)
    lengths = [6, 2]
    layer(pack(x_BTI, lengths))
    valid = torch.cat([x_BTI[0], x_BTI[1, :2]])
    torch.testing.assert_close(layer.norm.running_mean, 0.1 * (valid @ layer.weight_ih.t()).mean(0))


def test_directions_share_the_input_matrix():
    names = [name for name, _ in RNNLayer(3, 4).named_parameters()]
    assert names == ["weight_ih", "weight_hh", "weight_hh_reverse", "norm.weight", "norm.bias"]


@pytest.mark.parametrize(
    ("cell", "width", "millions"),
    [
        ("rnn", 704, 11.614),
        ("rnn", 1760, 67.689),
        ("rnn", 2560, 141.351),
        ("rnn", 3072, 202.601),
        ("gru", 704, 10.986),
        ("gru", 2560, 115.310),
        ("gru", 3584, 220.054),
    ],
)
def test_parameter_counts_of_the_paper(cell, width, millions):
    summary = summarise(compose_settings([f"model={cell}", f"width={width}"]))
    assert round(summary["total"] / 1e6, 3) == millions
    assert sum(summary["parameters"].values()) == summary["total"]
    layers, gates = (7, 1) if cell == "rnn" else (3, 3)
    inputs = 1312 + (layers - 1) * width
    recurrent = layers * (2 if cell == "rnn" else gates) * width * width
    assert summary["prunable"] == gates * width * inputs + recurrent + width * width


@pytest.mark.parametrize(("cell", "layers"), [("rnn", 7), ("gru", 3)])
def test_an_utterance_gives_the_same_logits_alone_and_in_any_batch(cell, layers):
    torch.manual_seed(0)
    model = DeepSpeech2(20, 29, cell=cell, layers=layers, hidden_size=16, convolutions=MINI)
    lengths = [50, 121, 7, 64]
    x_BTF = torch.randn(4, 121, 20)
    for i, length in enumerate(lengths):
        x_BTF[i, length:] = 0
    model(x_BTF, lengths)  # statistics of batch norm, so that evaluation normalises by something
    model.eval()
    together, frames = model(x_BTF, lengths)
    for i, length in enumerate(lengths):
        alone, [count] = model(x_BTF[i : i + 1, :length], [length])
        assert count == frames[i] == model.frames(length)
        torch.testing.assert_close(together[i, :count], alone[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("cell", ["rnn", "gru"])
def test_bf16_autocast_stays_close_and_gives_float32_gradients(cell):
    torch.manual_seed(0)
    model = DeepSpeech2(20, 29, cell=cell, layers=2, hidden_size=16, convolutions=MINI)
    x_BTF = torch.randn(3, 40, 20)
    exact, _ = model(x_BTF, [40, 40, 40])
    with torch.autocast("cpu", torch.bfloat16):
        rough, _ = model(x_BTF, [40, 40, 40])
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1 * exact.abs().max()
    rough.float().square().mean().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("scale", ["paper", "mini"])
def test_a_summary_adds_up_at_every_scale(scale):
    summary = summarise(compose_settings([f"scale={scale}", "model=gru", "width=64"]))
    assert summary["total"] == sum(summary["parameters"].values())
    assert summary["prunable"] == sum(summary["parameters"][name] for name in summary["types"])
    assert summary["shapes"]["recurrent.0.weight_hh"] == [192, 64]
