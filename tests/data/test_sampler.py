"""The order of batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocksparse_rnn.data.sampler import BucketBatchSampler
from blocksparse_rnn.errors import UserError

DURATIONS = [float(i % 17 + 1) + i / 100 for i in range(45)]


def epoch(sampler: BucketBatchSampler, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    return list(sampler)


def test_first_epoch_goes_from_short_to_long():
    order = [i for batch in epoch(BucketBatchSampler(DURATIONS, batch=8, seed=0), 0) for i in batch]
    assert order == sorted(range(45), key=DURATIONS.__getitem__)


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 9))
def test_every_utterance_comes_once_an_epoch(batch, number, seed):
    sampler = BucketBatchSampler(DURATIONS, batch=batch, seed=seed)
    batches = epoch(sampler, number)
    assert sorted(i for b in batches for i in b) == list(range(45))
    assert len(batches) == len(sampler)


def test_epochs_differ_and_come_back_the_same():
    sampler = BucketBatchSampler(DURATIONS, batch=8, seed=0)
    assert epoch(sampler, 1) != epoch(sampler, 2)
    assert epoch(sampler, 1) == epoch(BucketBatchSampler(DURATIONS, batch=8, seed=0), 1)
    assert epoch(sampler, 1) != epoch(BucketBatchSampler(DURATIONS, batch=8, seed=1), 1)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2))
def test_epochs_of_a_pass_share_its_batches(parts, batch, number):
    sampler = BucketBatchSampler(DURATIONS, batch=batch, epochs_per_pass=parts, seed=0)
    epochs = [epoch(sampler, number * parts + part) for part in range(parts)]
    assert {len(batches) for batches in epochs} == {len(sampler)} == {-(-45 // batch) // parts}
    heard = [i for batches in epochs for b in batches for i in b]
    assert len(heard) == len(set(heard)) > 45 - parts * batch


def test_first_part_of_the_first_pass_goes_from_short_to_long_the_second_does_not():
    sampler = BucketBatchSampler(DURATIONS, batch=2, epochs_per_pass=2, seed=0)
    first, second = ([DURATIONS[b[0]] for b in epoch(sampler, number)] for number in (0, 1))
    assert first == sorted(first)
    assert second != sorted(second)
    assert max(first) > min(second)  # not the shortest of all


def test_ranks_share_every_batch():
    whole = epoch(BucketBatchSampler(DURATIONS, batch=8, seed=0), 1)
    shares = [epoch(BucketBatchSampler(DURATIONS, batch=8, seed=0, rank=r, world=2), 1) for r in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(first + second) == sorted(batch)


def test_weights_that_draw_nothing_are_an_error_and_never_mean_everything():
    with pytest.raises(UserError, match="has no utterance at all"):
        BucketBatchSampler(DURATIONS, batch=8, seed=0, weights=[0.001] * 45)
    assert len(epoch(BucketBatchSampler(DURATIONS, batch=8, seed=0, weights=[0.03] * 45), 1)) == 1


@pytest.mark.parametrize("done", [0, 1, 5])
def test_resuming_goes_on_in_mid_epoch(done):
    sampler = BucketBatchSampler(DURATIONS, batch=8, seed=0)
    whole = epoch(sampler, 2)
    fresh = BucketBatchSampler(DURATIONS, batch=8, seed=0)
    fresh.resume(2, done)
    assert list(fresh) == whole[done:]
    assert list(fresh) == whole
