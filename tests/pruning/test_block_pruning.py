"""Block pruning: which blocks are pruned, that they stay zero, and what a run reports about it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pruned_training import PATTERNS, SCHEDULE, UPDATES, Training, block_pruning, network

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import block_max, expand
from blocksparse_rnn.pruning.prunable import count_zeros
from blocksparse_rnn.pruning.schedule import CubicSchedule
from blocksparse_rnn.pruning.sparsifier import DenseWeights
from blocksparse_rnn.training.recogniser import build_recogniser
from blocksparse_rnn.training.train import train

CUBIC = CubicSchedule(start_epoch=1, end_frac=0.5, freq=5)


@pytest.mark.parametrize("cell", ["rnn", "gru"])
@pytest.mark.parametrize("block", [1, 4, 8, 16, "8x2"])
@pytest.mark.parametrize("schedule", [SCHEDULE, CUBIC])
def test_a_target_is_met_with_any_block(cell, block, schedule):
    model, sparsifier = network(cell), block_pruning(block=block, schedule=schedule, target_sparsity=0.8)
    training = Training(sparsifier, model, torch.optim.AdamW(model.parameters()))
    training.prune()
    blocks = sparsifier.report()["blocks"]
    zeros = count_zeros(model, PATTERNS).prunable
    assert zeros == pytest.approx(0.8, abs=1.5 / blocks["total"])
    assert zeros == training.logged["sparsity/pruned"] == pytest.approx(1 - blocks["kept"] / blocks["total"])
    assert training.logged["threshold/score"] == sparsifier.report()["thresholds"]["score"]
    assert sparsifier.report()["pruning"] == "finished at step 40"


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["rnn", "gru"]),
    st.sampled_from([1, 2, 4, "8x2", "2x8", 16]),
    st.floats(0.1, 0.99),
    st.sampled_from([lambda p: torch.optim.SGD(p, 1e-3, momentum=0.9, nesterov=True), torch.optim.AdamW]),
)
def test_masks_only_shrink_and_pruned_blocks_stay_zero(cell, block, target, make_optimizer):
    model, sparsifier = network(cell), block_pruning(block=block, target_sparsity=target)
    training = Training(sparsifier, model, make_optimizer(model.parameters()))
    for step in sorted([*UPDATES, *(itr + 1 for itr in UPDATES)]):
        before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
        training.step(step)
        for m in sparsifier.matrices(model):
            mask = sparsifier.masks[m.name]
            assert not (mask & ~before[m.name]).any()
            assert mask.any()
            assert torch.equal(block_max(m.weight, sparsifier.block) > 0, mask)
        sparsifier.verify(model)
    with torch.no_grad():
        pruned = next(m for m in sparsifier.matrices(model) if not sparsifier.masks[m.name].all())
        pruned.weight[~expand(sparsifier.masks[pruned.name], sparsifier.block)] = 1e-3
    with pytest.raises(AssertionError, match=pruned.name):
        sparsifier.verify(model)


def test_with_q_blocks_are_compared_with_the_threshold_of_their_matrix_type():
    model, sparsifier = network(), block_pruning(block="8x2", target_sparsity=None)
    with torch.no_grad():
        model.fc.weight.mul_(3)
    raw = {m.name: block_max(m.weight.detach(), (8, 2)) for m in sparsifier.matrices(model)}
    training = Training(sparsifier, model)
    training.step(11)
    for step in UPDATES:
        training.step(step)
        for m in sparsifier.matrices(model):
            expected = raw[m.name] >= sparsifier.thresholds[m.type]
            best = raw[m.name].flatten().topk(math.ceil(0.01 * raw[m.name].numel())).indices
            expected.view(-1)[best] = True  # max_sparsity
            assert torch.equal(sparsifier.masks[m.name], expected)
    report = sparsifier.report()
    assert report["q_source"] == "own weights at step 10"
    assert report["q"].keys() == report["thresholds"].keys() == PATTERNS.keys()


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("dense", [None, DenseWeights(dict(network().named_parameters()), "dense run x")])
def test_q_aims_at_nine_tenths_for_any_block(block, dense):
    model = network()
    Training(block_pruning(block=block, target_sparsity=None, find_dense=lambda q: dense), model).prune()
    assert count_zeros(model, PATTERNS).prunable == pytest.approx(0.9, abs=0.04)


def test_a_target_compares_scores_relative_to_their_matrix():
    model = network()
    with torch.no_grad():  # raw magnitudes would empty the first layer and leave the second alone
        model.first.weight_hh.mul_(0.01)
        model.second.weight_hh.mul_(100)
    Training(block_pruning(), model).step(40)
    shares = count_zeros(model, PATTERNS).matrices
    assert all(0.8 < share < 0.97 for share in shares.values()), shares


def test_a_matrix_keeps_its_best_blocks_where_all_would_be_pruned(capsys):
    model, sparsifier = network(), block_pruning(target_sparsity=None, max_sparsity=0.95)
    with torch.no_grad():
        model.fc.weight.mul_(1e-3)
    best = block_max(model.fc.weight.detach(), (4, 4)).flatten().topk(29).indices
    Training(sparsifier, model).prune()
    kept = sparsifier.masks["fc.weight"]
    assert kept.sum() == 29  # 5 % of 576, rounded up
    assert set(kept.flatten().nonzero().flatten().tolist()) == set(best.tolist())
    assert capsys.readouterr().err.count("fc.weight would lose more than 95% of its blocks") == 1


@pytest.mark.parametrize("width", [96, 32])  # of 32, a matrix has 16 blocks of 8x8 and keeps at least one
def test_a_target_at_the_limit_is_approached_in_steps(width):
    model, sparsifier = network(width=width), block_pruning(block=8, target_sparsity=0.99)
    training, reached = Training(sparsifier, model), []
    for step in UPDATES:
        training.step(step)
        reached.append(count_zeros(model, PATTERNS).prunable)
    assert reached[0] < 0.2
    assert sorted(reached) == reached
    assert len(set(reached)) > 3
    assert math.isfinite(sparsifier.thresholds["score"])
    for mask in sparsifier.masks.values():
        assert mask.sum() == math.ceil(mask.numel() / 100)


@pytest.mark.parametrize("target", [0.9, None])
@pytest.mark.parametrize("stop", [12, 25, 40])
def test_masks_thresholds_and_weights_are_exact_after_a_resume(target, stop):
    def run(steps, state=()):
        model, sparsifier = network(), block_pruning(target_sparsity=target)
        parts = model, torch.optim.AdamW(model.parameters()), sparsifier
        for part, saved in zip(parts, state, strict=False):
            part.load_state_dict(saved)
        training = Training(sparsifier, model, parts[1])
        for step in steps:
            training.step(step)
        return [part.state_dict() for part in parts]

    expected = run(range(1, 46))
    found = run(range(stop + 1, 46), run(range(1, stop + 1)))
    for of in (lambda states: states[0], lambda states: states[2].pop("masks")):
        torch.testing.assert_close(of(found), of(expected), rtol=0, atol=0)
    assert found[2] == expected[2]


@pytest.mark.parametrize("changes", [{"block": 8}, {"schedule": CUBIC, "steps": 60}])
def test_masks_of_other_settings_are_refused(changes):
    first, steps, second = block_pruning(), changes.pop("steps", 80), block_pruning(**changes)
    Training(first, network()).prune()
    second.load_state_dict(first.state_dict())
    with pytest.raises(UserError, match="belong to other settings"):
        Training(second, network(), steps=steps)


def test_a_schedule_longer_than_the_run_prunes_nothing_and_warns(capsys):
    model, sparsifier = network(), block_pruning(target_sparsity=None)
    training = Training(sparsifier, model, steps=20)
    training.prune()
    training.sparsifier.on_train_end(training.trainer, training.recogniser)
    report = sparsifier.report()
    assert report["pruning"].startswith(
        "nothing pruned: schedule with start_epoch=1, end_frac=0.5 and freq=5"
    )
    assert report["blocks"]["kept"] == report["blocks"]["total"] > 0
    assert capsys.readouterr().err == f"warning: {report['pruning']}\n"
    assert sparsifier.pruning_finished(1)
    assert sparsifier.final_masks(1) is None


def test_a_training_that_ends_before_pruning_does_warns(capsys):
    sparsifier = block_pruning()
    training = Training(sparsifier, network())
    training.step(30)
    assert not sparsifier.pruning_finished(30)
    assert sparsifier.final_masks(30) is None
    sparsifier.on_train_end(training.trainer, training.recogniser)
    warning = "warning: pruning is unfinished: ends at step 40, and training ended at step 30\n"
    assert capsys.readouterr().err == warning
    training.step(40)
    assert sparsifier.pruning_finished(40)
    assert sparsifier.final_masks(40) is sparsifier.masks


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_sparsity": 0}, "target_sparsity=0: must be above 0 and at most max_sparsity=0.99"),
        ({"target_sparsity": 1.2}, "target_sparsity=1.2: must be above 0 and at most max_sparsity=0.99"),
        ({"max_sparsity": 1}, "max_sparsity=1: must be above 0 and below 1"),
        ({"rate_exponent": 2}, "sparsifier.block_pruning.rate_exponent=2: must be from 0 to 1"),
        ({"target_sparsity": None, "schedule": CUBIC}, "schedule=cubic: needs a target_sparsity, such as"),
    ],
)
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        block_pruning(**settings)


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_a_pruned_matrix_learns_at_the_rate_over_its_density(tone_settings, monkeypatch, exponent):
    used = []  # in each step: the rate and the density of every parameter
    step = torch.optim.AdamW.step

    def note(self, closure):
        loss = step(self, closure)
        shares = [(g["lr"], float((g["params"][0] != 0).float().mean())) for g in self.param_groups]
        used.append(dict(zip(names, shares, strict=True)))
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    options = ["sparsifier=bp", "target_sparsity=0.75", "schedule.freq=1", "trainer.max_epochs=6"]
    given = tone_settings(*options, f"sparsifier.block_pruning.rate_exponent={exponent}")
    model = build_recogniser(given).model
    names = [name for name, _ in model.named_parameters()]
    pruned = [m.name for m in block_pruning(prunable=given.prunable).matrices(model)]
    train(given)
    assert len(used) == 30
    for shares in used:
        scheduled, _ = shares[names[-1]]  # of a bias
        for name, (rate, density) in shares.items():
            assert rate == pytest.approx(scheduled * (density**-exponent if name in pruned else 1), rel=1e-5)
    assert used[-1][pruned[0]][1] < 0.6
