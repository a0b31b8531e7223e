"""Letters, decoding, error rates."""

import jiwer
import pytest
import torch
from hypothesis import example, given, settings
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


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS | st.just("")), min_size=1, max_size=4))
@example([("a", "")])
@example([("a b", "ab"), ("ab", "a b")])
@example([("a a a", "a"), ("äé 'n", "aé n"), ("a", "b c d")])
def test_error_rates_equal_jiwer(pairs):
    counts = ErrorCounts()
    for reference, hypothesis in pairs:
        counts.add(reference, hypothesis)
    references, hypotheses = map(list, zip(*pairs, strict=True))
    assert counts.cer == pytest.approx(jiwer.cer(references, hypotheses))
    assert counts.wer == pytest.approx(jiwer.wer(references, hypotheses))
