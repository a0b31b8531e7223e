"""Recordings of all kinds, bad ones among them: nothing ends a run, and what can't be used is named."""

import json
import os
import shutil
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from bad_audio import RATE, sing
from hypothesis import given
from hypothesis import strategies as st

from blocksparse_rnn.data.audio import load_audio, open_audio
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.inspection import MEMORY, Inspector, inspect_file
from blocksparse_rnn.data.layouts import read_layout
from blocksparse_rnn.data.manifest import Manifests, Utterance, manifest_line, read_manifest
from blocksparse_rnn.data.sampler import WeightedDraws
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.features import Features
from blocksparse_rnn.training.train import train

SUFFIXES = ["wav", "flac", "ogg", "mp3"]


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


def test_raw_audio_and_audio_of_no_length_are_told_apart(tmp_path):
    (tmp_path / "talk.raw").write_bytes(bytes(1000))
    with pytest.raises(UserError, match=r"cannot read audio from .*talk.raw: raw audio lacks a header"):
        load_audio(tmp_path / "talk.raw", 16_000)
    assert "raw audio lacks a header" in inspect_file(tmp_path / "talk.raw").problem
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
        ({"duration": 1.0}, "for a part of a file, give an offset"),
        ({"duration": 1.0, "offset": 0.5}, None),
        (
            {"duration": 1.0, "offset": 1.5},
            "ends at 2.50 s (offset and duration), but the file has only 2.00 s",
        ),
    ],
)
def test_a_length_is_held_against_the_file(tmp_path, fields, problem):
    soundfile.write(tmp_path / "a.wav", sing(2), RATE)
    [found] = Inspector(tmp_path / MEMORY, 1, None)(
        [replace(Utterance(tmp_path / "a.wav", 0, "a"), **fields)]
    )
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


def test_a_bad_line_of_a_manifest_is_a_reject_and_a_missing_manifest_an_error(tmp_path, tones):
    soundfile.write(tmp_path / "a.wav", sing(), RATE)
    lines = [manifest_line(Utterance(tmp_path / "a.wav", 1.0, "a"), tmp_path), "{}\n", "no json\n"]
    (tmp_path / "m.jsonl").write_text(
        "".join(lines) + '{"audio_filepath": "a.wav", "duration": -1, "text": ""}'
    )
    found = manifests(tones, train=str(tmp_path / "m.jsonl")).prepare()["train"]
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


def manifests(tones, **changes) -> Manifests:
    common = {split: str(path) for split, path in tones.items()}
    return Manifests(
        **(common | {"longest": None, "folder": str(tones["dev"].parent), "workers": 1} | changes)
    )


def test_several_manifests_with_weights_make_a_split(tones):
    train = [{"path": str(tones["train"]), "weight": 1.5}, str(tones["dev"].with_name("more.jsonl"))]
    shutil.copy(tones["dev"], train[1])
    splits = manifests(tones, train=train).prepare()
    data = SpeechData(splits, Alphabet("abcd "), sample_rate=RATE, batch=8, seed=0, workers=0)
    assert len(data.train_dataloader()) == -(-(40 * 3 // 2 + 6) // 8)
    with pytest.raises(UserError, match=r"data.train: .*: must be a manifest with a weight above 0"):
        manifests(tones, train=[{"path": train[1], "weight": -1}])


def test_a_manifest_belongs_to_train_or_to_what_judges_it(tones):
    there = f"{tones['dev'].parent}/../{tones['dev'].parent.name}/dev.jsonl"
    with pytest.raises(UserError, match=r"data\.train and data\.dev both have .*dev\.jsonl; "):
        manifests(tones, train=[str(tones["train"]), there])
    manifests(tones, test=str(tones["dev"]))


def test_a_manifest_without_utterances_is_an_error(tone_settings, tmp_path):
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(UserError, match=r"^dev: .*none\.jsonl has no utterances$"):
        train(tone_settings(f"data.dev={tmp_path / 'none.jsonl'}"))


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


@pytest.mark.parametrize("gone", [5, 6])
def test_a_run_goes_on_when_files_vanish_unless_none_is_left_to_test(
    gone, tone_settings, tones, tmp_path, monkeypatch
):
    copy = tmp_path / "copy"
    shutil.copytree(tones["train"].parent, copy)
    fit = Features.fit

    def tidy_up(*arguments):
        fit(*arguments)
        for name in ("train-3.flac", "dev-0.flac", *(f"test-{i}.flac" for i in range(gone))):
            (copy / name).unlink()

    monkeypatch.setattr(Features, "fit", tidy_up)
    settings = tone_settings(
        *(f"data.{split}={copy / split}.jsonl" for split in tones), "trainer.max_epochs=2"
    )
    with nullcontext() if gone < 6 else pytest.raises(UserError, match="no utterance of the test split"):
        train(settings)
    rows = (RunFolder.of(settings).path / "rejects.jsonl").read_text().splitlines()
    assert len(rows) == len({json.loads(row)["audio_filepath"] for row in rows}) == 2 + gone
