"""The cores of a GPU against those of a CPU: everywhere, and captured as CUDA graphs where there is a GPU."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from blocksparse_rnn.models import captured
from blocksparse_rnn.models.captured import order_of, padded_gru, padded_rnn
from blocksparse_rnn.models.cuda_graphs import CapturedGraphs
from blocksparse_rnn.models.deepspeech2 import DeepSpeech2
from blocksparse_rnn.models.layers import GRULayer, RNNLayer
from blocksparse_rnn.models.recurrence import gru_forward, rnn_both
from blocksparse_rnn.training.train import train

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
LENGTHS = [[1], [6, 6, 6], [9, 7, 7, 2, 1]]
CORES = {"rnn": (padded_rnn, rnn_both, 2, 1), "gru": (padded_gru, gru_forward, 1, 3)}


@pytest.fixture(autouse=True)
def no_graphs(monkeypatch):
    monkeypatch.setattr(captured, "_GRAPHS", CapturedGraphs(4))


def batch_sizes(lengths):
    return pack_padded_sequence(torch.zeros(len(lengths), max(lengths)), lengths, True).batch_sizes.tolist()


def example(cell, width, sizes, seed=0, device="cpu"):
    _, _, matrices, gates = CORES[cell]
    generator = torch.Generator().manual_seed(seed)
    shapes = [(sum(sizes), gates * width)] + matrices * [(gates * width, width)]
    scale = 2 * width**-0.5
    values = [scale * torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes]
    return [value.to(device).requires_grad_() for value in values]


def outcome(core, inputs, sizes):
    """Result and gradients, in float64 on the CPU."""
    hidden = core(*inputs, sizes)
    weight = torch.linspace(-1, 1, hidden.numel(), dtype=hidden.dtype, device=hidden.device).view_as(hidden)
    return [x.detach().cpu() for x in (hidden, *torch.autograd.grad((hidden * weight).sum(), inputs))]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("cell", CORES)
def test_padded_cores_equal_the_packed_ones_with_all_gradients(cell, lengths, device):
    padded, packed, *_ = CORES[cell]
    sizes = batch_sizes(lengths)
    expected = outcome(packed, example(cell, 4, sizes), sizes)
    found = outcome(padded, example(cell, 4, sizes, device=device), sizes)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("cell", CORES)
def test_gradients_of_padded_cores_are_right(cell):
    sizes = batch_sizes([5, 4, 2])
    padded = CORES[cell][0]
    assert torch.autograd.gradcheck(lambda *inputs: padded(*inputs, sizes), example(cell, 3, sizes))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("cell", CORES)
def test_one_graph_serves_other_weights_and_lengths_of_its_bucket(cell, device):
    padded, packed, *_ = CORES[cell]
    for seed, lengths in enumerate([[10, 9, 9], [9, 3, 1], [10, 10, 10]]):
        sizes = batch_sizes(lengths)
        expected = outcome(packed, example(cell, 4, sizes, seed), sizes)
        found = outcome(padded, example(cell, 4, sizes, seed, device), sizes)
        torch.testing.assert_close(found, expected)
    assert len(captured._GRAPHS) == 2  # forward and backward


def test_both_directions_see_an_utterance_from_its_own_ends():
    order = order_of((3, 2, 1), 2, torch.device("cpu"))
    assert order.padded_TDB.tolist() == [
        [[0, 1, 2], [5, 4, 2]],
        [[3, 4, 6], [3, 1, 6]],
        [[5, 6, 6], [0, 6, 6]],
    ]
    assert torch.equal(order.padded_TDB.flatten()[order.packed_DN], torch.arange(6).expand(2, 6))


@pytest.mark.parametrize(("cell", "layer_type"), [("rnn", RNNLayer), ("gru", GRULayer)])
def test_a_layer_stays_on_the_packed_path_of_a_cpu(cell, layer_type, monkeypatch):
    monkeypatch.setattr(captured, f"padded_{cell}", None)
    packed = pack_padded_sequence(torch.randn(2, 4, 8), [4, 3], batch_first=True)
    assert layer_type(8, 8)(packed).data.shape == (7, 8)


@pytest.mark.gpu
@pytest.mark.parametrize("cell", CORES)
def test_a_model_on_a_gpu_computes_what_it_computes_on_a_cpu(cell):
    torch.manual_seed(0)
    convolutions = [{"channels": 4, "kernel": [11, 11], "stride": [2, 2]}]
    model = DeepSpeech2(20, 29, cell=cell, layers=2, hidden_size=32, convolutions=convolutions)
    x, lengths = torch.randn(3, 60, 20), [60, 31, 8]
    for i, length in enumerate(lengths):
        x[i, length:] = 0
    results = []
    for device in ("cpu", "cuda"):
        model.to(device).zero_grad()
        logits, _ = model(x.to(device), lengths)
        logits.square().sum().backward()
        results.append([logits.detach().cpu(), *(p.grad.cpu().clone() for p in model.parameters())])
    for on_cpu, on_gpu in zip(*results, strict=True):
        assert (on_gpu - on_cpu).norm() < 5e-3 * on_cpu.norm()  # convolutions may use TF32


@pytest.mark.gpu
@pytest.mark.parametrize("options", [["model=rnn"], ["model=gru", "sparsifier=bp", "target_sparsity=0.5"]])
def test_a_training_on_a_gpu_ends_with_a_result(tone_settings, options):
    result = train(tone_settings(*options, "trainer.accelerator=gpu", "schedule.freq=1"))
    assert result["precision"] == "bf16-mixed"
    assert result["device"] == torch.cuda.get_device_name()
    assert 0 <= result["cer"] < 2
