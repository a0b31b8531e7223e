"""Scores, reference weights and thresholds, worked by hand."""

import math

import pytest
import torch
from pruned_training import SCHEDULE, STEPS

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.prunable import Matrix
from blocksparse_rnn.pruning.sparsifier import DenseWeights
from blocksparse_rnn.pruning.thresholds import ReferenceWeight, TargetSparsity

# Ten blocks of 2x2 whose largest magnitudes are 1 to 10.
BLOCKS = torch.cat([torch.tensor([[k, 0], [0, -k / 2]]) for k in range(1, 11)], dim=1)
MATRICES = [
    Matrix("recurrent", "u", torch.nn.Parameter(BLOCKS), ()),
    Matrix("fully_connected", "w", torch.nn.Parameter(3 * BLOCKS), ()),
]
DENSE = DenseWeights({"u": 2 * BLOCKS, "w": BLOCKS}, "dense run x")


def reference(setting="auto", exponent=None, dense=None) -> ReferenceWeight:
    return ReferenceWeight(lambda q: dense, (2, 2), SCHEDULE, setting, exponent)


@pytest.mark.parametrize(
    ("exponent", "q", "factor"),
    [
        (None, 9, 1),  # 9 of the 10 largest magnitudes are at most 9
        (0.25, 6, math.sqrt(2)),  # 36 of the 40 magnitudes are at most 6, and 4^(1/4) is the root of 2
    ],
)
def test_q_and_its_thresholds_are_per_matrix_type(exponent, q, factor):
    rule = reference(exponent=exponent)
    rule.measure_own(MATRICES, step=10)
    assert rule.q == {"recurrent": q, "fully_connected": 3 * q}
    assert rule.score(BLOCKS).tolist() == [list(range(1, 11))]
    thresholds = rule.thresholds(15, STEPS, {}, {})
    # theta = 2 q freq / (2 (20 - 10) + 3 (41 - 20)) = 10 q / 83, and eps = theta (15 - 10 + 1) / freq
    for m in MATRICES:
        assert thresholds[rule.group(m)] == pytest.approx(rule.q[m.type] * 12 / 83 * factor)


def test_q_is_measured_in_a_dense_run_or_else_in_the_own_weights():
    for dense, q, source in [(DENSE, 18, "dense run x"), (None, 9, "own weights at step 10")]:
        rule = reference(dense=dense)
        rule.measure_dense(MATRICES)
        rule.measure_own(MATRICES, step=10)
        assert (rule.q["recurrent"], rule.q_source) == (q, source)


def test_a_named_dense_run_of_another_model_is_refused_before_training():
    reference("folder", dense=DENSE).check(MATRICES)
    for weights, other in [({"u": BLOCKS}, "has none"), ({"u": BLOCKS, "w": BLOCKS[:, 1:]}, "has 2 x 19")]:
        with pytest.raises(UserError, match=f"q=folder: its w does not fit, {other} .* 2 x 20; give a dense"):
            reference("folder", dense=DenseWeights(weights, "")).check(MATRICES)


def test_a_target_compares_magnitudes_over_the_mean_of_the_nonzero_weights():
    rule = TargetSparsity((1, 2), SCHEDULE, target=0.5, max_sparsity=0.9)
    assert rule.score(torch.tensor([[4.0, -2.0, 0.0, 0.0]]))[0].tolist() == pytest.approx([4 / 3, 0])


def test_the_last_threshold_of_a_target_is_the_quantile_of_all_scores():
    scores = {"u": torch.tensor([[1.0, 5.0]]), "w": torch.tensor([[3.0, 4.0]])}
    half = TargetSparsity((1, 1), SCHEDULE, target=0.5, max_sparsity=0.9)
    # The lines have risen by 6 at step 15 and by 11 + 1.5 * 21 at step 40.
    assert half.thresholds(40, STEPS, scores, scores) == {"score": 3}
    assert half.thresholds(15, STEPS, scores, scores) == {"score": pytest.approx(3 * 6 / 42.5)}
    # All but one block are guarded: the threshold is the highest score, not infinite.
    guarded = {"u": torch.tensor([[1.0, math.inf]]), "w": torch.full((1, 2), math.inf)}
    assert half.thresholds(40, STEPS, scores, guarded) == {"score": 5}
