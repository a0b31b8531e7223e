"""Whole trainings on tones: they learn, repeat to the bit, resume after a stop, and log their metrics."""

import csv
import errno
import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from threading import Timer as After
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from pytorch_lightning.callbacks import Timer
from pytorch_lightning.loggers import WandbLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.inference.sources import find_sources
from blocksparse_rnn.inference.transcriber import Transcriber
from blocksparse_rnn.runs.checkpoint_files import DurableCheckpointIO, load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped
from blocksparse_rnn.speech.features import Features
from blocksparse_rnn.training.checkpoints import Checkpoints
from blocksparse_rnn.training.loggers import MetricsCSV, replay_metrics
from blocksparse_rnn.training.progress import Progress
from blocksparse_rnn.training.recogniser import Recogniser
from blocksparse_rnn.training.train import train

TRAIN = CONF.parent / "src" / "train.py"


def metrics_of(run: RunFolder) -> list[tuple[str, ...]]:
    with open(run.metrics, newline="") as file:
        return [tuple(row[:4]) for row in csv.reader(file)]


def test_a_training_learns_and_leaves_a_complete_folder(tone_settings, tones):
    settings = tone_settings("width=48", "trainer.max_epochs=24", "trainer.log_every=1")
    result = train(settings)
    run = RunFolder.of(settings)
    assert result["cer"] < 0.5  # guessing gives about 0.8, silence 1
    assert result == json.loads((run.path / "result.json").read_text())
    assert json.loads((run.path / "status.json").read_text())["state"] == "finished"
    assert run.settings() == settings.plain()
    assert result["parameters"]["total"] == result["parameters"]["nonzero"]
    assert not run.last.exists()
    names = {row[2] for row in metrics_of(run)[1:]}
    assert {"train/loss", "train/ctc_loss", "val/cer", "val/wer", "val/loss", "test/cer", "test/wer"} <= names

    sources = find_sources([tones["test"]])
    texts = [transcript.text for transcript in Transcriber(run.path).transcribe(sources)]
    edits = sum(text != source.text for text, source in zip(texts, sources, strict=True))
    assert (edits == 0) == (result["cer"] == 0)


def test_a_finished_run_is_not_done_again(tone_settings, monkeypatch):
    settings = tone_settings("trainer.max_steps=1")
    first = train(settings)
    monkeypatch.setattr("blocksparse_rnn.training.train._train", lambda *_: pytest.fail("trained again"))
    assert train(settings) == first


def test_the_same_seed_gives_the_same_bits(tone_settings, tmp_path):
    settings = [tone_settings(f"outputs={tmp_path / name}") for name in ("a", "b")]
    settings.append(tone_settings("seed=1"))
    for each in settings:
        train(each)
    first, second, other = (RunFolder.of(each) for each in settings)
    assert metrics_of(first) == metrics_of(second)
    for name, weight in load_weights(first.best).items():
        assert torch.equal(weight, load_weights(second.best)[name]), name
    assert metrics_of(first) != metrics_of(other)


@pytest.mark.parametrize(("workers", "parts"), [(0, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("stop_after", [2, 5, 7, 10])
def test_a_stopped_run_ends_as_if_it_had_not_been(
    tone_settings, tmp_path, power_cut, stop_after, workers, parts
):
    augmented = (
        "features.specaugment={n_time_masks: 1, time_mask_param: 5, n_freq_masks: 1, freq_mask_param: 9}"
    )
    options = [augmented, f"workers={workers}", "trainer.log_every=1"]
    if parts > 1:
        options += [f"epochs_per_pass={parts}", "trainer.max_epochs=6"]  # of two steps each
    undisturbed = tone_settings(*options, f"outputs={tmp_path / 'undisturbed'}")
    train(undisturbed)

    settings = tone_settings(*options)
    with power_cut(stop_after):
        train(settings)
    run = RunFolder.of(settings)
    assert json.loads((run.path / "status.json").read_text())["state"] == "failed"

    assert train(settings)["resumed"]
    expected = load_weights(RunFolder.of(undisturbed).best)
    for name, weight in load_weights(run.best).items():
        assert torch.equal(weight, expected[name]), name
    assert metrics_of(run) == metrics_of(RunFolder.of(undisturbed))


@pytest.mark.parametrize(("asked_after", "limit"), [(3, -1), (5, -1), (10, -1), (7, 7)])
def test_a_run_that_is_asked_to_end_leaves_nothing_out(
    tone_settings, tmp_path, monkeypatch, asked_after, limit
):
    """In mid-epoch, after an epoch's last step and after the very last one, where validation is to follow."""
    options = ["trainer.max_epochs=2", "trainer.log_every=1", f"trainer.max_steps={limit}"]
    undisturbed = tone_settings(*options, f"outputs={tmp_path / 'undisturbed'}")
    expected = train(undisturbed)

    on_batch_end = Checkpoints.on_train_batch_end

    def end(self, trainer, *rest):
        if trainer.global_step == asked_after:
            signal.raise_signal(signal.SIGTERM)
        on_batch_end(self, trainer, *rest)

    settings = tone_settings(*options)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", end)
        with pytest.raises(Stopped):
            train(settings)
    result = train(settings)
    assert result["resumed"]
    rows, expected_rows = (
        # Lightning counts the epoch that max_steps broke off as ended, unless it resumes behind it.
        [(step, name, value) for step, _, name, value in metrics_of(RunFolder.of(each))]
        for each in (settings, undisturbed)
    )
    assert rows == expected_rows
    assert all(result[name] == expected[name] for name in ("dev_cer", "best_step", "cer"))


def test_a_pass_of_fewer_batches_than_epochs_is_refused(tone_settings):
    with pytest.raises(
        UserError, match=r"^epochs_per_pass=6: train has fewer batches of 8 than that; give more"
    ):
        train(tone_settings("epochs_per_pass=6"))


@pytest.mark.parametrize("steps", [2, 7])  # of 5 an epoch
def test_a_training_that_ends_within_an_epoch_is_judged_by_its_last_weights(tone_settings, steps):
    settings = tone_settings(f"trainer.max_steps={steps}", "sparsifier=gl")
    result = train(settings)
    judged = [row for row in metrics_of(RunFolder.of(settings)) if row[2] == "val/cer"]
    assert (result["best_step"], judged[-1][0]) == (steps, str(steps - 1))
    assert result["dev_cer"] == pytest.approx(float(judged[-1][3]))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_one_line(tone_settings):
    settings = tone_settings("trainer.accelerator=gpu")
    with pytest.raises(
        UserError, match=r"^trainer.accelerator=gpu, trainer.devices=1: this machine has 0 GPUs"
    ):
        train(settings)
    assert not RunFolder.of(settings).path.exists()


def test_gradients_that_stay_infinite_stop_the_run_and_name_the_files(tone_settings, monkeypatch):
    broken = Features.forward
    monkeypatch.setattr(Features, "forward", lambda *a: (broken(*a)[0] * float("nan"), broken(*a)[1]))
    with pytest.raises(UserError, match=r"2 steps in a row .* at step 1 .*train-\d+\.flac"):
        train(tone_settings("trainer.max_skipped=1"))


def test_utterances_that_ctc_cannot_learn_are_left_out_and_named(tone_settings, tones, tmp_path):
    lines = tones["train"].read_text().splitlines()
    folder = tones["train"].parent
    bad = [
        json.loads(lines[0]) | {"text": text} for text in ("", "äh", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa")
    ]
    rows = [json.loads(line) for line in lines] + bad
    for row in rows:
        row["audio_filepath"] = str(folder / row["audio_filepath"])
    manifest = tmp_path / "train.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = tone_settings(f"data.train={manifest}", "trainer.max_steps=1")
    train(settings)
    rejects = (RunFolder.of(settings).path / "rejects.jsonl").read_text().splitlines()
    reasons = [json.loads(line)["reason"] for line in rejects]
    assert [r.split(":")[0] for r in reasons] == [
        "its text is empty",
        "its text has 'ä', which the alphabet lacks",
        "too short for its text",
    ]
    with pytest.raises(UserError, match="3 of the 43 utterances of train"):
        train(tone_settings(f"data.train={manifest}", "max_rejects=0.01"))


def test_a_penalty_is_added_to_the_loss(tone_settings, monkeypatch):
    monkeypatch.setattr(
        Recogniser, "on_fit_start", lambda self: self.penalties.append(("fine", lambda: torch.tensor(1e3)))
    )
    settings = tone_settings("trainer.max_steps=1", "trainer.log_every=1")
    train(settings)
    row = {name: float(value) for _, _, name, value in metrics_of(RunFolder.of(settings))[1:]}
    assert row["train/loss"] == pytest.approx(row["train/ctc_loss"] + 1e3)
    assert row["train/fine"] == 1e3


def test_two_processes_cannot_work_on_one_run(tone_settings, monkeypatch):
    monkeypatch.setattr("blocksparse_rnn.runs.folder.LOCK_PATIENCE", 0.2)
    settings = tone_settings()
    with RunFolder.of(settings).lock(), pytest.raises(UserError, match="another process"):
        train(settings)


def test_who_has_a_run_only_for_a_moment_is_waited_for(tmp_path):
    for run in (RunFolder(tmp_path), RunFolder(tmp_path)):
        held = ExitStack()
        held.enter_context(run.lock())
        After(0.3, held.close).start()
        with RunFolder(tmp_path).lock():
            assert RunFolder(tmp_path).is_locked()
    assert not RunFolder(tmp_path).is_locked()


def test_an_output_folder_that_cannot_be_written_is_one_line(tone_settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write .*choose another folder"):
        train(tone_settings(f"outputs={tmp_path / 'file'}"))


def test_a_disk_that_fills_up_during_a_checkpoint_is_one_line(tmp_path, monkeypatch):
    class FullDisk(io.BytesIO):
        def write(self, data) -> int:
            if self.tell() + len(data) > 100_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr("builtins.open", lambda *_, **__: FullDisk())
    path = tmp_path / "last.ckpt"
    with pytest.raises(
        UserError, match=r"cannot write .*last.ckpt: No space left on device; free some space"
    ):
        DurableCheckpointIO().save_checkpoint({"weights": torch.randn(1000, 1000)}, path)
    assert not list(tmp_path.iterdir())


def test_tensorboard_gets_the_metrics(tone_settings):
    settings = tone_settings("logger=tensorboard", "trainer.max_steps=2")
    result = train(settings)
    events = EventAccumulator(str(RunFolder.of(settings).path / "tensorboard"))
    events.Reload()
    [logged] = events.Scalars("test/cer")
    assert logged.value == pytest.approx(result["cer"])


def test_a_damaged_checkpoint_is_one_line(tone_settings):
    settings = tone_settings("trainer.max_steps=1")
    train(settings)
    run = RunFolder.of(settings)
    run.best.write_bytes(run.best.read_bytes()[:1000])
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        Transcriber(run.path)


@pytest.mark.parametrize("offline", [True, False])
def test_a_run_that_goes_on_offline_tells_wandb_all_from_the_first_step(tmp_path, offline):
    kept = MetricsCSV(tmp_path / "metrics.csv")
    logged = [
        ({"train/loss": 3.0, "train/skipped": 0.0}, 1, 0),
        ({"val/cer": 0.5}, 4, 0),
        ({"val/cer": 0.4}, 8, 1),
    ]
    for metrics, step, epoch in logged:
        kept.log_metrics(metrics | {"epoch": epoch}, step)
    wandb = MagicMock(spec=WandbLogger, experiment=SimpleNamespace(offline=offline))
    replay_metrics(kept.path, [kept, wandb])
    calls = [call.args for call in wandb.log_metrics.call_args_list]
    assert calls == [(metrics | {"epoch": epoch}, step) for metrics, step, epoch in logged if offline]
    assert kept.path.read_text().count("\n") == 5


def test_the_time_left_is_no_longer_than_max_time_leaves(tmp_path):
    progress, timer = Progress(RunFolder(tmp_path)), Timer({"seconds": 3})
    progress.total, progress._start = 10_000, (time.monotonic() - 10, 0)
    trainer: Any = SimpleNamespace(global_step=10, callbacks=[progress])
    assert progress._seconds_left(trainer) > 9000
    trainer.callbacks.append(timer)
    timer.on_train_start(trainer, trainer)
    assert 2 < progress._seconds_left(trainer) <= 3


def test_wandb_offline_without_a_key_has_group_settings_and_result(tones, tmp_path):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9"}
    data = [f"data.{split}={path}" for split, path in tones.items()]
    options = [
        "scale=mini",
        "width=16",
        "data=manifest",
        "batch=8",
        "trainer.max_steps=2",
        "sweep=pilot",
        "sparsifier=bp",
    ]
    command = [sys.executable, str(TRAIN), *options, *data, f"outputs={tmp_path / 'outputs'}", "logger=wandb"]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "logging offline" in done.stderr
    [run_path] = (tmp_path / "outputs").iterdir()
    [file] = run_path.rglob("*.wandb")
    inspect = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    printed = subprocess.run(inspect, capture_output=True, text=True, check=True, env=environment).stdout
    [record] = [line for line in printed.splitlines() if '"run_group"' in line]
    for expected in ('"run_group":"pilot"', '"job_type":"gru"', '"width":16', '"hidden_size":16'):
        assert expected in record, expected
    # Of the rates on dev the last counts: the least may be of an epoch before the last pruning.
    for name in ("val/cer", "val/wer"):
        assert f'"name":"{name}","options":{{"defined":true}},"summary":{{"last":true}}' in printed
    summary = subprocess.run(
        [*inspect, "--summary"], capture_output=True, text=True, check=True, env=environment
    )
    result = json.loads((run_path / "result.json").read_text())
    assert json.loads(summary.stdout)["summary"]["test/cer"] == pytest.approx(result["cer"])
    assert list(run_path.rglob("media/images/masks*.png"))
