"""Group lasso: the penalty, the proximal step, and zeros that last until the end of a training."""

import math
from typing import Any

import pytest
import torch
from pruned_training import PATTERNS, network

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.blocks import block_max, block_norm, expand
from blocksparse_rnn.pruning.group_lasso import GroupLasso
from blocksparse_rnn.pruning.sparsifier import Context
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.training.recogniser import build_recogniser
from blocksparse_rnn.training.train import train


def lasso(**changes) -> GroupLasso:
    settings: dict[str, Any] = {"block": 4, "lambda_g": 1.0, "max_sparsity": 0.99, "form": "proximal"}
    return GroupLasso(Context(PATTERNS, lambda q: None), **settings | changes)


def test_the_penalty_is_the_sum_of_block_norms():
    sparsifier, model = lasso(block="8x2", lambda_g=0.5, form="loss"), network()
    expected = sum(block_norm(m.weight, (8, 2)).sum().item() for m in sparsifier.matrices(model))
    assert sparsifier.penalty(model).item() == pytest.approx(0.5 * expected, rel=1e-5)


def test_the_proximal_step_soft_thresholds_blocks_exactly():
    sparsifier, model = lasso(lambda_g=2.0), network()
    [matrix] = (m for m in sparsifier.matrices(model) if m.name == "fc.weight")
    before = matrix.weight.detach().clone()
    norms = block_norm(before, (4, 4))
    lr = 1.0001 * float(norms.median()) / 2.0  # half of the blocks become zero
    penalty = sparsifier.proximal_step([matrix], [lr])
    assert penalty == pytest.approx(2.0 * float(norms.sum()), rel=1e-5)
    expected = before * expand((1 - 2.0 * lr / norms).clamp_min(0), (4, 4))
    assert torch.allclose(matrix.weight, expected)
    zero = block_max(matrix.weight.detach(), (4, 4)) == 0
    assert torch.equal(zero, norms <= 2.0 * lr)
    assert 0 < zero.sum() < zero.numel()


def test_a_matrix_keeps_its_best_blocks_where_the_lasso_would_zero_all(capsys):
    sparsifier, model = lasso(max_sparsity=0.95), network()
    matrices = sparsifier.matrices(model)
    norms = {m.name: block_norm(m.weight.detach().clone(), (4, 4)).flatten() for m in matrices}
    for _ in range(2):
        sparsifier.proximal_step(matrices, [100.0] * len(matrices))
    for m in matrices:
        best = norms[m.name].topk(math.ceil(0.05 * norms[m.name].numel())).indices
        kept = block_norm(m.weight.detach(), (4, 4)).flatten() > 1e-10
        assert set(kept.nonzero().flatten().tolist()) == set(best.tolist())
    assert capsys.readouterr().err.count("fc.weight would lose more than 95% of its blocks") == 1


def test_a_negative_lambda_is_refused():
    with pytest.raises(UserError, match=r"^sparsifier\.group_lasso\.lambda_g=-1: must not be negative"):
        lasso(lambda_g=-1)


@pytest.mark.parametrize(
    "options",
    [
        ["optimizer=adamw", "optimizer.decay=1", "optimizer.end_factor=1e-6"],
        ["optimizer=nesterov"],
        ["optimizer=adamw", "trainer.max_steps=18"],
    ],
)
def test_blocks_that_were_zero_in_the_last_epoch_are_zero_at_the_end(tone_settings, monkeypatch, options):
    zeros = []  # after each step
    proximal_step = GroupLasso.proximal_step

    def note(self, matrices, rates):
        penalty = proximal_step(self, matrices, rates)
        zeros.append(torch.cat([block_max(m.weight.detach(), (4, 4)).flatten() == 0 for m in matrices]))
        return penalty

    monkeypatch.setattr(GroupLasso, "proximal_step", note)
    given = tone_settings(
        "sparsifier=gl", "scale.lambda_gl=5", "optimizer.lr=0.005", *options, "trainer.max_epochs=4"
    )
    train(given)
    recogniser = build_recogniser(given)
    recogniser.load_state_dict(load_weights(RunFolder.of(given).best))
    kept = [block_max(m.weight.detach(), (4, 4)).flatten() > 0 for m in lasso().matrices(recogniser.model)]
    last_epoch = zeros[15:]  # of 5 steps each
    assert torch.equal(~torch.cat(kept), torch.stack(last_epoch).any(dim=0))
    assert 0.1 < torch.cat(kept).float().mean() < 0.99
    if "optimizer.end_factor=1e-6" in options:  # the rate falls to nothing
        assert zeros[-1].sum() < (~torch.cat(kept)).sum()
