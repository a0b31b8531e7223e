"""Sparsifiers: which blocks go, that they stay gone, and what a run says about it."""

import csv
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import image
from torch import nn

from blocksparse_rnn.config.compose import command_line_problems
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.layers import FullyConnected, GRULayer, RNNLayer
from blocksparse_rnn.pruning.block_pruning import BlockPruning
from blocksparse_rnn.pruning.blocks import block_max, block_norm, expand
from blocksparse_rnn.pruning.group_lasso import GroupLasso
from blocksparse_rnn.pruning.mask_pictures import draw_blocks
from blocksparse_rnn.pruning.prunable import count_zeros
from blocksparse_rnn.pruning.schedule import CubicSchedule, PaperSchedule, Steps
from blocksparse_rnn.pruning.sparsifier import Context, DenseWeights
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import identity, run_name
from blocksparse_rnn.training.train import build_recogniser, train

PATTERNS = {"recurrent": ["*.weight_hh*"], "fully_connected": ["*.weight_ih", "fc.weight"]}
SCHEDULE = PaperSchedule(start_epoch=1, ramp_frac=0.25, end_frac=0.5, ramp_ratio=1.5, freq=5)
STEPS = Steps(start_itr=10, ramp_itr=20, end_itr=41, freq=5)


def network(cell: str = "rnn", width: int = 96) -> nn.Module:
    torch.manual_seed(0)
    layer = {"rnn": RNNLayer, "gru": GRULayer}[cell]
    model = nn.Module()
    model.first, model.second, model.fc = layer(32, width), layer(width, width), FullyConnected(width)
    return model


def pruning(**changes) -> BlockPruning:
    given = {
        "block": 4,
        "target_sparsity": 0.9,
        "q": "auto",
        "size_exponent": None,
        "skip_zeros": None,
        "max_sparsity": 0.99,
        "rate_exponent": 0.0,
    }
    context = Context(PATTERNS, changes.pop("find_dense", lambda q: None))
    return BlockPruning(context, **{**given, "schedule": SCHEDULE} | changes)


def lasso(**changes) -> GroupLasso:
    given = {"block": 4, "lambda_g": 1.0, "max_sparsity": 0.99, "form": "proximal"}
    return GroupLasso(Context(PATTERNS, lambda q: None), **given | changes)


def begin(sparsifier: BlockPruning, model: nn.Module) -> None:
    """What on_train_start does, without a trainer."""
    sparsifier.steps = STEPS
    sparsifier.masks = {
        m.name: torch.ones_like(block_max(m.weight, sparsifier.block), dtype=torch.bool)
        for m in sparsifier.matrices(model)
    }


def prune(sparsifier: BlockPruning, model: nn.Module, itr: int) -> None:
    matrices = sparsifier.matrices(model)
    sparsifier._update(itr, matrices)
    sparsifier._apply(matrices, [])


def disturb(model: nn.Module, generator: torch.Generator) -> None:
    """Some training: every weight moves."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator))


@pytest.mark.parametrize("cell", ["rnn", "gru"])
@pytest.mark.parametrize("block", [1, 4, 8, 16, "8x2"])
@pytest.mark.parametrize("schedule", [SCHEDULE, CubicSchedule(start_epoch=1, end_frac=0.5, freq=5)])
def test_a_target_is_met_with_any_block(cell, block, schedule):
    model, sparsifier = network(cell), pruning(block=block, schedule=schedule, target_sparsity=0.8)
    begin(sparsifier, model)
    before = 0.0
    for itr in STEPS.updates:
        prune(sparsifier, model, itr)
        after = count_zeros(model, PATTERNS).prunable
        assert after >= before
        before = after
        disturb(model, torch.Generator().manual_seed(itr))
        sparsifier._apply(sparsifier.matrices(model), [])
    blocks = sparsifier.report()["blocks"]["total"]
    assert before == pytest.approx(0.8, abs=1.5 / blocks)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["rnn", "gru"]),
    st.sampled_from([1, 2, 4, "8x2", "2x8", 16]),
    st.floats(0.1, 0.99),
    st.integers(0, 10_000),
)
def test_masks_only_shrink_and_pruned_blocks_are_zero(cell, block, target, seed):
    model, sparsifier = network(cell), pruning(block=block, target_sparsity=target)
    generator = torch.Generator().manual_seed(seed)
    begin(sparsifier, model)
    for itr in STEPS.updates:
        before = {name: mask.clone() for name, mask in sparsifier.masks.items()}
        prune(sparsifier, model, itr)
        for matrix in sparsifier.matrices(model):
            mask = sparsifier.masks[matrix.name]
            assert not (mask & ~before[matrix.name]).any()
            assert torch.equal(block_max(matrix.weight, sparsifier.block) > 0, mask)
            assert mask.any()
        sparsifier.verify(model)
        disturb(model, generator)
        sparsifier._apply(sparsifier.matrices(model), [])
    with torch.no_grad():
        pruned = next(m for m in sparsifier.matrices(model) if not sparsifier.masks[m.name].all())
        pruned.weight[~expand(sparsifier.masks[pruned.name], sparsifier.block)] = 1e-3
    with pytest.raises(AssertionError, match=pruned.name):
        sparsifier.verify(model)


@pytest.mark.parametrize("block", [1, 4, 16, "8x2"])
@pytest.mark.parametrize("exponent", [None, 0.25])
def test_with_q_thresholds_are_per_matrix_type_and_end_at_q(block, exponent):
    dense = network()
    with torch.no_grad():
        dense.fc.weight.mul_(3)
    found = DenseWeights(dict(dense.named_parameters()), "dense run x")
    sparsifier = pruning(
        block=block, target_sparsity=None, size_exponent=exponent, find_dense=lambda q: found
    )
    model = network()
    begin(sparsifier, model)
    sparsifier._measure_dense(sparsifier.matrices(model))
    side = sparsifier.block if exponent is None else (1, 1)
    factor = 1 if exponent is None else math.prod(sparsifier.block) ** 0.25
    for kind in PATTERNS:
        of_kind = [m.weight for m in sparsifier.matrices(dense) if m.type == kind]
        values = torch.cat([block_max(w.detach(), side).flatten() for w in of_kind])
        assert sparsifier.q[kind] == pytest.approx(values.quantile(0.9).item(), rel=0.02)
    assert sparsifier.report()["q_source"] == "dense run x"
    for itr in STEPS.updates:
        raw = {m.name: block_max(m.weight, sparsifier.block) for m in sparsifier.matrices(model)}
        prune(sparsifier, model, itr)
        for kind, q in sparsifier.q.items():
            assert sparsifier.thresholds[kind] == pytest.approx(factor * SCHEDULE.threshold(itr, STEPS, q))
        for matrix in sparsifier.matrices(model):  # raw magnitudes are compared
            expected = raw[matrix.name] >= sparsifier.thresholds[matrix.type]
            best = raw[matrix.name].flatten().topk(math.ceil(0.01 * raw[matrix.name].numel())).indices
            expected.view(-1)[best] = True  # the guard
            assert torch.equal(sparsifier.masks[matrix.name], expected)
    for kind, q in sparsifier.q.items():
        assert sparsifier.thresholds[kind] == pytest.approx(factor * q, rel=0.05)


@pytest.mark.parametrize("block", [1, 4, 16])
@pytest.mark.parametrize("of", ["own", "dense"])
def test_q_aims_at_nine_tenths_for_any_block(block, of):
    model = network()
    found = DenseWeights(dict(network().named_parameters()), "dense run x")
    sparsifier = pruning(block=block, target_sparsity=None, find_dense=lambda q: found)
    begin(sparsifier, model)
    if of == "own":
        sparsifier._measure_own(sparsifier.matrices(model), step=10)
        assert sparsifier.q_source == "own weights at step 10"
    else:
        sparsifier._measure_dense(sparsifier.matrices(model))
    for itr in STEPS.updates:
        prune(sparsifier, model, itr)
    assert count_zeros(model, PATTERNS).prunable == pytest.approx(0.9, abs=0.04)


def test_one_cut_for_all_compares_scores_relative_to_their_matrix():
    model, sparsifier = network(), pruning(target_sparsity=0.9)
    with torch.no_grad():  # raw magnitudes would empty the first layer and leave the second alone
        model.first.weight_hh.mul_(0.01)
        model.second.weight_hh.mul_(100)
    begin(sparsifier, model)
    prune(sparsifier, model, STEPS.updates[-1])
    shares = count_zeros(model, PATTERNS).matrices
    assert all(0.8 < share < 0.97 for share in shares.values()), shares


@pytest.mark.parametrize("block", [8, 16])
def test_matrices_that_lose_blocks_first_do_not_escape_later_cuts(block):
    model, sparsifier = network(width=256), pruning(block=block, target_sparsity=0.9)
    matrices, generator = sparsifier.matrices(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for i, m in enumerate(matrices):
            m.weight.normal_(generator=generator)
            m.weight.mul_(m.weight.abs() ** (0.1 * i / len(matrices)))  # tails from light to a little longer
    begin(sparsifier, model)
    for itr in STEPS.updates:
        prune(sparsifier, model, itr)
    shares = [(~mask).double().mean().item() for mask in sparsifier.masks.values()]
    assert max(shares) - min(shares) < 0.15, shares


def test_a_matrix_keeps_its_best_blocks_where_all_would_go(capsys):
    model, sparsifier = network(), pruning(target_sparsity=None, max_sparsity=0.95)
    with torch.no_grad():
        model.fc.weight.mul_(1e-3)
    begin(sparsifier, model)
    sparsifier.q = {"recurrent": 1e-9, "fully_connected": 0.01}
    best = block_max(model.fc.weight.detach(), (4, 4)).flatten().topk(29).indices
    for itr in STEPS.updates:
        prune(sparsifier, model, itr)
    kept = sparsifier.masks["fc.weight"]
    assert kept.sum() == 29  # 5 % of 576, rounded up
    assert set(kept.flatten().nonzero().flatten().tolist()) == set(best.tolist())
    assert capsys.readouterr().err.count("fc.weight would lose more than 95% of its blocks") == 1


def test_blocks_never_straddle_gates():
    pruning(block=16).check(network("gru"))
    pruning(block="96x16").check(network("gru"))
    with pytest.raises(
        UserError, match=r"block=9x4: 9 rows do not divide the 96 rows of a gate of first.weight_ih"
    ):
        pruning(block="9x4").check(network("gru"))  # 288 rows in all would divide
    with pytest.raises(UserError, match=r"block=192x16: 192 rows do not divide"):
        pruning(block="192x16").check(network("gru"))


def test_sparsity_is_counted_by_gate_too():
    model = network("gru")
    with torch.no_grad():
        model.first.weight_hh[:96] = 0
        model.first.weight_hh[96:120] = 0
    shares = count_zeros(model, PATTERNS).matrices
    gates = [shares[f"first.weight_hh.{gate}"] for gate in "rzn"]
    assert gates == pytest.approx([1, 0.25, 0])
    assert shares["first.weight_hh"] == pytest.approx(1.25 / 3)


def test_momentum_of_pruned_weights_is_cleared():
    model, sparsifier = network(), pruning()
    begin(sparsifier, model)
    for make in (
        lambda p: torch.optim.AdamW(p, lr=0.1),
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
    ):
        optimizer = make(model.parameters())
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        matrices = sparsifier.matrices(model)
        sparsifier._update(40, matrices)
        sparsifier._apply(matrices, [optimizer])
        for m in matrices:
            pruned = ~expand(sparsifier.masks[m.name], sparsifier.block)
            assert pruned.any()
            moments = [v for v in optimizer.state[m.weight].values() if v.shape == m.weight.shape]
            assert moments
            assert all((moment[pruned] == 0).all() for moment in moments)


@pytest.mark.parametrize("width", [96, 32])  # of 32, a matrix has 16 blocks of 8x8 and keeps at least one
def test_a_target_at_the_limit_is_approached_in_steps(width):
    model = network(width=width)
    sparsifier = pruning(block=8, target_sparsity=0.99)
    begin(sparsifier, model)
    reached = []
    for itr in STEPS.updates:
        prune(sparsifier, model, itr)
        reached.append(count_zeros(model, PATTERNS).prunable)
    assert reached[0] < 0.2
    assert sorted(reached) == reached
    assert len(set(reached)) > 3
    assert all(math.isfinite(threshold) for threshold in sparsifier.thresholds.values())
    blocks = {name: mask.numel() for name, mask in sparsifier.masks.items()}
    assert {name: int(mask.sum()) for name, mask in sparsifier.masks.items()} == {
        name: math.ceil(n / 100) for name, n in blocks.items()
    }


def test_the_proximal_step_soft_thresholds_blocks_exactly():
    sparsifier, model = lasso(lambda_g=2.0), network()
    [matrix] = (m for m in sparsifier.matrices(model) if m.name == "fc.weight")
    before = matrix.weight.detach().clone()
    norms = block_norm(before, (4, 4))
    lr = 1.0001 * float(norms.median()) / 2.0  # half of the blocks vanish
    penalty = sparsifier.shrink([matrix], [lr])
    assert penalty == pytest.approx(2.0 * float(norms.sum()), rel=1e-5)
    expected = before * expand((1 - 2.0 * lr / norms).clamp_min(0), (4, 4))
    assert torch.allclose(matrix.weight, expected)
    zero = block_max(matrix.weight.detach(), (4, 4)) == 0
    assert torch.equal(zero, norms <= 2.0 * lr)
    assert 0 < zero.sum() < zero.numel()


@pytest.mark.parametrize(
    "options",
    [
        ["optimizer=adamw", "optimizer.decay=1", "optimizer.end_factor=1e-6"],
        ["optimizer=nesterov"],
        ["optimizer=adamw", "trainer.max_steps=18"],
    ],
)
def test_what_was_zero_in_the_last_epoch_is_zero_in_the_end(tone_settings, monkeypatch, options):
    zeros = []  # after each step
    shrink = GroupLasso.shrink

    def note(self, matrices, rates):
        penalty = shrink(self, matrices, rates)
        zeros.append(torch.cat([block_max(m.weight.detach(), (4, 4)).flatten() == 0 for m in matrices]))
        return penalty

    monkeypatch.setattr(GroupLasso, "shrink", note)
    given = tone_settings(
        "sparsifier=gl", "scale.lambda_gl=5", "optimizer.lr=0.005", *options, "trainer.max_epochs=4"
    )
    train(given)
    recogniser = build_recogniser(given)
    recogniser.load_state_dict(load_weights(RunFolder.of(given).best))
    left = [block_max(m.weight.detach(), (4, 4)).flatten() > 0 for m in lasso().matrices(recogniser.model)]
    last_epoch = zeros[15:]  # of 5 steps each
    assert torch.equal(~torch.cat(left), torch.stack(last_epoch).any(dim=0))
    assert 0.1 < torch.cat(left).float().mean() < 0.99
    if "optimizer.end_factor=1e-6" in options:  # the rate falls to nothing
        assert zeros[-1].sum() < (~torch.cat(left)).sum()


def test_pruning_that_the_clock_cuts_short_is_said(tone_settings, capsys):
    options = ["trainer.max_epochs=999", "trainer.max_time=00:00:00:01"]
    given = tone_settings("sparsifier=bp", "target_sparsity=0.5", *options)
    result = train(given)
    assert f"warning: pruning is {result['pruning']}, and training ended at " in capsys.readouterr().err
    assert result["pruning"].startswith("unfinished: ends at step ")


def test_a_matrix_keeps_its_best_blocks_where_the_lasso_would_take_all(capsys):
    sparsifier, model = lasso(max_sparsity=0.95), network()
    matrices = sparsifier.matrices(model)
    norms = {m.name: block_norm(m.weight.detach().clone(), (4, 4)) for m in matrices}
    for _ in range(2):
        sparsifier.shrink(matrices, [100.0] * len(matrices))
    for m in matrices:
        least = math.ceil(0.05 * norms[m.name].numel())
        kept = block_norm(m.weight.detach(), (4, 4)).flatten()
        assert set((kept > 1e-10).nonzero().flatten().tolist()) == set(
            norms[m.name].flatten().topk(least).indices.tolist()
        )
    assert capsys.readouterr().err.count("fc.weight would lose more than 95% of its blocks") == 1


def test_the_penalty_is_the_sum_of_block_norms():
    sparsifier, model = lasso(block="8x2", lambda_g=0.5, form="loss"), network()
    expected = sum(block_norm(m.weight, (8, 2)).sum().item() for m in sparsifier.matrices(model))
    assert sparsifier.penalty(model).item() == pytest.approx(0.5 * expected, rel=1e-5)


# Whole trainings.

SPARSE = ["block=4", "target_sparsity=0.75", "schedule.freq=1", "trainer.max_epochs=6", "trainer.log_every=1"]


def metrics(run: RunFolder) -> list[tuple[str, ...]]:
    with open(run.metrics, newline="") as file:
        return [tuple(row[:4]) for row in csv.reader(file)]


@pytest.mark.parametrize("sparsifier", ["bp", "gl", "glp"])
def test_a_run_tells_what_its_weights_hold(tone_settings, sparsifier):
    given = tone_settings(f"sparsifier={sparsifier}", "model=rnn", *SPARSE, "scale.lambda_gl=20")
    result = train(given)
    run = RunFolder.of(given)
    recogniser = build_recogniser(given)
    recogniser.load_state_dict(load_weights(run.best))
    zeros = count_zeros(recogniser.model, given["prunable"])
    assert result["sparsity/prunable"] == zeros.prunable
    assert result["parameters"]["nonzero"] == zeros.nonzero
    assert 0.2 < zeros.prunable < 1
    if sparsifier == "bp":
        assert zeros.prunable == pytest.approx(0.75, abs=0.005)
        assert result["pruning"].startswith("finished at step")
        assert result["best_step"] >= int(result["pruning"].rsplit(" ", 1)[1])
    logged = {row[2] for row in metrics(run)}
    expected = {"sparsity/total", "sparsity/prunable", "sparsity/fc.weight", "block_norm/recurrent"}
    expected |= {"train/group_lasso"} if "g" in sparsifier else set()
    expected |= {"threshold/score"} if "p" in sparsifier else set()
    assert expected <= logged
    assert (run.path / "masks.png").stat().st_size > 10_000


@pytest.mark.parametrize("exponent", [0.0, 0.5])
def test_what_pruning_leaves_learns_at_the_rate_over_its_density(tone_settings, monkeypatch, exponent):
    used = []  # in each step: the rate and the density of every parameter
    step = torch.optim.AdamW.step

    def note(self, closure):
        loss = step(self, closure)
        shares = [(g["lr"], float((g["params"][0] != 0).float().mean())) for g in self.param_groups]
        used.append(dict(zip(names, shares, strict=True)))
        return loss

    monkeypatch.setattr(torch.optim.AdamW, "step", note)
    given = tone_settings("sparsifier=bp", *SPARSE, f"sparsifier.block_pruning.rate_exponent={exponent}")
    names = [name for name, _ in build_recogniser(given).model.named_parameters()]
    train(given)
    pruned = [m.name for m in pruning().matrices(build_recogniser(given).model)]
    assert len(used) == 30
    for shares in used:
        scheduled, _ = shares[names[-1]]  # of a bias
        for name, (rate, density) in shares.items():
            assert rate == pytest.approx(scheduled * (density**-exponent if name in pruned else 1), rel=1e-5)
    assert used[-1][pruned[0]][1] < 0.6


@pytest.mark.parametrize(
    "choice", ["sparsifier=bp", "sparsifier=gl", "sparsifier=glp", "target_sparsity=null"]
)
@pytest.mark.parametrize("stop_after", [8, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 12, 20))])
def test_a_run_stopped_in_mid_ramp_ends_as_if_it_had_not_been(
    tone_settings, tmp_path, power_cut, choice, stop_after
):
    options = ["sparsifier=bp", *SPARSE, choice, "scale.lambda_gl=20"]
    undisturbed = tone_settings(*options, f"outputs={tmp_path / 'undisturbed'}")
    expected = train(undisturbed)
    stopped = tone_settings(*options)
    with power_cut(stop_after):
        train(stopped)
    result = train(stopped)
    assert result["resumed"]
    for name, weight in load_weights(RunFolder.of(stopped).best).items():
        assert torch.equal(weight, load_weights(RunFolder.of(undisturbed).best)[name]), name
    assert metrics(RunFolder.of(stopped)) == metrics(RunFolder.of(undisturbed))
    for key in ("pruning", "q", "q_source", "thresholds", "blocks", "sparsity/matrices"):
        assert result.get(key) == expected.get(key), key


def test_masks_of_another_schedule_are_refused(tone_settings, power_cut):
    given = tone_settings("sparsifier=bp", *SPARSE)
    with power_cut(8):
        train(given)
    run = RunFolder.of(given)
    checkpoint = torch.load(run.last, weights_only=True)
    checkpoint["callbacks"]["BlockPruning"]["steps"]["freq"] = 7
    torch.save(checkpoint, run.last)
    with pytest.raises(UserError, match="belong to other settings"):
        train(given)


def test_patterns_that_name_no_matrix_are_refused(tone_settings):
    pruned = ("sparsifier=bp", "target_sparsity=0.5")
    with pytest.raises(
        UserError, match=r"^prunable.recurrent: no matrix is named foo; there are recurrent.0"
    ):
        tone_settings(*pruned, "prunable.recurrent=[foo]")
    assert tone_settings(*pruned, "prunable.recurrent=['recurrent.*']")  # its biases are no matrices
    with pytest.raises(UserError, match=r"^prunable: names no matrix, so there is nothing to prune"):
        tone_settings(*pruned, "prunable.recurrent=[]", "prunable.fully_connected=[]")


def test_a_schedule_longer_than_the_run_prunes_nothing_and_says_so(tone_settings, capsys):
    given = tone_settings("sparsifier=bp", "target_sparsity=0.5", "trainer.max_steps=2")
    result = train(given)
    assert result["pruning"].startswith("nothing pruned: schedule with start_epoch=0.5")
    assert result["sparsity/prunable"] == 0
    assert "warning: nothing pruned" in capsys.readouterr().err


def test_q_comes_from_the_dense_run_where_there_is_one(tone_settings):
    sparse = ["sparsifier=bp", "schedule.start_epoch=1", "schedule.end_frac=0.4", "schedule.freq=1"]
    sparse += ["trainer.max_epochs=4"]
    alone = train(tone_settings(*sparse))
    assert alone["q_source"] == "own weights at step 5"
    dense = tone_settings("trainer.max_epochs=2")
    train(dense)
    name = RunFolder.of(dense).path.name
    found = train(tone_settings(*sparse, "block=8"))
    assert found["q_source"] == f"dense run {name}"
    other_seed = train(tone_settings(*sparse, "seed=1"))
    assert other_seed["q_source"] == "own weights at step 5"
    named = train(tone_settings(*sparse, "block=8", "seed=2", f"q={RunFolder.of(dense).path}"))
    assert named["q"] == found["q"]

    with pytest.raises(UserError, match=r"q=.*recurrent.0.weight_ih does not fit, .*48 x 256 .* 96 x 256"):
        tone_settings(*sparse, "width=32", f"q={RunFolder.of(dense).path}")
    pruned = RunFolder.of(tone_settings(*sparse, "seed=1")).path
    with pytest.raises(UserError, match="is a pruned run"):
        tone_settings(*sparse, f"q={pruned}")
    (pruned / "result.json").unlink()
    with pytest.raises(UserError, match="is no finished run"):
        tone_settings(*sparse, f"q={pruned}")


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["block=24"], "block=24x24: 24 rows do not divide the 2560 rows of a gate of recurrent.0.weight_ih"),
        (["block=8y2"], "block=8y2: must be a side or ROWSxCOLUMNS, such as 4 or 8x2"),
        (["block=0"], "block=0: must be a side or ROWSxCOLUMNS, such as 4 or 8x2"),
        (["target_sparsity=1.2"], "target_sparsity=1.2: must be above 0 and at most max_sparsity=0.99"),
        (["target_sparsity=much"], "target_sparsity=much: must be a valid number"),
        (["schedule=cubic"], "schedule=cubic: needs a target_sparsity, such as 0.9"),
        (["schedule.freq=0"], "schedule.freq=0: must be at least 1"),
        (["q=nowhere"], "q=nowhere: there is no such folder"),
        (["sparsifier=group"], "sparsifier=group: unknown; choose one of bp, gl, glp, none"),
        (
            ["sparsifier=glp", "sparsifier.group_lasso.lambda_g=-1"],
            "sparsifier.group_lasso.lambda_g=-1: must",
        ),
        (["sparsifier=gl", "sparsifier.group_lasso.form=prox"], "sparsifier.group_lasso.form=prox: must be"),
        (["block=4.0"], "block=4.0: must be a side or ROWSxCOLUMNS, such as 4 or 8x2"),
        (["model.hidden_size=20"], "model.hidden_size=20: differs from width=2560; set width alone"),
        (
            ["sparsifier.block_pruning.block=8"],
            "sparsifier.block_pruning.block=8: differs from block=4; set block alone",
        ),
        (["sparsifier=gl", "skip_zeros=true"], "skip_zeros=true: a lasso alone never ends pruning"),
    ],
)
def test_mistakes_are_one_line_each(overrides, line):
    problems = command_line_problems(["sparsifier=bp", *overrides])
    assert len(problems) == 1
    assert problems[0].startswith(line)


def test_what_a_sparsifier_does_not_use_is_no_other_run(tone_settings):
    dense = tone_settings()
    for same in ("block=8", "target_sparsity=0.5", "schedule.freq=3", "schedule=cubic", "q=elsewhere"):
        assert identity(tone_settings(same)) == identity(dense), same
    lasso = tone_settings("sparsifier=gl")
    assert identity(tone_settings("sparsifier=gl", "target_sparsity=0.5")) == identity(lasso)
    for other in ("block=8", "sparsifier.group_lasso.lambda_g=9.0"):
        assert identity(tone_settings("sparsifier=gl", other)) != identity(lasso), other
    assert run_name(tone_settings("sparsifier=glp", "block=8x2")).startswith("gru-16-glp-b8x2-s0-")


def test_a_matrix_too_large_to_be_drawn_in_full_fills_its_frame(tmp_path):
    """A GRU whose blocks outnumber the pixels: marks of its gates must not stretch the axes beyond the picture."""
    layer = GRULayer(16, 512)
    draw_blocks(layer, {"all": ["weight_hh"]}, (4, 4), tmp_path / "masks.png")
    dark_HW = image.imread(tmp_path / "masks.png")[:, :, :3].max(axis=2) < 0.2
    column_H = dark_HW[:, dark_HW.sum(axis=0).argmax()]
    bottom = column_H.nonzero()[0].max()  # of the frame
    assert column_H[bottom - 100 : bottom + 1].all()
