"""Beam search with a language model: fewer errors than greedy decoding, tuned without training."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from mistakes import command_line_problems

from blocksparse_rnn import distributed
from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.data.synth.sentences import Grammar
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.dense_reference import find_dense
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import recipe
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.beam import BeamDecoder
from blocksparse_rnn.speech.greedy import GreedyDecoder
from blocksparse_rnn.speech.metrics import ErrorCounts
from blocksparse_rnn.training.train import train

ROOT = CONF.parent
sys.path.append(str(ROOT / "benchmarks"))
from beam_search import decode, logits_of, write_arpa  # noqa: E402

ALPHABET = Alphabet("abcdefghijklmnopqrstuvwxyz '")


def beam(**settings) -> BeamDecoder:
    common = {"lm": None, "lexicon": None, "alpha": 1.0, "beta": 0.5, "beam": 50, "threshold": 50.0}
    return BeamDecoder(**(common | settings))


def utter(text: str, noise: float, seed: int) -> torch.Tensor:
    """Noisy logits (1, T, V) of a text."""
    letters = [i for letter in ALPHABET.encode(text) for i in (ALPHABET.blank, letter, letter)]
    generator = torch.Generator().manual_seed(seed)
    logits_1TV = noise * torch.randn(1, len(letters), len(ALPHABET), generator=generator)
    logits_1TV[0, range(len(letters)), letters] += 4
    return logits_1TV


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    grammar, rng = Grammar(300), random.Random(0)
    return [grammar.sentence(rng) for _ in range(400)]


@pytest.fixture(scope="module")
def arpa(sentences, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("lm") / "words.arpa"
    write_arpa(sentences, path)
    return str(path)


def rates(decoder, texts, noise=1.8) -> ErrorCounts:
    counts = ErrorCounts()
    for seed, text in enumerate(texts):
        logits_1TV = utter(text, noise, seed)
        counts.add(text, decoder(logits_1TV, [logits_1TV.shape[1]], ALPHABET)[0])
    return counts


def test_a_language_model_halves_the_errors_on_noisy_logits(sentences, arpa):
    texts = [text for text in sentences if len(text) < 60][:15]
    greedy, searched = rates(GreedyDecoder(), texts), rates(beam(lm=arpa), texts)
    assert greedy.wer > 0.3
    assert searched.wer < greedy.wer / 2
    assert searched.cer < greedy.cer / 2


def test_without_noise_all_decoders_agree_and_lengths_count(arpa, sentences):
    text = sentences[0]
    logits_1TV = utter(text, 0.1, 0)
    padded_1TV = torch.cat([logits_1TV, utter("zzz", 0.1, 1)], dim=1)
    for decoder in (GreedyDecoder(), beam(), beam(lm=arpa)):
        assert decoder(padded_1TV, [logits_1TV.shape[1]], ALPHABET) == [text]


def test_words_of_a_lexicon_are_all_that_is_written(tmp_path, capsys):
    words = tmp_path / "words.txt"
    words.write_text("cat\ncar\ncat c a t |\ncafé\n")
    decoder = beam(lexicon=str(words))
    assert decoder(utter("cab car", 0.1, 0), [21], ALPHABET)[0].split()[1] == "car"
    assert (
        "left out 1 of 3 words, which have letters outside the alphabet, such as 'café'"
        in capsys.readouterr().out
    )
    assert set(decoder(utter("dog", 0.1, 0), [9], ALPHABET)[0].split()) <= {"cat", "car"}


def test_a_model_of_letters_needs_no_lexicon(sentences, tmp_path):
    path = tmp_path / "letters.arpa"
    write_arpa([" ".join(text.replace(" ", "|")) for text in sentences], path)
    texts = [text for text in sentences if len(text) < 60][:10]
    assert rates(beam(lm=str(path), beta=0.0), texts).cer < 0.9 * rates(GreedyDecoder(), texts).cer


def test_mistakes_are_one_line(tmp_path, monkeypatch):
    assert (
        command_line_problems(["decoder=beam", "decoder.lm=nowhere"])[0] == "decoder.lm=nowhere: no such file"
    )
    (tmp_path / "lm.arpa").write_bytes(b"\x80binary")
    with pytest.raises(UserError, match="is not in ARPA format, so its words cannot be read"):
        beam(lm=str(tmp_path / "lm.arpa"))(utter("a", 0.1, 0), [3], ALPHABET)
    (tmp_path / "words.txt").write_bytes("café\nword\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"decoder\.lexicon=.*words\.txt: 'utf-8' codec"):
        beam(lexicon=str(tmp_path / "words.txt"))(utter("a", 0.1, 0), [3], ALPHABET)
    (tmp_path / "words.txt").write_text("word\n")
    with pytest.raises(UserError, match=r"decoder\.lm=.*lm\.arpa: KenLM cannot read it: ."):
        beam(lm=str(tmp_path / "lm.arpa"), lexicon=str(tmp_path / "words.txt"))(
            utter("a", 0.1, 0), [3], ALPHABET
        )
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(UserError, match=r"pip install 'blocksparse-rnn\[decode\]'"):
        beam()


def test_mistakes_show_before_training(tone_settings, tmp_path, monkeypatch):
    (tmp_path / "lm.arpa").write_text("not a language model\n")
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("trained"))
    with pytest.raises(UserError, match="is not in ARPA format"):
        train(tone_settings("decoder=beam", f"decoder.lm={tmp_path / 'lm.arpa'}"))


def test_a_finished_run_is_re_evaluated_without_training(tone_settings, monkeypatch):
    trained = tone_settings()
    before = train(trained)
    source = RunFolder.of(trained)
    again = ["decoder=beam", "decoder.alpha=0.5", f"weights={source.path}"]
    settings = tone_settings(*again)
    monkeypatch.setattr("pytorch_lightning.Trainer.fit", lambda *_, **__: pytest.fail("trained"))
    result = train(settings)
    run = RunFolder.of(settings)
    assert run.path.name.startswith("gru-16-dense-a0.5-w0.5-s0-")
    assert result["parameters"] == before["parameters"]
    assert result["weights"] == str(source.path)
    assert result["trained"] == recipe(trained.plain())  # what it may be compared with depends on that
    assert 0 < result["dev_cer"] <= 1.5
    # Its folder is a run's, decoder and weights in it.
    edits, _ = decode(logits_of(run.path, "test"), beam(alpha=0.5))
    assert edits.cer == pytest.approx(result["cer"])
    with pytest.raises(UserError, match=r"trained with other settings \(model.hidden_size"):
        tone_settings(*again, "width=8")
    with pytest.raises(UserError, match=r"trained with other settings \(seed\)"):
        tone_settings(*again, "seed=1")
    # It is not taken for the dense run, though it is first by name.
    found = find_dense(trained.plain(), "auto")
    assert found is not None
    assert found.source == f"dense run {source.path.name}"
    # The first rank chooses for all.
    monkeypatch.setattr(distributed, "from_first", lambda chosen: None)
    assert find_dense(trained.plain(), "auto") is None


@pytest.mark.slow
def test_the_gain_on_synthetic_speech(tmp_path):
    folders = [f"outputs={tmp_path / 'outputs'}", f"corpora={tmp_path / 'corpora'}"]
    train = [sys.executable, str(ROOT / "src/train.py"), "experiment=demo", "model=gru", *folders]
    subprocess.run(train, check=True, cwd=tmp_path)
    [run] = (tmp_path / "outputs").glob("gru-*")
    result = tmp_path / "gain.json"
    search = [sys.executable, str(ROOT / "benchmarks/beam_search.py"), str(run), "--json", str(result)]
    subprocess.run(search, check=True, cwd=tmp_path)
    greedy, _, searched = json.loads(Path(result).read_text())["rows"]
    assert searched["wer"] < 0.7 * greedy["wer"]
    assert searched["cer"] < 0.8 * greedy["cer"]
