"""From recordings to manifests: layouts are read, each bad recording is named, no sentence is in two splits."""

import io
import json
import os
import shutil
import sys
import tarfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import soundfile
from bad_audio import RATE, WAYS, sing

from blocksparse_rnn.cli import prepare as command
from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.data.layouts import read_layout
from blocksparse_rnn.data.manifest import manifest_line, read_manifest
from blocksparse_rnn.data.prepare import prepare
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.training.train import train


def prepare_plainly(source: Path, out: Path, **request) -> str:
    """Texts in small letters; what else isn't a letter goes at their ends only."""
    common = {"layout": "auto", "longest": None, "dev": 0.05, "test": 0.05, "workers": None, "shards": None}
    return prepare(
        source,
        out,
        **(common | request),
        alphabet=Alphabet("abcdefghijklmnopqrstuvwxyz "),
        normalise=lambda text: text.lower().strip(".!"),
        output_frames=lambda seconds: int(25 * seconds),
        corpora=out.parent / "corpora",
    )


def write_recordings(folder: Path, count: int, bad: int) -> dict[str, list[str]]:
    """A folder of .wav with .txt; `bad` of them, in equal shares of each way; names by way."""
    ways: dict[str, list[str]] = {}
    tones_of = {letter: sing(0.1) * k / 4 for k, letter in enumerate("abcd", 1)}
    for i in range(count):
        wav = folder / f"{i:03d}.wav"
        text = "".join("abcd"[(i // 4**k) % 4] for k in range(5))
        soundfile.write(wav, np.concatenate([np.pad(tones_of[letter], 960) for letter in text]), RATE)
        wav.with_suffix(".txt").write_text(f"{text.upper()}.\n")
        if i < bad:
            way = [*WAYS][i % len(WAYS)]
            if way == "2 h" and way in ways:
                shutil.copy(folder / f"{ways[way][0]}.wav", wav)
            else:
                WAYS[way][0](wav)
            ways.setdefault(way, []).append(wav.stem)
    return ways


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("recordings")
    return folder, write_recordings(folder, 500, 60)


@pytest.fixture(scope="module")
def prepared(recordings, tmp_path_factory) -> tuple[Path, str]:
    """The output folder and the report of the command."""
    out = tmp_path_factory.mktemp("prepared")
    typed = [recordings[0], out, "--dev", 0.1, "--test", 0.1, "scale=mini", f"corpora={out / 'corpora'}"]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as report:
        patch.setattr(sys, "argv", ["prepare.py", *map(str, typed)])
        command.main()
    return out, report.getvalue()


def test_60_of_500_recordings_are_bad_in_12_ways_and_each_is_named(recordings, prepared):
    ways, (out, report) = recordings[1], prepared
    assert len(ways) == 12
    rows = map(json.loads, (out / "rejects.jsonl").read_text().splitlines())
    reasons = {Path(row["audio_filepath"]).stem: row["reason"] for row in rows}
    for way, names in ways.items():
        expected = WAYS[way][1]
        assert len(names) == 5
        for name in names:
            assert reasons.get(name, "").startswith(expected or ""), (way, name)
            assert (name in reasons) == (expected is not None), (way, name)
    splits = [read_manifest(out / f"{split}.jsonl") for split in ("train", "dev", "test")]
    named = {u.audio.stem for split in splits for u in split}
    assert named == {f"{i:03d}" for i in range(500)} - set(reasons)
    assert sum(map(len, splits)) == 500 - 45
    texts = [{u.text for u in split} for split in splits]
    assert sum(map(len, texts)) == len(set.union(*texts))
    for expected in ("alphabet: 4 letters: 'abcd'", "left out: 45", "every 40 ms", "5 truncated"):
        assert expected in report


def test_training_runs_on_what_prepare_wrote_and_on_the_raw_folder_alike(recordings, prepared, tone_settings):
    folder, out = recordings[0], prepared[0]
    splits = [f"data.{split}={out / split}.jsonl" for split in ("train", "dev", "test")]
    few = ["trainer.max_steps=2", f"corpora={out / 'corpora'}"]
    seconds = sum(u.duration for u in read_manifest(out / "train.jsonl"))
    assert train(tone_settings(*splits, *few))["train_hours"] == pytest.approx(seconds / 3600, abs=1e-4)

    # A manifest of everything, bad recordings included, as another program may have written it.
    raw = out / "raw.jsonl"
    raw.write_text("".join(manifest_line(u, out) for u in read_layout(folder)))
    settings = tone_settings(*splits[1:], f"data.train={raw}", "text=english", *few)
    train(settings)
    rejects = (RunFolder.of(settings).path / "rejects.jsonl").read_text().splitlines()
    assert len(rejects) == 45


def spoken(folder: Path, texts: list[str]) -> Path:
    """Recordings of a second each, with .txt."""
    folder.mkdir()
    for i, text in enumerate(texts):
        soundfile.write(folder / f"{i:02d}.wav", sing(), RATE)
        (folder / f"{i:02d}.txt").write_text(text)
    return folder


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_prepare_keeps_what_another_manifest_of_the_folder_left_out(tmp_path):
    for stem in ("a", "b"):
        folder = spoken(tmp_path / stem, ["One.", ""])
        for _ in range(2):
            prepare_plainly(folder, tmp_path / f"{stem}.jsonl")
    assert [row["manifest"] for row in rows_of(tmp_path / "rejects.jsonl")] == ["a.jsonl", "b.jsonl"]
    [row] = rows_of(tmp_path / "a.jsonl")
    assert (row["text"], row["original_text"]) == ("one", "One.")


def test_a_name_that_is_not_utf_8_is_a_name_like_others(tmp_path):
    wav = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    soundfile.write(os.fsencode(wav), sing(), RATE)
    wav.with_suffix(".txt").write_text("Ab")
    for _ in range(2):  # the second time from memory
        prepare_plainly(tmp_path, tmp_path / "out.jsonl", layout="txt", shards=1)
    [utterance] = read_manifest(tmp_path / "out.jsonl")
    assert (utterance.audio, utterance.text) == (wav, "ab")
    assert len(load_audio(utterance.audio, RATE)) == RATE
    wav.write_bytes(b"")
    with pytest.raises(UserError, match="none of 1 recordings can be used"):
        prepare_plainly(tmp_path, tmp_path / "out.jsonl", layout="txt")
    [row] = rows_of(tmp_path / "rejects.jsonl")
    assert row["audio_filepath"] == str(wav)


def test_why_nothing_is_usable_comes_before_what_is_split(tmp_path):
    out = tmp_path / "out"
    few = spoken(tmp_path / "few", ["One", "日", "本"])
    with pytest.raises(UserError, match=r"2 recordings were left out, see .*rejects\.jsonl$"):
        prepare_plainly(few, out)
    assert len(rows_of(out / "rejects.jsonl")) == 2
    (few / "00.txt").write_text("日")
    with pytest.raises(UserError, match=r"none of 3 recordings can be used, see .*; the first: its"):
        prepare_plainly(few, out)


def test_a_split_of_an_earlier_call_never_stays_beside_a_new_train(tmp_path):
    enough, out = spoken(tmp_path / "enough", [f"word {letter}" for letter in "abcdefghij"]), tmp_path / "two"
    prepare_plainly(enough, out, dev=0, test=0.2)
    assert {path.name for path in out.iterdir()} == {"train.jsonl", "test.jsonl", "rejects.jsonl"}
    # Train would have sentences of the earlier test.
    with pytest.raises(UserError, match=r"^--test 0: .*two/test\.jsonl is there already.*delete it"):
        prepare_plainly(enough, out, dev=0.2, test=0)
    assert not (out / "dev.jsonl").exists()


def test_a_folder_that_cannot_be_written_to_is_found_out_before_anything_is_inspected(tmp_path):
    with pytest.raises(UserError, match=r"^cannot write /proc: "):
        prepare_plainly(spoken(tmp_path / "some", ["one", "two"]), Path("/proc/all.jsonl"))


def test_two_rows_of_one_file_keep_their_own_texts_also_when_cleaned_again(tmp_path):
    soundfile.write(tmp_path / "a.wav", sing(), RATE)
    (tmp_path / "t.csv").write_text("file,text\na.wav,One.\na.wav,Two!\na.wav,日\na.wav,本\n")
    prepare_plainly(tmp_path / "t.csv", tmp_path / "m.jsonl")
    assert [row["text"] for row in rows_of(tmp_path / "rejects.jsonl")] == ["日", "本"]
    prepare_plainly(tmp_path / "m.jsonl", tmp_path / "clean.jsonl")
    for name in ("m", "clean"):
        rows = rows_of(tmp_path / f"{name}.jsonl")
        assert [(row["text"], row["original_text"]) for row in rows] == [("one", "One."), ("two", "Two!")]


def test_shards_lie_beside_the_manifests(tmp_path):
    prepare_plainly(spoken(tmp_path / "some", ["one", "two", "three"]), tmp_path / "all.jsonl", shards=0.05)
    members = []
    for shard in tmp_path.glob("all-*.tar"):
        with tarfile.open(shard) as archive:
            members += archive.getmembers()
    assert sum(member.name.endswith(".wav") for member in members) == 3
    assert {member.mtime for member in members} == {0}


class TestLayouts:
    def check(self, source: Path, *expected: tuple[str, str], layout: str = "auto") -> list[Utterance]:
        found = read_layout(source, layout)
        assert [(u.audio.name, u.text) for u in found] == [*expected]
        return found

    def test_librispeech(self, tmp_path):
        chapter = tmp_path / "84" / "121123"
        chapter.mkdir(parents=True)
        (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n84-121123-0001 BUT\n")
        self.check(tmp_path, ("84-121123-0000.flac", "GO DO YOU HEAR"), ("84-121123-0001.flac", "BUT"))

    def test_common_voice(self, tmp_path):
        (tmp_path / "clips").mkdir()
        (tmp_path / "train.tsv").write_text(
            'client_id\tpath\tsentence\nx\ta.mp3\tSay "hi\n', encoding="utf-8"
        )
        with pytest.raises(UserError, match=r"name one of its tables: train\.tsv"):
            read_layout(tmp_path)
        [found] = self.check(tmp_path / "train.tsv", ("a.mp3", 'Say "hi'))
        assert found.audio == tmp_path / "clips" / "a.mp3"

    def test_ljspeech(self, tmp_path):
        (tmp_path / "wavs").mkdir()
        (tmp_path / "metadata.csv").write_text('LJ1|Dr. "A|Doctor A\nLJ2|two|two\n')
        [found, _] = self.check(tmp_path, ("LJ1.wav", "Doctor A"), ("LJ2.wav", "two"))
        assert found.audio == tmp_path / "wavs" / "LJ1.wav"

    def test_a_plain_table(self, tmp_path):
        table = tmp_path / "t.csv"
        table.write_text(
            'file;transcript;start;duration\na.wav;"one; two";1.5;2\nb.wav;x;;\nc.wav\n', "utf-8-sig"
        )
        found = self.check(table, ("a.wav", "one; two"), ("b.wav", "x"), ("t.csv", ""))
        assert (found[0].offset, found[0].duration, found[1].offset, found[1].duration) == (1.5, 2, None, 0)
        assert (found[2].problem or "").startswith("line 4 is not a row")
        table.write_text("a,b\n1,2\n")
        with pytest.raises(UserError, match=r"its heading is \['a', 'b'\]; it needs a column of files"):
            read_layout(table)

    def test_spaces_of_typesetters_part_no_lines(self, tmp_path):
        (tmp_path / "wavs").mkdir()
        (tmp_path / "metadata.csv").write_text("LJ1|one\u2028two\x0bthree\r\nLJ2|four\x85five\n", newline="")
        self.check(tmp_path, ("LJ1.wav", "one\u2028two\x0bthree"), ("LJ2.wav", "four\x85five"))
        (tmp_path / "1.trans.txt").write_text("1-1 one\u2028two\n")
        self.check(tmp_path, ("1-1.flac", "one\u2028two"), layout="librispeech")

    def test_a_stray_quote_is_named_with_its_line(self, tmp_path):
        table = tmp_path / "t.csv"
        table.write_text('file,text\na.wav,"two\nlines"\nb.wav,"Yes, he said\nc.wav,two\nd.wav,"three"\n')
        with pytest.raises(UserError, match=r"t\.csv, line 4: .*a quote within a text is written"):
            read_layout(table)
        table.write_text('file,text\na.wav,"two\nlines"\nb.wav\n')
        found = self.check(table, ("a.wav", "two\nlines"), ("t.csv", ""))
        assert (found[1].problem or "").startswith("line 4 is not a row")

    def test_a_tsv_without_clips_is_a_table(self, tmp_path):
        (tmp_path / "t.tsv").write_text("path\tsentence\na.wav\tone\n")
        [found] = self.check(tmp_path / "t.tsv", ("a.wav", "one"))
        assert found.audio == tmp_path / "a.wav"

    def test_two_recordings_of_one_name_share_their_text(self, tmp_path):
        for name in ("a.wav", "a.flac", "b.opus", "b.txt"):
            (tmp_path / name).touch()
        (tmp_path / "a.txt").write_text("one")
        self.check(tmp_path, ("a.flac", "one"), ("a.wav", "one"), ("b.opus", ""))

    def test_text_files_beside_audio(self, tmp_path):
        (tmp_path / "deep").mkdir()
        for name in ("deep/a.WAV", "b.flac", "c.mp3"):
            (tmp_path / name).touch()
        (tmp_path / "deep" / "a.txt").write_text(" two\nlines ")
        (tmp_path / "b.txt").write_bytes("für".encode("latin-1"))
        found = self.check(tmp_path, ("b.flac", ""), ("c.mp3", ""), ("a.WAV", "two lines"))
        assert [u.problem for u in found] == [
            "b.txt is not written in UTF-8",
            "there is no c.txt beside it",
            None,
        ]

    def test_nothing_there(self, tmp_path):
        with pytest.raises(
            UserError, match=r"no recordings in it; give a folder of audio files with a \.txt"
        ):
            read_layout(tmp_path)
        with pytest.raises(UserError, match="no such file or folder"):
            read_layout(tmp_path / "x")
