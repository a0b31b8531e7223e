"""Thresholds worked by hand, and what must hold of any schedule."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.schedule import CubicSchedule, PaperSchedule, Steps


def paper(**changes) -> PaperSchedule:
    settings = {"start_epoch": 1, "ramp_frac": 0.25, "end_frac": 0.5, "ramp_ratio": 1.5, "freq": 5}
    return PaperSchedule(**settings | changes)


def test_a_small_schedule_by_hand():
    schedule = paper()
    steps = schedule.resolve(steps_per_epoch=10, total_steps=80)
    assert steps == Steps(start_itr=10, ramp_itr=20, end_itr=41, freq=5)
    assert list(steps.updates) == [15, 20, 25, 30, 35, 40]
    # theta = 2 q freq / (2 (20 - 10) + 3 (41 - 20)) = 10 q / 83, phi = 15 q / 83
    expected = {
        15: 6 / 5 * 10,
        20: (10 * 11 + 15 * 1) / 5,
        30: (10 * 11 + 15 * 11) / 5,
        40: (10 * 11 + 15 * 21) / 5,
    }
    for itr, numerator in expected.items():
        assert schedule.threshold(itr, steps, q=0.7) == pytest.approx(0.7 * numerator / 83)


@given(st.integers(20, 400), st.integers(4, 60), st.integers(1, 20), st.floats(0.0, 0.5), st.floats(0.5, 1.0))
def test_the_threshold_rises_to_about_q(steps_per_epoch, epochs, freq, ramp_frac, end_frac):
    schedule = paper(freq=freq, ramp_frac=ramp_frac, end_frac=end_frac)
    steps = schedule.resolve(steps_per_epoch, steps_per_epoch * epochs)
    assume(steps.end_itr - steps.start_itr > 20)
    thresholds = [schedule.threshold(itr, steps, q=1.0) for itr in steps.updates]
    assert thresholds == sorted(thresholds)
    assert thresholds[-1] == pytest.approx(1, rel=0.1)
    assert steps.start_itr < steps.updates[0] <= steps.start_itr + freq
    assert steps.updates[-1] == steps.end_itr - 1


def test_the_paper_scale_reaches_q_to_a_thousandth():
    schedule = paper(freq=100, ramp_frac=0.2, end_frac=0.4)
    steps = schedule.resolve(steps_per_epoch=1000, total_steps=20_000)
    assert schedule.threshold(steps.updates[-1], steps, q=0.05) == pytest.approx(0.05, rel=1e-3)


@given(st.integers(5, 100), st.integers(3, 30), st.floats(0.1, 0.99))
def test_the_last_threshold_is_the_quantile_of_the_target(steps_per_epoch, epochs, target):
    for schedule in (paper(), CubicSchedule(start_epoch=1, end_frac=0.5, freq=5)):
        steps = schedule.resolve(steps_per_epoch, steps_per_epoch * epochs)
        assume(steps.updates)
        thresholds = [
            schedule.target_threshold(itr, steps, target, lambda share: 10 * share) for itr in steps.updates
        ]
        assert thresholds == sorted(thresholds)
        assert thresholds[-1] == pytest.approx(10 * target)


def test_the_cubic_schedule_by_hand():
    schedule = CubicSchedule(start_epoch=1, end_frac=0.5, freq=5)
    steps = schedule.resolve(steps_per_epoch=10, total_steps=80)
    assert list(steps.updates) == [15, 20, 25, 30, 35, 40]
    shares = [schedule.target_threshold(itr, steps, 0.9, lambda share: share) for itr in (25, 40)]
    assert shares == pytest.approx([0.9 * (1 - 0.5**3), 0.9])


@pytest.mark.parametrize(("steps_per_epoch", "total"), [(40, 2), (40, 80), (10, 22)])
def test_a_run_that_is_too_short_has_no_updates(steps_per_epoch, total):
    assert not paper().resolve(steps_per_epoch, total).updates


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"start_epoch": -1}, "start_epoch=-1"),
        ({"end_frac": 1.5}, "end_frac=1.5"),
        ({"end_frac": 0.0}, "end_frac=0"),
        ({"ramp_frac": 0.7}, "ramp_frac=0.7"),
        ({"ramp_ratio": 0.0}, "ramp_ratio=0"),
        ({"freq": 0}, "freq=0"),
    ],
)
def test_values_out_of_range_are_refused(change, message):
    with pytest.raises(UserError, match=f"schedule.{message}"):
        paper(**change)
