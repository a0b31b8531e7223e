"""Recordings of all kinds, bad ones among them: nothing ends a run, and what can't be used is named."""

import json
import os
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from bad_audio import RATE, WAYS
from hypothesis import given
from hypothesis import strategies as st

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.data.audio import load_audio, open_audio
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.inspection import MEMORY, Inspector, inspect_file
from blocksparse_rnn.data.layouts import read_layout
from blocksparse_rnn.data.manifest import Manifests, Utterance, manifest_line, read_manifest
from blocksparse_rnn.data.prepare import Request, prepare
from blocksparse_rnn.data.sampler import WeightedDraws
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import identity
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.training import train as training
from blocksparse_rnn.training.train import train

SUFFIXES = ["wav", "flac", "ogg", "mp3"]


def sing(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    t = np.arange(int(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * 440 * t) + np.random.default_rng(0).normal(0, 0.01, len(t))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2), (8000, 1)])
def test_every_format_rate_and_channel_count_is_read(tmp_path, suffix, rate, channels):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([sing(rate=rate)] * channels, 1), rate)
    assert inspect_file(path).problem is None
    assert inspect_file(path).seconds == pytest.approx(1, abs=0.1)  # mp3 pads
    wave_S = load_audio(path, RATE)
    spectrum = torch.fft.rfft(wave_S).abs()
    assert wave_S.ndim == 1
    assert spectrum.argmax() * RATE / len(wave_S) == pytest.approx(440, abs=2)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_file_cut_short_is_noticed_in_every_format(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sing(4), RATE)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    assert (inspect_file(path).problem or "").startswith(("truncated: ", "not readable as audio: "))


def test_a_part_of_a_file_is_read_by_offset_and_duration(tmp_path):
    wave = sing(2)
    soundfile.write(tmp_path / "a.wav", wave, RATE, subtype="FLOAT")
    part_S = load_audio(tmp_path / "a.wav", RATE, 0.5, 0.25)
    assert torch.equal(part_S, torch.from_numpy(wave.astype(np.float32))[8000:12000])


@pytest.mark.parametrize(("suffix", "subtype"), [("wav", "GSM610"), ("wav", "G721_32"), ("au", "G723_24")])
def test_codecs_without_seeking_are_read_whole_and_in_part(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, sing(2), RATE, subtype=subtype)
    assert inspect_file(path).problem is None
    whole_S = load_audio(path, RATE)
    assert len(whole_S) / RATE == pytest.approx(inspect_file(path).seconds)
    assert torch.equal(load_audio(path, RATE, 0.5, 0.25), whole_S[8000:12000])


def test_a_flac_from_a_pipe_lacks_its_length_and_is_named(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, sing(), RATE)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)  # 36 bits of STREAMINFO hold the number of samples
    path.write_bytes(data)
    assert inspect_file(path).problem == "its header lacks its length; encode it to a file, not to a pipe"
    with pytest.raises(UserError, match=r"a\.flac: its header lacks its length"):
        load_audio(path, RATE)


@pytest.mark.parametrize("rate", [22254, 16001, 12347])
def test_odd_sample_rates_are_resampled_in_little_memory(tmp_path, rate, monkeypatch):
    monkeypatch.setattr("torchaudio.functional.resample", lambda *_: pytest.fail("a filter for each phase"))
    t = np.arange(3 * rate) / rate
    soundfile.write(tmp_path / "a.wav", 0.5 * np.sin(2 * np.pi * 440 * t), rate, subtype="FLOAT")
    wave_S = load_audio(tmp_path / "a.wav", RATE)
    assert len(wave_S) == 3 * RATE
    expected_S = 0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * RATE) / RATE)
    np.testing.assert_allclose(wave_S.numpy(), expected_S, atol=1e-5)


def test_a_name_that_is_not_utf_8_is_a_name_like_others(tmp_path):
    wav = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    soundfile.write(os.fsencode(wav), sing(), RATE)
    wav.with_suffix(".txt").write_text("Ab")
    settings = compose_settings(["scale=mini", "text=english", f"corpora={tmp_path / 'corpora'}"])
    for _ in range(2):  # the second time from memory
        prepare(Request(tmp_path, tmp_path / "out.jsonl", layout="txt", shards=1), settings)
    [utterance] = read_manifest(tmp_path / "out.jsonl")
    assert (utterance.audio, utterance.text) == (wav, "ab")
    assert len(load_audio(utterance.audio, RATE)) == RATE
    wav.write_bytes(b"")
    with pytest.raises(UserError, match="none of 1 recordings can be used"):
        prepare(Request(tmp_path, tmp_path / "out.jsonl", layout="txt"), settings)
    [row] = (tmp_path / "rejects.jsonl").read_text().splitlines()
    assert json.loads(row)["audio_filepath"] == str(wav)


def test_raw_audio_and_audio_of_no_length_are_told_apart(tmp_path):
    (tmp_path / "talk.raw").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"cannot read audio from .*talk.raw: raw audio lacks the header"):
        load_audio(tmp_path / "talk.raw", 16_000)
    assert "raw audio lacks the header" in inspect_file(tmp_path / "talk.raw").problem
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), 44_100)
    assert load_audio(tmp_path / "nothing.wav", 16_000).shape == (0,)


def test_what_is_no_path_and_what_is_no_time_are_problems_of_one_utterance(tmp_path):
    soundfile.write(tmp_path / "a.wav", sing(), RATE)
    times = "".join(f"a.wav,one,{time}\n" for time in ("nan", "inf", "-1", "0.5"))
    (tmp_path / "t.csv").write_text(f"file,text,offset\n{times}")
    problems = [u.problem for u in read_layout(tmp_path / "t.csv")]
    assert problems == [
        *(
            f"line {n} is not a row of it: a time of {time} s"
            for n, time in [(2, "nan"), (3, "inf"), (4, "-1")]
        ),
        None,
    ]
    row = {"audio_filepath": "a\0.wav", "duration": 0, "text": "one"}
    (tmp_path / "m.jsonl").write_text(json.dumps(row) + "\n")
    inspector = Inspector(tmp_path / MEMORY, 1, None)
    assert "can't be read: " in inspector(read_manifest(tmp_path / "m.jsonl"))[0].problem


@pytest.mark.parametrize("failure", ["stat", "open"])
def test_a_failure_that_passes_is_not_remembered(tmp_path, monkeypatch, failure):
    path = tmp_path / "a.wav"
    soundfile.write(path, sing(), RATE)
    inspector = Inspector(tmp_path / MEMORY, 1, None)
    with monkeypatch.context() as patch:
        if failure == "stat":
            patch.setattr("blocksparse_rnn.data.inspection.inspect_sound", lambda *_: os.read(-1, 1))
        else:
            patch.setattr(
                "blocksparse_rnn.data.inspection.open_audio", lambda _: open_audio(tmp_path / "no.wav")
            )
        assert inspector([Utterance(path, 0, "a")])[0].problem is not None
    assert inspector([Utterance(path, 0, "a")])[0].problem is None


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"duration": 2.0}, None),
        ({"duration": 0.0}, None),
        ({"duration": 2.05}, None),
        ({"duration": 3.0}, "lasts 2.00 s, but its duration says 3.00 s; truncated?"),
        ({"duration": 1.0}, "an offset would name a part of it"),
        ({"duration": 1.0, "offset": 0.5}, None),
        (
            {"duration": 1.0, "offset": 1.5},
            "ends at 2.50 s (offset and duration), but the file has only 2.00 s",
        ),
    ],
)
def test_a_length_is_held_against_the_file(tmp_path, fields, problem):
    soundfile.write(tmp_path / "a.wav", sing(2), RATE)
    [found] = Inspector(None, 1, None)([replace(Utterance(tmp_path / "a.wav", 0, "a"), **fields)])
    if problem is None:
        assert found.problem is None
        assert 0 < found.duration <= 2 - (found.offset or 0)
    else:
        assert problem in (found.problem or "")


def test_findings_are_remembered_until_a_file_changes(tmp_path, monkeypatch):
    path = tmp_path / "a.wav"
    soundfile.write(path, sing(), RATE)
    utterance, memory = Utterance(path, 0, "a"), tmp_path / "corpora" / MEMORY
    first = Inspector(memory, 1, None)([utterance])
    memory.write_text(memory.read_text() + '["half a li')  # killed while writing
    with monkeypatch.context() as patch:
        patch.setattr("blocksparse_rnn.data.inspection.inspect_file", lambda _: pytest.fail("read again"))
        assert Inspector(memory, 1, None)([utterance]) == first
    path.write_bytes(b"")
    [changed] = Inspector(memory, 1, None)([utterance])
    assert changed.problem == "the file is empty (0 bytes)"


def test_a_bad_line_of_a_manifest_is_a_reject_and_a_missing_manifest_an_error(tmp_path):
    soundfile.write(tmp_path / "a.wav", sing(), RATE)
    lines = [manifest_line(Utterance(tmp_path / "a.wav", 1.0, "a"), tmp_path), "{}\n", "no json\n"]
    (tmp_path / "m.jsonl").write_text(
        "".join(lines) + '{"audio_filepath": "a.wav", "duration": -1, "text": ""}'
    )
    (tmp_path / "rest.jsonl").touch()  # only a training minds
    names = dict.fromkeys(("dev", "test"), str(tmp_path / "rest.jsonl"))
    common = {"longest": None, "folder": str(tmp_path), "workers": None}
    found = Manifests(train=str(tmp_path / "m.jsonl"), **names, **common).prepare()["train"]
    assert [u.problem is None for u in found] == [True, False, False, False]
    assert found[2].problem.startswith("line 3: each line must be a JSON object")
    with pytest.raises(UserError, match="cannot read the manifest"):
        read_manifest(tmp_path / "missing.jsonl")


@given(st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 2.5]), min_size=1, max_size=60), st.integers(0, 5))
def test_weights_are_how_often_an_utterance_comes(weights, seed):
    draws = WeightedDraws(weights)
    drawn = Counter(draws(str(seed)))
    assert sum(drawn.values()) == len(draws)
    for index, weight in enumerate(weights):
        assert int(weight) <= drawn[index] <= int(weight) + (weight % 1 > 0)
    for weight in set(weights):
        members = [i for i, w in enumerate(weights) if w == weight]
        assert sum(drawn[i] for i in members) == pytest.approx(weight * len(members), abs=0.51)


def test_several_manifests_with_weights_make_a_split(tone_settings, tones):
    more = tones["dev"].with_name("more.jsonl")
    shutil.copy(tones["dev"], more)
    both = f"data.train=[{{path: {tones['train']}, weight: 1.5}}, {more}]"
    settings = tone_settings(both, "trainer.max_epochs=1")
    result = train(settings)
    assert result["steps"] == -(-(40 * 3 // 2 + 6) // 8)
    with pytest.raises(UserError, match=r"data.train: .* is no manifest with a weight above 0"):
        tone_settings(f"data.train=[{{path: {tones['train']}, weight: -1}}]")


def test_a_manifest_belongs_to_train_or_to_what_judges_it(tone_settings, tones):
    there = f"{tones['dev'].parent}/../{tones['dev'].parent.name}/dev.jsonl"
    with pytest.raises(UserError, match=r"data\.train and data\.dev both have .*dev\.jsonl; "):
        tone_settings(f"data.train=[{tones['train']}, {there}]")
    tone_settings(f"data.test={tones['dev']}")


def test_a_manifest_without_utterances_is_an_error(tone_settings, tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"^dev: .*none\.jsonl has no utterances$"):
        train(tone_settings(f"data.dev={tmp_path / 'none.jsonl'}"))


def test_new_settings_leave_the_identity_of_earlier_runs_as_it_was(tone_settings):
    settings = tone_settings()
    before = {key: value for key, value in settings.items() if key != "text"}
    before["data"] = {key: settings["data"][key] for key in ("_target_", "train", "dev", "test")}
    assert identity(before) == identity(settings)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_becomes_unreadable_while_training_is_replaced_and_named(tmp_path, workers):
    files = [tmp_path / f"{i}.wav" for i in range(4)]
    for path in files:
        soundfile.write(path, sing(), RATE)
    utterances = [Utterance(path, 1.0, "ab") for path in files]
    reported = []
    data = SpeechData(
        {"train": utterances, "dev": utterances, "test": utterances[:1]},
        Alphabet("ab"),
        sample_rate=RATE,
        batch=4,
        seed=0,
        workers=workers,
        report=lambda file, reason: reported.append((file, reason)),
    )
    files[0].unlink()
    [batch] = data.train_dataloader()
    assert batch.files == [str(files[i]) for i in (1, 1, 2, 3)]
    data.on_before_batch_transfer(batch, 0)
    [(file, reason)] = reported
    assert file == str(files[0])
    assert "cannot read audio" in reason
    [batch] = data.val_dataloader()
    assert batch.files == [str(path) for path in files[1:]]
    [batch] = data.test_dataloader()
    assert not batch.texts


def test_a_stopped_run_goes_on_with_the_data_it_had_only(tone_settings, tones, tmp_path, power_cut):
    shutil.copytree(tones["train"].parent, tmp_path / "copy")
    manifest = tmp_path / "copy" / "train.jsonl"
    settings = tone_settings(f"data.train={manifest}", "trainer.max_epochs=1")
    with power_cut(2):
        train(settings)
    whole = manifest.read_text()
    manifest.write_text("".join(whole.splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"^data has changed .*: 40 utterances of train, now 39; move"):
        train(settings)
    manifest.write_text(whole)
    assert train(settings)["resumed"]
    data = SpeechData({"train": []}, Alphabet("a"), sample_rate=RATE, batch=1, seed=0, workers=0)
    data.load_state_dict({"epoch": 1, "batches": 2})  # as it was written before


@pytest.mark.parametrize("gone", [5, 6])
def test_a_run_goes_on_when_files_vanish_unless_none_is_left_to_test(
    gone, tone_settings, tones, tmp_path, monkeypatch
):
    copy = tmp_path / "copy"
    shutil.copytree(tones["train"].parent, copy)
    fit = training._measure_features

    def tidy_up(*arguments):
        fit(*arguments)
        for name in ("train-3.flac", "dev-0.flac", *(f"test-{i}.flac" for i in range(gone))):
            (copy / name).unlink()

    monkeypatch.setattr("blocksparse_rnn.training.train._measure_features", tidy_up)
    settings = tone_settings(
        *(f"data.{split}={copy / split}.jsonl" for split in tones), "trainer.max_epochs=2"
    )
    with nullcontext() if gone < 6 else pytest.raises(UserError, match="no utterance of the test split"):
        train(settings)
    rows = (RunFolder.of(settings).path / "rejects.jsonl").read_text().splitlines()
    assert len(rows) == len({json.loads(row)["audio_filepath"] for row in rows}) == 2 + gone


def write_recordings(folder: Path, count: int, bad: int) -> dict[str, list[str]]:
    """A folder of .wav with .txt; `bad` of them, in equal shares of each way; names by way."""
    ways: dict[str, list[str]] = {}
    tones_of = {letter: sing(0.1) * k / 4 for k, letter in enumerate("abcd", 1)}
    hours: Path | None = None
    for i in range(count):
        wav = folder / f"{i:03d}.wav"
        text = "".join("abcd"[(i // 4**k) % 4] for k in range(5))
        soundfile.write(wav, np.concatenate([np.pad(tones_of[letter], 960) for letter in text]), RATE)
        wav.with_suffix(".txt").write_text(f"{text.upper()}.\n")
        if i < bad:
            way = [*WAYS][i % len(WAYS)]
            if way == "2 h" and hours is not None:
                shutil.copy(hours, wav)
            else:
                WAYS[way][0](wav)
            hours = wav if way == "2 h" else hours
            ways.setdefault(way, []).append(wav.stem)
    return ways


@pytest.fixture(scope="module")
def recordings(tmp_path_factory) -> tuple[Path, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("recordings")
    return folder, write_recordings(folder, 500, 60)


@pytest.fixture(scope="module")
def prepared(recordings, tmp_path_factory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("prepared")
    settings = compose_settings(["scale=mini", "text=english", f"corpora={out / 'corpora'}"])
    return out, prepare(Request(recordings[0], out, dev=0.1, test=0.1), settings)


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
    for expected in (
        "alphabet: 4 letters: 'abcd'",
        "left out: 45",
        "at most a letter every 40 ms",
        "5 truncated",
    ):
        assert expected in report


def test_training_runs_on_what_prepare_wrote_and_on_the_raw_folder_alike(recordings, prepared, tone_settings):
    folder, out = recordings[0], prepared[0]
    splits = [f"data.{split}={out / split}.jsonl" for split in ("train", "dev", "test")]
    few = ["trainer.max_steps=2", f"corpora={out / 'corpora'}"]
    count = len(read_manifest(out / "train.jsonl"))
    hours = train(tone_settings(*splits, *few))["train_hours"]
    assert hours == pytest.approx(
        sum(u.duration for u in read_manifest(out / "train.jsonl")) / 3600, abs=1e-4
    )

    # A manifest of everything, bad ones included, as somebody else's program may have written it.
    raw = out / "raw.jsonl"
    raw.write_text("".join(manifest_line(u, out) for u in read_layout(folder)))
    settings = tone_settings(*splits[1:], f"data.train={raw}", "text=english", *few)
    train(settings)
    rejects = (RunFolder.of(settings).path / "rejects.jsonl").read_text().splitlines()
    assert len(rejects) == 45
    assert count < 455


def test_prepare_keeps_what_another_manifest_of_the_folder_left_out(recordings, tmp_path):
    settings = compose_settings(["scale=mini", "text=english", f"corpora={tmp_path}"])
    for stem in ("a", "b"):
        for i in (1, 300):  # an empty file and a good one
            for suffix in (".wav", ".txt"):
                (tmp_path / stem).mkdir(exist_ok=True)
                shutil.copy(recordings[0] / f"{i:03d}{suffix}", tmp_path / stem)
        for _ in range(2):
            prepare(Request(tmp_path / stem, tmp_path / f"{stem}.jsonl"), settings)
    rows = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert [row["manifest"] for row in rows] == ["a.jsonl", "b.jsonl"]
    [line] = (tmp_path / "a.jsonl").read_text().splitlines()
    assert json.loads(line)["original_text"] == json.loads(line)["text"].upper() + "."


def spoken(folder: Path, texts: list[str]) -> Path:
    """Recordings of a second each, with .txt."""
    folder.mkdir()
    for i, text in enumerate(texts):
        soundfile.write(folder / f"{i:02d}.wav", sing(), RATE)
        (folder / f"{i:02d}.txt").write_text(text)
    return folder


def test_why_nothing_is_usable_comes_before_what_is_split(tmp_path):
    settings = compose_settings(["scale=mini", "text=english", f"corpora={tmp_path}"])
    out = tmp_path / "out"
    few = spoken(tmp_path / "few", ["One", "日", "本"])
    with pytest.raises(UserError, match=r"2 recordings were left out, see .*rejects\.jsonl$"):
        prepare(Request(few, out), settings)
    assert len((out / "rejects.jsonl").read_text().splitlines()) == 2
    (few / "00.txt").write_text("日")
    with pytest.raises(
        UserError, match=r"none of 3 recordings can be used, see .*rejects\.jsonl; the first: its"
    ):
        prepare(Request(few, out), settings)
    enough = spoken(tmp_path / "enough", [f"word {letter}" for letter in "abcdefghij"])
    prepare(Request(enough, tmp_path / "two", dev=0, test=0.2), settings)
    assert {path.name for path in (tmp_path / "two").iterdir()} == {
        "train.jsonl",
        "test.jsonl",
        "rejects.jsonl",
    }
    # The other way round train would have sentences of the earlier test.
    with pytest.raises(UserError, match=r"^--test 0: .*two/test\.jsonl is there already.*delete it"):
        prepare(Request(enough, tmp_path / "two", dev=0.2, test=0), settings)
    assert not (tmp_path / "two" / "dev.jsonl").exists()


def test_a_folder_that_cannot_be_written_to_is_found_out_before_anything_is_inspected(tmp_path):
    settings = compose_settings(["scale=mini", f"corpora={tmp_path / 'corpora'}"])
    with pytest.raises(UserError, match=r"^cannot write /proc: "):
        prepare(Request(spoken(tmp_path / "some", ["one", "two"]), Path("/proc/all.jsonl")), settings)
    assert not (tmp_path / "corpora").exists()


def test_two_rows_of_one_file_keep_their_own_texts_also_when_cleaned_again(tmp_path):
    soundfile.write(tmp_path / "a.wav", sing(), RATE)
    (tmp_path / "t.csv").write_text("file,text\na.wav,One.\na.wav,Two!\na.wav,日\na.wav,本\n")
    settings = compose_settings(["scale=mini", "text=english", f"corpora={tmp_path}"])
    prepare(Request(tmp_path / "t.csv", tmp_path / "m.jsonl"), settings)
    rejects = map(json.loads, (tmp_path / "rejects.jsonl").read_text().splitlines())
    assert [row["text"] for row in rejects] == ["日", "本"]
    prepare(Request(tmp_path / "m.jsonl", tmp_path / "clean.jsonl"), settings)
    for name in ("m", "clean"):
        rows = map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines())
        assert [(row["text"], row["original_text"]) for row in rows] == [("one", "One."), ("two", "Two!")]


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
