"""Texts are normalised as in the table of the documentation."""

import re
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.config.nodes import node_schema
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.normalizer import Normalizer
from blocksparse_rnn.training.train import train

LANGUAGES = ("english", "german")
SETTINGS = {name: yaml.safe_load((CONF / "text" / f"{name}.yaml").read_text()) for name in LANGUAGES}
NORMALIZERS = {
    name: node_schema(each["text"]).model_validate(each["text"]).build() for name, each in SETTINGS.items()
}
ALPHABETS = {name: Alphabet(each["alphabet"]) for name, each in SETTINGS.items()}
ROWS = re.findall(
    r"^\| `([^`]+)` \| `([^`]+)`(?:: unknown (\S+))? \| `([^`]+)`(?:: unknown (\S+))? \|$",
    (CONF.parent / "docs/data.md").read_text(),
    re.MULTILINE,
)


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_table_of_the_documentation_is_true(row):
    written = row[0]
    for name, said, unknown in zip(LANGUAGES, row[1::2], row[2::2], strict=True):
        assert NORMALIZERS[name](written) == said
        assert ALPHABETS[name].unknown(said) == set(unknown)


def test_the_table_is_there():
    assert len(ROWS) == 21


@pytest.mark.parametrize("name", LANGUAGES)
@settings(max_examples=40)
@given(text=st.text(max_size=30))
def test_normalising_twice_changes_nothing_more_and_loses_no_letter(name, text):
    once = NORMALIZERS[name](text)
    assert NORMALIZERS[name](once) == once
    assert once == " ".join(once.split())
    assert any(map(str.isalnum, once)) >= any(letter.isascii() and letter.isalnum() for letter in text)


@pytest.mark.parametrize("name", LANGUAGES)
@given(data=st.data())
def test_texts_in_the_letters_of_the_alphabet_stay(name, data):
    words = st.text(ALPHABETS[name].letters.replace(" ", "").replace("'", ""), min_size=1, max_size=9)
    text = " ".join(data.draw(st.lists(words, max_size=6)))
    assert NORMALIZERS[name](text) == text


@pytest.mark.parametrize("name", LANGUAGES)
@settings(max_examples=100, deadline=None)
@given(
    parts=st.lists(
        st.sampled_from([*"'' ab!.,-_^%½²\u2019\u2018é/\u200d\u0301\u2212", "9.9th", "1,000", "3rds", "12"]),
        max_size=10,
    )
)
def test_normalising_numbers_and_quotes_twice_changes_nothing_more(name, parts):
    once = NORMALIZERS[name]("".join(parts))
    assert NORMALIZERS[name](once) == once


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("100thousand", "one hundred thousand"),
        ("1,234.50", "one thousand two hundred and thirty four point five zero"),
        ("'Say 'no' twice', don't", "say no twice don't"),
        ("the dogs' bone isn't 'theirs", "the dogs' bone isn't 'theirs"),
        ("x² H₂O", "x^ two h two o"),
        ("from \u22120.5 to 1st-5", "from minus zero point five to first five"),
    ],
)
def test_numbers_and_quotes(written, said):
    assert NORMALIZERS["english"](written) == said


def test_every_language_of_num2words_says_or_leaves_what_comes():
    node = {key: value for key, value in SETTINGS["english"]["text"].items() if key != "_target_"}
    for language, wanted in {
        "fr": "moins un virgule zéro",
        "it": None,
        "ru": None,
        "bn": None,
        "ce": None,
    }.items():
        said = Normalizer(**(node | {"language": language, "accents": "keep"}))("-1.0 12.5 3rd ½")
        assert wanted is None or said.startswith(wanted)


def test_numbers_too_large_to_say_stay():
    assert NORMALIZERS["english"]("9" * 400) == "9" * 400


def test_mistakes_are_one_line(monkeypatch):
    node = {key: value for key, value in SETTINGS["english"]["text"].items() if key != "_target_"}
    with pytest.raises(UserError, match=r"text\.language=klingon: num2words knows .*en"):
        Normalizer(**(node | {"language": "klingon"}))
    monkeypatch.setitem(sys.modules, "num2words", None)
    with pytest.raises(UserError, match=r"pip install 'blocksparse-rnn\[text\]'"):
        Normalizer(**node)
    assert Normalizer(**(node | {"language": None}))("4 You!") == "4 you"


def test_a_corpus_of_texts_as_people_write_them_says_what_would_help(tone_settings, tones, tmp_path):
    manifest = tmp_path / "train.jsonl"
    lines = tones["train"].read_text().replace('"train-', f'"{tones["train"].parent}/train-')
    manifest.write_text(re.sub(r'"text": "(.*?)"', lambda m: f'"text": "{m[1].upper()}."', lines))
    with pytest.raises(
        UserError, match="; text=english or text=german writes numbers out, makes letters small"
    ):
        train(tone_settings(f"data.train={manifest}"))
    manifest.write_text(re.sub(r'"text": "(.*?)"', r'"text": "\1 ü"', lines))
    with pytest.raises(UserError, match="; text=german writes numbers out"):
        train(tone_settings(f"data.train={manifest}"))
