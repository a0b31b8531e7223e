"""Training that skips pruned blocks computes the same as dense training."""

import pytest
import torch
from torch.nn.utils.rnn import pack_padded_sequence

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.layers import FullyConnected, GRULayer, RNNLayer
from blocksparse_rnn.pruning.blocks import expand, scale_blocks_
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import identity
from blocksparse_rnn.runtime import autograd, library
from blocksparse_rnn.runtime.autograd import KeptBlocks
from blocksparse_rnn.runtime.bsr import BlockSparse
from blocksparse_rnn.training.skip_zeros import SkipZeros, skip_nothing, skip_zeros
from blocksparse_rnn.training.train import train

VARIANTS = [n for n, v in library.VARIANTS.items() if v.needs <= library._processor_abilities()]
SPARSE = ["sparsifier=bp", "block=4", "target_sparsity=0.75", "schedule.freq=1", "trainer.log_every=1"]


def random_mask(rows, columns, share=0.4):
    mask = torch.rand(rows, columns) < share
    mask[0] = False  # a row of blocks with none
    return mask


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("frames", [1, 3, 255, 257, 600])
@pytest.mark.parametrize("side", [4, 8, 16, 32])
def test_products_and_gradients_are_the_dense_ones(monkeypatch, variant, side, frames):
    monkeypatch.setattr("blocksparse_rnn.runtime.bsr.native", lambda: library.load(variant))
    torch.manual_seed(0)
    mask = random_mask(3, 5)
    mask_OI = expand(mask.double(), (side, side))
    weight = torch.randn(3 * side, 5 * side)
    weight *= mask_OI
    blocks = KeptBlocks(mask, (side, side), threads=2)
    x, grad = torch.randn(frames, 5 * side), torch.randn(frames, 3 * side)
    product = blocks.product(weight)
    y, back = torch.empty(frames, 3 * side), torch.ones(frames, 5 * side)
    product.forward(x, None, y)
    product.backward(grad, back, back)
    w, x, grad = weight.double(), x.double(), grad.double()
    torch.testing.assert_close(y.double(), x @ w.t(), atol=1e-4, rtol=0)
    torch.testing.assert_close(back.double(), 1 + grad @ w, atol=1e-4, rtol=0)
    found = product.gradient(grad.float(), x.float()).double()
    torch.testing.assert_close(found, (grad.t() @ x) * mask_OI, atol=1e-3, rtol=1e-5)


def test_a_kept_block_of_zeros_gets_its_gradient():
    blocks = KeptBlocks(torch.tensor([[True, False]]), (4, 4), threads=1)
    weight = torch.zeros(4, 8, requires_grad=True)
    blocks.project(torch.ones(3, 8), weight).sum().backward()
    assert torch.equal(weight.grad, torch.tensor([3.0] * 4 + [0.0] * 4).expand(4, 8))


def pruned_layer(kind, size):
    layer = kind(size) if kind is FullyConnected else kind(size, size)
    masks = {}
    for name, weight in layer.named_parameters():
        if weight.ndim == 2:
            masks[name] = random_mask(len(weight) // 8, size // 8)
            with torch.no_grad():
                scale_blocks_(weight, masks[name].float(), (8, 8))
    return layer, masks


@pytest.mark.parametrize("kind", [RNNLayer, GRULayer, FullyConnected])
def test_a_layer_and_its_gradients_are_the_dense_ones(kind):
    torch.manual_seed(0)
    layer, masks = pruned_layer(kind, 32)
    lengths = [11, 9, 9, 2, 1]
    packed = pack_padded_sequence(torch.randn(5, 11, 32), lengths, batch_first=True)
    packed = packed._replace(data=packed.data.requires_grad_())
    results = []
    for skipping in (False, True):
        if skipping:
            skip_zeros(layer, masks, (8, 8))
        layer.zero_grad()
        packed.data.grad = None
        out = layer(packed.data) if kind is FullyConnected else layer(packed).data
        (out * torch.linspace(-1, 1, 32)).square().sum().backward()
        gradients = {name: p.grad.clone() for name, p in layer.named_parameters()}
        for name, mask in masks.items():
            scale_blocks_(gradients[name], mask.float(), (8, 8))
        results.append([out.detach(), packed.data.grad.clone(), *gradients.values()])
    for dense, skipped in zip(*results, strict=True):
        torch.testing.assert_close(skipped, dense, atol=1e-4, rtol=1e-4)
    skip_nothing(layer)
    fresh = kind(32) if kind is FullyConnected else kind(32, 32)
    assert layer.project is fresh.project
    assert getattr(layer, "core", None) is getattr(fresh, "core", None)


@pytest.fixture
def counted(monkeypatch):
    """An entry for every product that was made to skip."""
    made = []
    product = KeptBlocks.product
    monkeypatch.setattr(KeptBlocks, "product", lambda *args: made.append(1) or product(*args))
    return made


@pytest.mark.slow
@pytest.mark.parametrize("model", ["rnn", "gru"])
def test_a_run_that_skips_zeros_ends_like_one_that_does_not(tone_settings, counted, model):
    options = [*SPARSE, f"model={model}", "trainer.max_epochs=4", "optimizer.lr=1e-4"]
    weights, results = [], []
    for skipping in ("null", "true"):
        given = tone_settings(*options, f"skip_zeros={skipping}")
        results.append(train(given))
        weights.append(load_weights(RunFolder.of(given).best))
        assert bool(counted) == (skipping == "true")
    assert results[0]["blocks"] == results[1]["blocks"]
    assert results[0]["sparsity/prunable"] == results[1]["sparsity/prunable"] > 0.5
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=1e-3, rtol=1e-3)


def test_it_starts_when_pruning_has_ended_and_a_resumed_run_is_the_same_to_the_bit(
    tone_settings, tmp_path, monkeypatch, power_cut
):
    steps = []
    install = SkipZeros._install_when_final

    def note(self, trainer, recogniser):
        before = self.installed
        install(self, trainer, recogniser)
        if self.installed and not before:
            steps.append((trainer.global_step, self.sparsifiers[0].steps.updates[-1]))

    monkeypatch.setattr(SkipZeros, "_install_when_final", note)
    options = [*SPARSE, "skip_zeros=true", "trainer.max_epochs=4"]
    undisturbed = tone_settings(*options, f"outputs={tmp_path / 'undisturbed'}")
    train(undisturbed)
    [(installed, last_update)] = steps
    assert installed == last_update

    stopped, after = tone_settings(*options), installed + 3
    with power_cut(after):
        train(stopped)
    assert train(stopped)["resumed"]
    assert [step for step, _ in steps] == [installed, installed, after]
    for name, weight in load_weights(RunFolder.of(stopped).best).items():
        assert torch.equal(weight, load_weights(RunFolder.of(undisturbed).best)[name]), name


def test_the_setting_counts_only_where_something_is_pruned(tone_settings):
    assert identity(tone_settings("skip_zeros=true").plain()) == identity(tone_settings().plain())
    assert identity(tone_settings(*SPARSE, "skip_zeros=true").plain()) != identity(
        tone_settings(*SPARSE).plain()
    )


def test_what_cannot_skip_is_one_line(tone_settings, monkeypatch):
    with pytest.raises(UserError, match="no kernels for block=8x2; choose 4, 8, 16, 32, or skip_zeros=null"):
        tone_settings(*SPARSE, "block=8x2", "skip_zeros=true")
    monkeypatch.setattr(autograd, "native", lambda: None)
    with pytest.raises(UserError, match="there is no native runtime here; install g"):
        KeptBlocks(torch.ones(1, 1, dtype=torch.bool), (4, 4), threads=1)


def test_a_gradient_needs_matching_shapes():
    matrix = BlockSparse.from_dense(torch.ones(8, 8), (4, 4))
    with pytest.raises(AssertionError):
        matrix.gradient(torch.ones(3, 8), torch.ones(2, 8))
