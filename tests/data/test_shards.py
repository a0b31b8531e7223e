"""Corpora in tar files: complete, in an order as exact as that of files, in memory that does not grow."""

import gzip
import io
import json
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import webdataset

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.data.checks import split_usable
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.manifest import Manifests
from blocksparse_rnn.data.shards import ShardedUtterances, Shards, write_shards
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet

RATE = 16000
ALPHABET = Alphabet("abc ")


def noise(seconds: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE))


def corpus(folder: Path, pattern: str, **changes) -> Shards:
    """A corpus to train on; dev and test are an empty shard."""
    (folder / "rest").mkdir(exist_ok=True)
    tarfile.open(folder / "rest" / "rest.tar", "w").close()
    common = {"window": None, "longest": None, "folder": str(folder / "corpora"), "workers": 2}
    rest = dict.fromkeys(("dev", "test"), str(folder / "rest"))
    return Shards(**(common | rest | {"train": str(folder / pattern)} | changes))


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list[Utterance]]:
    """23 utterances in shards of four or five."""
    folder = tmp_path_factory.mktemp("shards")
    utterances = []
    for i in range(23):
        path = folder / f"{i}.flac"
        soundfile.write(path, noise(0.3 + 0.02 * (i * 7 % 23), i), RATE)
        utterances.append(Utterance(path, soundfile.info(path).duration, "abc"[: 1 + i % 3]))
    size = sum(u.audio.stat().st_size for u in utterances) / 1e6
    assert write_shards(utterances, folder, "train", size / 5) > 4
    return folder, utterances


def usable(folder: Path, window: int = 2, pattern: str = "train-*.tar") -> ShardedUtterances:
    found = corpus(folder, pattern, window=window).prepare()["train"]
    assert isinstance(found, ShardedUtterances)
    assert split_usable(found, ALPHABET, lambda seconds: int(seconds * 50))[1] == []
    return found


def loaded(found: Sequence[Utterance], batch: int = 99, workers: int = 0) -> SpeechData:
    """The same utterances in each split."""
    splits = dict.fromkeys(("train", "dev", "test"), found)
    return SpeechData(splits, ALPHABET, sample_rate=RATE, batch=batch, seed=0, workers=workers)


def test_what_goes_in_comes_out_and_webdataset_reads_it_too(written):
    folder, utterances = written
    found = usable(folder)
    assert [(u.text, u.duration) for u in found] == [(u.text, u.duration) for u in utterances]
    theirs = webdataset.WebDataset(sorted(map(str, folder.glob("train-*.tar"))), shardshuffle=False)
    samples = list(theirs)
    assert [sample["flac"] for sample in samples] == [u.audio.read_bytes() for u in utterances]
    assert [json.loads(sample["json"])["text"] for sample in samples] == [u.text for u in utterances]


def test_shards_of_webdataset_with_folders_and_text_files_are_read(tmp_path):
    data = io.BytesIO()
    soundfile.write(data, noise(0.5, 0), RATE, format="WAV")
    with webdataset.TarWriter(str(tmp_path / "theirs.tar")) as writer:
        writer.write({"__key__": "a.b/one", "wav": data.getvalue(), "txt": "ab\n", "cls": 3})
    found = corpus(tmp_path, "*.tar").prepare()["train"]
    assert split_usable(found, ALPHABET, lambda seconds: int(seconds * 50))[1] == []
    [utterance] = found
    assert (utterance.text, utterance.duration) == ("ab", 0.5)
    [batch] = loaded(found).val_dataloader()
    assert batch.samples == [RATE // 2]


def test_what_is_wrong_in_a_shard_is_a_reject(written, tmp_path):
    folder, utterances = written
    good = utterances[0].audio.read_bytes()
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as writer:
        for key, sample in {
            "ok": {"flac": good, "txt": "ab"},
            "cut": {"flac": good[:3000], "txt": "ab"},
            "empty": {"flac": b"", "txt": "ab"},
            "mute": {"flac": good},
            "odd": {"flac": good, "json": b'{"words": 1}'},
            "null": {"flac": good, "json": b'{"text": null}'},
            "list": {"flac": good, "json": b'{"text": ["ab"]}'},
            "both": {"flac": good, "json": b'{"speaker": 1}', "txt": "ab"},
            "text": {"txt": "ab"},
            "german": {"flac": good, "txt": "äh"},
        }.items():
            writer.write({"__key__": key, **sample})
    whole = (folder / "train-000000.tar").read_bytes()
    (tmp_path / "b.tar").write_bytes(whole[: len(whole) * 2 // 3])
    (tmp_path / "c.tar").write_bytes(b"no tar file at all" * 100)
    (tmp_path / "d.tar").write_bytes(gzip.compress(whole))
    found = corpus(tmp_path, "*.tar").prepare()["train"]
    _, rejects = split_usable(found, ALPHABET, lambda seconds: int(seconds * 50))
    reasons = {reject.utterance.audio.name: reject.reason for reject in rejects}
    for name, expected in {
        "cut.flac": "not readable as audio",
        "empty.flac": "the file is empty",
        "mute.flac": "there is no .json or .txt with it",
        "odd.flac": "odd.json has no text in it",
        "null.flac": "null.json has no text in it",
        "list.flac": "list.json has no text in it",
        "german.flac": "its text has",
        "b.tar": "the shard breaks off or is no tar file",
        "c.tar": "the shard breaks off or is no tar file",
        "d.tar": "the shard breaks off or is no tar file (it must not be compressed)",
    }.items():
        assert reasons[name].startswith(expected), name
    assert any("there is no audio with it" in reason for reason in reasons.values())
    assert [u.audio.name for u in list(found)[:2]] == ["ok.flac", "both.flac"]
    assert len(found) > 2
    with pytest.raises(UserError, match=r"data\.train=.*no shards; give a folder of \.tar files"):
        corpus(tmp_path, "*.tgz").prepare()


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE", "PCM_24"])
def test_a_part_of_a_file_keeps_its_loudness_in_a_shard(tmp_path, subtype):
    wave = np.concatenate([np.zeros(RATE), noise(1, 0), [1.5]])
    soundfile.write(tmp_path / "long.wav", wave, RATE, subtype=subtype)
    part = Utterance(tmp_path / "long.wav", 1.0, "ab", offset=1.0)
    write_shards([part], tmp_path, "train", 1)
    found = usable(tmp_path)
    [read] = loaded(found).val_dataloader()
    np.testing.assert_allclose(read.wave_BS[0].numpy(), wave[RATE : 2 * RATE], atol=1e-4)


def test_fewer_shards_take_the_place_of_more_also_in_a_folder_with_a_percent_sign(written, tmp_path):
    folder = tmp_path / "100%s"
    folder.mkdir()
    others = [folder / "train-a.tar", folder / "dev-000003.tar"]
    for path in others:
        path.touch()
    assert write_shards(written[1], folder, "train", 0.02) > 4
    (folder / "train-000002.tar").unlink()
    assert write_shards(written[1][:2], folder, "train", 1) == 1
    assert sorted(folder.iterdir()) == sorted([*others, folder / "train-000000.tar"])


def test_a_disk_that_fails_while_a_shard_is_inspected_leaves_no_index(written, tmp_path, monkeypatch):
    (tmp_path / "a.tar").write_bytes((written[0] / "train-000000.tar").read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr(tarfile.ExFileObject, "read", lambda *_: os.read(-1, 1))
        with pytest.raises(UserError, match=r"cannot read .*a\.tar: Bad file descriptor"):
            corpus(tmp_path, "*.tar").prepare()
    assert len(usable(tmp_path, pattern="a.tar")) > 2


def test_a_shard_belongs_to_train_or_to_what_judges_it(written, tmp_path):
    (tmp_path / "link").symlink_to(written[0])
    with pytest.raises(UserError, match=r"data\.train and data\.test both have .*train-\*\.tar"):
        corpus(tmp_path, "link", test=str(written[0] / "train-000001.tar")).prepare()


@pytest.mark.parametrize("world", [1, 2, 3])
def test_ranks_and_workers_share_an_epoch_without_overlap_or_loss(written, world):
    files: list[str] = []
    for rank in range(world):
        data = loaded(usable(written[0]), batch=6, workers=2)
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world)
        files += (file for batch in data.train_dataloader() for file in batch.files)
    assert len(files) == len(set(files)) == 23


def test_a_shard_that_vanishes_while_training_is_replaced_and_named(written, tmp_path):
    (tmp_path / "a.tar").write_bytes((written[0] / "train-000000.tar").read_bytes())
    (tmp_path / "b.tar").write_bytes((written[0] / "train-000001.tar").read_bytes())
    found = corpus(tmp_path, "*.tar").prepare()["train"]
    split_usable(found, ALPHABET, lambda seconds: int(seconds * 50))
    data = loaded(found)
    (tmp_path / "a.tar").unlink()
    [batch] = data.train_dataloader()
    assert len(batch.files) == len(found)
    assert {Path(file).parent.name for file in batch.files} == {"b.tar"}
    assert all("a.tar: No such file" in reason for _, reason in batch.unreadable)


def test_synthetic_speech_its_files_and_its_shards_give_the_same_batches(tmp_path):
    options = ["scale=mini", f"corpora={tmp_path}", "data.hours=0.01", "data.vocabulary=100"]
    made = compose_settings(options).data.build()
    for split, utterances in made.prepare().items():
        write_shards(utterances, tmp_path, split, 0.2)
    assert len(list(tmp_path.glob("train-*.tar"))) > 1
    paths = {split: str(made.folder / f"{split}.jsonl") for split in ("train", "dev", "test")}
    files = Manifests(**paths, longest=None, folder=str(tmp_path), workers=1)
    shards = corpus(tmp_path, "train-*.tar", **{s: str(tmp_path / f"{s}-*.tar") for s in ("dev", "test")})
    alphabet, epochs = Alphabet("abcdefghijklmnopqrstuvwxyz '"), []
    for each in (made, files, shards):
        splits = each.prepare()
        for utterances in splits.values():
            assert not split_usable(utterances, alphabet, lambda seconds: int(seconds * 25))[1]
        data = SpeechData(splits, alphabet, sample_rate=RATE, batch=4, seed=0, workers=0)
        loader = data.train_dataloader()
        batches = [*data.val_dataloader(), *data.test_dataloader()]
        for epoch in range(2):
            loader.batch_sampler.sampler.set_epoch(epoch)
            batches += loader
        epochs.append(batches)
    for one, *others in zip(*epochs, strict=True):
        for other in others:
            assert torch.equal(one.wave_BS, other.wave_BS)
            assert one.texts == other.texts
