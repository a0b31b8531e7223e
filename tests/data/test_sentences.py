import random
import re
import zlib
from itertools import chain

import pytest

from blocksparse_rnn.data.synth.sentences import MAX_VOCABULARY, MAX_WORDS, MIN_WORDS, RULES, WORDS, Grammar
from blocksparse_rnn.data.synth.speaker import FORMAT, draw_sentence, sentence_split, unseen_trigrams
from blocksparse_rnn.errors import UserError


def sentences(vocabulary: int, count: int, seed: int = 0) -> list[str]:
    grammar, rng = Grammar(vocabulary), random.Random(seed)
    return [grammar.sentence(rng) for _ in range(count)]


def test_no_word_is_listed_twice_and_all_can_be_spelled():
    words = list(chain.from_iterable(WORDS.values()))
    assert len(words) == len(set(words)) == MAX_VOCABULARY >= 1100
    assert all(re.fullmatch("[a-z']+", word) for word in words)
    assert {"don't", "it's", "o'clock"} <= set(words)


def test_rules_name_only_rules_and_categories_and_use_them_all():
    named = set(chain.from_iterable(part.split() for parts in RULES.values() for part in parts))
    assert named | {"SENTENCE"} == RULES.keys() | WORDS.keys()


@pytest.mark.parametrize("vocabulary", [100, 101, 300, 1000, MAX_VOCABULARY])
def test_exactly_the_wanted_number_of_words_occurs(vocabulary):
    said = {
        word
        for sentence in sentences(vocabulary, 60_000 if vocabulary > 300 else 5000)
        for word in sentence.split()
    }
    kept = set(chain.from_iterable(Grammar(vocabulary).words.values()))
    assert len(kept) == vocabulary
    assert said == kept


@pytest.mark.parametrize("vocabulary", [99, MAX_VOCABULARY + 1])
def test_impossible_vocabularies_are_refused_with_the_range(vocabulary):
    with pytest.raises(
        UserError, match=rf"data.vocabulary={vocabulary}: must be from 100 to {MAX_VOCABULARY}"
    ):
        Grammar(vocabulary)


def test_sentences_are_of_speakable_length_and_vary():
    said = sentences(300, 2000)
    lengths = [len(sentence.split()) for sentence in said]
    assert MIN_WORDS <= min(lengths) < 5
    assert 12 < max(lengths) <= MAX_WORDS
    assert len(set(said)) > 1980


@pytest.mark.parametrize(
    ("hours", "vocabulary"), [(1.5, 300), (0.5, 100), (0.5, 200), (0.5, 300), (20, 1000)]
)
def test_a_fifth_of_the_test_trigrams_is_new(hours, vocabulary):
    grammar, rng = Grammar(vocabulary), random.Random(0)
    utterances = round(hours * 3600 / 3)  # an utterance lasts over three seconds on average
    train = [draw_sentence(grammar, "train", rng) for _ in range(utterances)]
    test = [draw_sentence(grammar, "test", rng) for _ in range(max(utterances // 10, 50))]
    assert not set(train) & set(test)
    assert unseen_trigrams(test, train) > 0.2


def test_every_sentence_belongs_to_one_split():
    splits = [sentence_split(sentence) for sentence in sentences(300, 2000)]
    assert 0.75 < splits.count("train") / len(splits) < 0.85
    assert abs(splits.count("dev") - splits.count("test")) < 80


def test_unseen_trigrams_by_hand():
    assert unseen_trigrams(["a b c d"], ["a b c", "x c d"]) == 0.5


def test_sentences_change_only_together_with_the_format_of_the_corpus():
    grammar, rng = Grammar(300), random.Random(0)
    said = "\n".join(draw_sentence(grammar, "train", rng) for _ in range(1000))
    # Other sentences? Raise `FORMAT`, or corpora that lie on disk would be taken for the new ones.
    assert (FORMAT, zlib.crc32(said.encode())) == (1, 3590866640)
