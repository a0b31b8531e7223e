"""What holds of every sparsifier: checks before a run, what a run reports, and resume to the bit."""

import csv

import pytest
import torch
from mistakes import command_line_problems
from pruned_training import block_pruning, network

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.prunable import count_zeros
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import identity, run_name
from blocksparse_rnn.training.recogniser import build_recogniser
from blocksparse_rnn.training.train import train

SPARSE = ["block=4", "target_sparsity=0.75", "schedule.freq=1", "trainer.max_epochs=6", "trainer.log_every=1"]


def slow(*values):
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]


def metrics(run: RunFolder) -> list[tuple[str, ...]]:
    with open(run.metrics, newline="") as file:
        return [tuple(row[:4]) for row in csv.reader(file)]


def test_no_block_spans_two_gates():
    block_pruning(block=16).check(network("gru"))
    block_pruning(block="96x16").check(network("gru"))
    with pytest.raises(
        UserError, match=r"block=9x4: 9 rows do not divide the 96 rows of a gate of first.wei"
    ):
        block_pruning(block="9x4").check(network("gru"))  # 288 rows in all would divide
    with pytest.raises(UserError, match=r"block=192x16: 192 rows do not divide"):
        block_pruning(block="192x16").check(network("gru"))


def test_patterns_that_name_no_matrix_are_refused():
    block_pruning(prunable={"recurrent": ["first.*"]}).check(network())  # its biases are no matrices
    with pytest.raises(UserError, match=r"^prunable.recurrent: no matrix is named foo; there are first.weig"):
        block_pruning(prunable={"recurrent": ["foo"]}).check(network())
    with pytest.raises(UserError, match=r"^prunable: names no matrix, so there is nothing to prune"):
        block_pruning(prunable={"recurrent": []}).check(network())


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["block=24"], "block=24x24: 24 rows do not divide the 2560 rows of a gate of recurrent.0.weight_ih"),
        (["block=4.0"], "block=4.0: must be a side or ROWSxCOLUMNS, such as 4 or 8x2"),
        (["target_sparsity=much"], "target_sparsity=much: must be a valid number"),
        (["q=nowhere"], "q=nowhere: there is no such folder"),
        (["sparsifier=group"], "sparsifier=group: unknown; choose one of bp, gl, glp, none"),
        (["sparsifier=gl", "sparsifier.group_lasso.form=prox"], "sparsifier.group_lasso.form=prox: must be"),
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


def test_settings_that_a_sparsifier_does_not_use_leave_the_identity(tone_settings):
    dense = tone_settings()
    for same in ("block=8", "target_sparsity=0.5", "schedule.freq=3", "schedule=cubic", "q=elsewhere"):
        assert identity(tone_settings(same).plain()) == identity(dense.plain()), same
    lasso = tone_settings("sparsifier=gl")
    assert identity(tone_settings("sparsifier=gl", "target_sparsity=0.5").plain()) == identity(lasso.plain())
    for other in ("block=8", "sparsifier.group_lasso.lambda_g=9.0"):
        assert identity(tone_settings("sparsifier=gl", other).plain()) != identity(lasso.plain()), other
    assert run_name(tone_settings("sparsifier=glp", "block=8x2").plain()).startswith("gru-16-glp-b8x2-s0-")


@pytest.mark.parametrize("sparsifier", ["bp", "gl", "glp"])
def test_a_run_reports_what_its_weights_hold(tone_settings, sparsifier):
    given = tone_settings(f"sparsifier={sparsifier}", "model=rnn", *SPARSE, "scale.lambda_gl=20")
    result = train(given)
    run = RunFolder.of(given)
    recogniser = build_recogniser(given)
    recogniser.load_state_dict(load_weights(run.best))
    zeros = count_zeros(recogniser.model, given.prunable)
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


@pytest.mark.parametrize(
    "choice", ["sparsifier=glp", *slow("sparsifier=bp", "sparsifier=gl", "target_sparsity=null")]
)
@pytest.mark.parametrize("stop_after", [8, *slow(3, 12, 20)])
def test_a_run_stopped_while_pruning_ends_like_an_undisturbed_one(
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
