"""The order of batches, of files and of shards."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blocksparse_rnn.data.checks import split_usable
from blocksparse_rnn.data.sampler import BucketBatchSampler
from blocksparse_rnn.data.shards import Shard, ShardBatchSampler, ShardedUtterances
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet

DURATIONS = [float(i % 17 + 1) + i / 100 for i in range(45)]


def shards_of(folder: Path, durations: list[float], size: int, window: int) -> ShardedUtterances:
    """Shards of `size` utterances, without their audio."""
    made = []
    for start in range(0, len(durations), size):
        rows = [["a.flac", 512, 1000, seconds, "a", None] for seconds in durations[start : start + size]]
        index = folder / f"{len(durations)}-{start}.jsonl"
        index.write_text("".join(json.dumps(row) + "\n" for row in rows))
        made.append(Shard(folder / f"{start}.tar", index))
    found = ShardedUtterances(made, window=window, longest=60.0)
    check(found)
    return found


def check(utterances: ShardedUtterances) -> None:
    assert not split_usable(utterances, Alphabet("a"), lambda seconds: 1)[1]


@pytest.fixture(scope="module", params=["files", "one window of shards", "several windows of shards"])
def make(request, tmp_path_factory) -> Callable[..., BucketBatchSampler]:
    """A sampler of 45 utterances, from its other arguments."""
    if request.param == "files":
        return lambda **order: BucketBatchSampler(DURATIONS, **order)
    window = 99 if "one" in request.param else 2
    found = shards_of(tmp_path_factory.mktemp("shards"), DURATIONS, 6, window)
    return lambda **order: ShardBatchSampler(found, **order)


def epoch(sampler: BucketBatchSampler, number: int) -> list[list[int]]:
    sampler.set_epoch(number)
    return list(sampler)


@given(st.integers(1, 20), st.integers(0, 5), st.integers(0, 9))
def test_every_utterance_comes_once_an_epoch(make, batch, number, seed):
    sampler = make(batch=batch, seed=seed)
    batches = epoch(sampler, number)
    assert sorted(i for b in batches for i in b) == list(range(45))
    assert len(batches) == len(sampler)


def test_epochs_differ_and_come_back_the_same(make):
    sampler = make(batch=8, seed=0)
    assert epoch(sampler, 1) != epoch(sampler, 2)
    assert epoch(sampler, 1) == epoch(make(batch=8, seed=0), 1)
    assert epoch(sampler, 1) != epoch(make(batch=8, seed=1), 1)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(0, 2))
def test_epochs_of_a_pass_share_its_batches(make, parts, batch, number):
    sampler = make(batch=batch, epochs_per_pass=parts, seed=0)
    epochs = [epoch(sampler, number * parts + part) for part in range(parts)]
    assert {len(batches) for batches in epochs} == {len(sampler)} == {-(-45 // batch) // parts}
    drawn = [i for batches in epochs for b in batches for i in b]
    assert len(drawn) == len(set(drawn)) > 45 - parts * batch


def test_ranks_share_every_batch(make):
    whole = epoch(make(batch=8, seed=0), 1)
    shares = [epoch(make(batch=8, seed=0, rank=r, world=2), 1) for r in (0, 1)]
    for batch, first, second in zip(whole, *shares, strict=True):
        assert sorted(first + second) == sorted(batch)


@pytest.mark.parametrize("parts", [1, 2, 3])
@pytest.mark.parametrize("done", [0, 1])
def test_resuming_goes_on_in_mid_epoch(make, parts, done):
    whole = epoch(make(batch=8, epochs_per_pass=parts, seed=0), 2)
    fresh = make(batch=8, epochs_per_pass=parts, seed=0)
    fresh.resume(2, done)
    assert list(fresh) == whole[done:]
    assert list(fresh) == whole


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_one_window_of_shards_gives_the_order_of_files(tmp_path, parts):
    order = {"batch": 4, "epochs_per_pass": parts, "seed": 3}
    files = BucketBatchSampler(DURATIONS, **order)
    shards = ShardBatchSampler(shards_of(tmp_path, DURATIONS, 6, window=99), **order)
    for number in range(2 * parts + 1):
        assert epoch(files, number) == epoch(shards, number)


def test_memory_stays_while_a_corpus_of_shards_grows_16_times(tmp_path):
    """What the order of an epoch needs, without audio."""
    peaks = []
    for times in (1, 4, 16):
        found = shards_of(tmp_path, [1 + (i * 37 % 101) / 10 for i in range(400 * times)], 50, window=4)
        tracemalloc.start()
        check(found)
        batches = ShardBatchSampler(found, batch=8, seed=0)
        batches.set_epoch(1)
        assert sum(found[index].duration > 0 for batch in batches for index in batch) == 400 * times
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] < 1.25 * peaks[0]


def test_first_epoch_goes_from_short_to_long():
    order = [i for batch in epoch(BucketBatchSampler(DURATIONS, batch=8, seed=0), 0) for i in batch]
    assert order == sorted(range(45), key=DURATIONS.__getitem__)


def test_first_part_of_the_first_pass_goes_from_short_to_long_the_second_does_not():
    sampler = BucketBatchSampler(DURATIONS, batch=2, epochs_per_pass=2, seed=0)
    first, second = ([DURATIONS[b[0]] for b in epoch(sampler, number)] for number in (0, 1))
    assert first == sorted(first)
    assert second != sorted(second)
    assert max(first) > min(second)  # not the shortest of all


def test_weights_that_draw_nothing_are_an_error_and_never_mean_everything():
    with pytest.raises(UserError, match="has no utterance at all"):
        BucketBatchSampler(DURATIONS, batch=8, seed=0, weights=[0.001] * 45)
    assert len(epoch(BucketBatchSampler(DURATIONS, batch=8, seed=0, weights=[0.03] * 45), 1)) == 1
