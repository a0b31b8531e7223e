"""A small tree in LibriSpeech's layout."""

import io
import shutil
import tarfile
from http.client import IncompleteRead
from pathlib import Path

import pytest
import soundfile
import torchaudio.datasets.librispeech as theirs
from bad_audio import RATE, sing
from torchaudio.datasets import LIBRISPEECH

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.data.librispeech import LibriSpeech
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.identity import identity

SUBSETS = {"train": "train-clean-100", "dev": "dev-other", "test": "test-clean"}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for number, subset in enumerate(SUBSETS.values()):
        for i in range(6):
            speaker, chapter = number * 10 + i % 2, 7 + i % 3
            folder = root / "LibriSpeech" / subset / str(speaker) / str(chapter)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{speaker}-{chapter}-{i:04d}"
            soundfile.write(folder / f"{name}.flac", sing(0.5 + 0.1 * i), RATE)
            with open(folder / f"{speaker}-{chapter}.trans.txt", "a") as transcripts:
                transcripts.write(f"{name} SENTENCE {i}\n")
    return root


def corpus(root: Path, **changes) -> LibriSpeech:
    subsets = {split: [subset] for split, subset in SUBSETS.items()}
    common = {"root": str(root), "download": False, "longest": None, "folder": str(root), "workers": 1}
    return LibriSpeech(**(common | subsets | changes))  # type: ignore[arg-type]


def test_the_same_utterances_as_torchaudio_finds(tree, capsys):
    for split, utterances in corpus(tree).prepare().items():
        reference = LIBRISPEECH(tree, SUBSETS[split])
        found = {(u.audio, u.text.upper()) for u in utterances}
        metadata = [reference.get_metadata(i) for i in range(len(reference))]
        assert found == {(tree / "LibriSpeech" / path, text) for path, _, text, *_ in metadata}
        assert all(u.duration > 0.3 for u in utterances)
        assert not [u for u in utterances if u.problem]
    assert "has 6 of the published 28539 utterances" in capsys.readouterr().out


def test_the_folder_itself_will_do_and_its_place_does_not_change_the_run(tree):
    assert corpus(tree / "LibriSpeech").prepare() == corpus(tree).prepare()
    here, there = (compose_settings(["data=librispeech", f"data.root={r}"]) for r in ("a", "b"))
    assert identity(here.plain()) == identity(there.plain())


def test_what_does_not_pair_up_is_a_reject(tree, tmp_path):
    shutil.copytree(tree / "LibriSpeech", tmp_path / "LibriSpeech")
    subset = tmp_path / "LibriSpeech" / "test-clean"
    first, second = sorted(subset.glob("*/*/*.flac"))[:2]
    first.rename(first.with_name("0-0-0.flac"))
    second.write_bytes(second.read_bytes()[:5000])
    reasons = {u.audio.name: u.problem for u in corpus(tmp_path).prepare()["test"] if u.problem}
    assert reasons[first.name] == "the file is missing"
    assert reasons["0-0-0.flac"] == "there is no line for it in a .trans.txt beside it"
    assert reasons[second.name].startswith(("truncated", "not readable"))


def test_mistakes_are_one_line(tree, tmp_path):
    with pytest.raises(UserError, match=r"train-clean-100 isn't there; .*data\.download=true"):
        corpus(tmp_path).prepare()
    for name in ("workers", "longest"):
        with pytest.raises(UserError, match=rf"data\.{name}=-1: must be"):
            corpus(tree, **{name: -1})
    with pytest.raises(UserError, match="dev-other is chosen twice"):
        corpus(tree, test=["dev-other"])
    with pytest.raises(UserError, match=r"data\.train\.0=train-clean: must be 'train-clean-100'"):
        compose_settings(["data=librispeech", "data.train=[train-clean]"])


@pytest.mark.parametrize(
    "error",
    [
        ConnectionResetError(104, "reset"),
        TimeoutError(),
        IncompleteRead(b""),
        EOFError(),
        RuntimeError("invalid hash"),
    ],
)
def test_a_download_that_breaks_off_is_one_line(tmp_path, monkeypatch, error):
    def download(root, subset):
        raise error

    monkeypatch.setattr(theirs, "_download_librispeech", download)
    with pytest.raises(UserError, match=r"^cannot download train-clean-100: \S.*start again"):
        corpus(tmp_path, download=True).prepare()


def test_a_transcript_that_is_not_utf_8_is_one_line(tree, tmp_path):
    shutil.copytree(tree / "LibriSpeech", tmp_path / "LibriSpeech")
    transcripts = next((tmp_path / "LibriSpeech" / "train-clean-100").glob("*/*/*.trans.txt"))
    transcripts.write_bytes(b"1-1-0 caf\xe9\n")
    with pytest.raises(UserError, match=r"cannot read .*\.trans\.txt: 'utf-8' codec"):
        corpus(tmp_path).prepare()


def test_an_unpacking_that_was_stopped_is_done_again(tree, tmp_path, monkeypatch):
    calls = []

    def download(root, subset):
        """What torchaudio's function does, from a local archive."""
        calls.append(subset)
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:gz") as archive:
            archive.add(tree / "LibriSpeech" / subset, f"LibriSpeech/{subset}")
        data.seek(0)
        with tarfile.open(fileobj=data) as archive:
            for count, member in enumerate(archive):
                if len(calls) == 1 and count == 5:
                    raise KeyboardInterrupt
                archive.extract(member, root, filter="data")

    monkeypatch.setattr(theirs, "_download_librispeech", download)
    with pytest.raises(KeyboardInterrupt):
        corpus(tmp_path, download=True).prepare()
    splits = corpus(tmp_path, download=True).prepare()
    expected = corpus(tree).prepare()
    assert {s: [u.text for u in us] for s, us in splits.items()} == {
        s: [u.text for u in us] for s, us in expected.items()
    }
    corpus(tmp_path, download=True).prepare()
    assert calls == ["train-clean-100", "train-clean-100", "dev-other", "test-clean"]
