"""Letters, decoding, error rates."""

import random

import jiwer
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet, ctc_frames_needed
from blocksparse_rnn.speech.greedy import GreedyDecoder
from blocksparse_rnn.speech.metrics import ErrorCounts

ALPHABET = Alphabet("abc '")
WORDS = st.text("abc ", min_size=1, max_size=12).map(lambda s: " ".join(s.split())).filter(bool)


def test_encoding_comes_back():
    assert ALPHABET.decode(ALPHABET.encode("a cab")) == "a cab"
    assert ALPHABET.unknown("a dab!") == {"d", "!"}
    with pytest.raises(UserError, match="once"):
        Alphabet("aa")


def test_frames_needed_count_a_blank_between_twins():
    assert ctc_frames_needed(ALPHABET.encode("abba")) == 5
    assert ctc_frames_needed([]) == 0


def test_greedy_decoding_merges_repeats_parts_twins_at_blanks_and_stops_at_the_length():
    blank = ALPHABET.blank
    best = torch.tensor([[0, 0, blank, 0, 1, 1, blank, 2], [2, 2, blank, blank, 0, 0, 0, 0]])
    logits_BTV = torch.nn.functional.one_hot(best, len(ALPHABET)).float()
    assert GreedyDecoder()(logits_BTV, [8, 4], ALPHABET) == ["aabc", "c"]


def test_corpus_error_rate_is_a_ratio_of_sums():
    counts = ErrorCounts()
    counts.add("abcdefgh", "abcdefgx")
    counts.add("ab", "")
    assert counts.cer == 3 / 10
    assert counts.wer == 1.0


def test_empty_references():
    counts = ErrorCounts()
    counts.add("", "")
    assert counts.cer == 0
    counts.add("", "a")
    assert counts.cer == float("inf")


def test_error_rates_of_10000_pairs_equal_jiwer():
    rng = random.Random(0)
    corners = [
        ("a", ""),
        ("a b", "ab"),
        ("ab", "a b"),
        ("a", "a"),
        ("a a a", "a"),
        ("äé 'n", "aé n"),
        ("a", "b c d"),
    ]
    pairs = corners + [
        tuple(
            " ".join("".join(rng.choices("abcd'é", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 9)))
            for _ in "rh"
        )
        for _ in range(10_000 - len(corners))
    ]
    total = ErrorCounts()
    # The corners one by one, the others in tens: jiwer takes its time.
    for few in [
        *([pair] for pair in corners),
        *(pairs[i : i + 10] for i in range(len(corners), len(pairs), 10)),
    ]:
        counts = ErrorCounts()
        for pair in few:
            counts.add(*pair)
            total.add(*pair)
        references, hypotheses = map(list, zip(*few, strict=True))
        assert counts.cer == pytest.approx(jiwer.cer(references, hypotheses))
        assert counts.wer == pytest.approx(jiwer.wer(references, hypotheses))
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert total.cer == pytest.approx(jiwer.cer(references, hypotheses))
    assert total.wer == pytest.approx(jiwer.wer(references, hypotheses))


@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_error_rates_equal_jiwer(pairs):
    counts = ErrorCounts()
    for reference, hypothesis in pairs:
        counts.add(reference, hypothesis)
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert counts.cer == pytest.approx(jiwer.cer(references, hypotheses))
    assert counts.wer == pytest.approx(jiwer.wer(references, hypotheses))
