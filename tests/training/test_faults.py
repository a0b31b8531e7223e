"""Faults, one at a time: signals, damaged checkpoints, gradients that are not finite, hostile files.

`make faults` (tests/faults.py) injects them into whole sweeps, at random moments.
"""

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from blocksparse_rnn import distributed
from blocksparse_rnn.cli import program
from blocksparse_rnn.cli.verify import verify
from blocksparse_rnn.config.compose import CONF, compose_settings
from blocksparse_rnn.config.schema import typed
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.manifest import read_manifest
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.training.checkpoints import Checkpoints
from blocksparse_rnn.training.loggers import MetricsCSV
from blocksparse_rnn.training.recogniser import Recogniser
from blocksparse_rnn.training.skip_nonfinite import SkipNonFinite
from blocksparse_rnn.training.train import train

PRUNED = ["sparsifier=glp", "target_sparsity=0.5", "schedule.freq=2", "trainer.log_every=1"]


def metrics_of(run: RunFolder) -> list[str]:
    return [row.rsplit(",", 1)[0] for row in run.metrics.read_text().splitlines()]


def assert_same_end(run: RunFolder, other: RunFolder) -> None:
    """Weights, zeros and metrics are equal to the bit, and so are the figures of the result."""
    expected = load_weights(other.best)
    for name, weight in load_weights(run.best).items():
        assert torch.equal(weight, expected[name]), name
    assert metrics_of(run) == metrics_of(other)
    mine, its = run.result(), other.result()
    assert mine is not None
    assert its is not None
    same = (
        "cer",
        "wer",
        "dev_cer",
        "best_step",
        "steps",
        "sparsity/total",
        "block_norm",
        "pruning",
        "thresholds",
    )
    assert {name: mine[name] for name in same} == {name: its[name] for name in same}


@pytest.fixture(scope="module")
def undisturbed(tones, tmp_path_factory):
    """A pruned run without faults."""

    data = [f"data.{split}={path}" for split, path in tones.items()]
    base = ["scale=mini", "model=gru", "width=16", "data=manifest", "logger=csv", "workers=0", "batch=8"]
    where = [
        f"outputs={tmp_path_factory.mktemp('undisturbed')}",
        "trainer.max_epochs=3",
        "trainer.accelerator=cpu",
    ]
    settings = compose_settings([*base, *where, *data, *PRUNED])
    train(settings)
    return RunFolder.of(settings)


class Plug(Exception):
    """Pulled."""


def pull_the_plug_after(monkeypatch: pytest.MonkeyPatch, hook: str, calls: int) -> None:
    """Let a training break off after the nth call of a hook of its checkpoints."""
    original, count = getattr(Checkpoints, hook), iter(range(1, 1000))

    def broken(self, *rest):
        original(self, *rest)
        if next(count) == calls:
            raise Plug

    monkeypatch.setattr(Checkpoints, hook, broken)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR2])
def test_a_signal_saves_and_the_run_resumes_to_the_bit(tone_settings, undisturbed, monkeypatch, number):
    settings = tone_settings(*PRUNED)
    on_batch_end, save = Checkpoints.on_train_batch_end, Checkpoints._save_last

    def ask(self, trainer, *rest):
        if trainer.global_step == 7:  # in mid-epoch and mid-ramp
            os.kill(os.getpid(), number)
        on_batch_end(self, trainer, *rest)

    def ask_again_while_saving(self, trainer):
        if number == signal.SIGTERM and trainer.global_step == 7:
            os.kill(os.getpid(), number)
        save(self, trainer)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", ask)
    monkeypatch.setattr(Checkpoints, "_save_last", ask_again_while_saving)
    with pytest.raises(SystemExit) as ended:
        program.run(lambda: train(settings))
    assert ended.value.code == 128 + number
    run = RunFolder.of(settings)
    assert run.status()["state"] == "stopped"
    assert torch.load(run.last, weights_only=True)["global_step"] == 7
    monkeypatch.undo()
    assert train(settings)["resumed"]
    assert_same_end(run, undisturbed)


def test_a_signal_while_the_ranks_agree_on_whether_one_came_is_not_lost(tone_settings, monkeypatch):
    agree, calls = distributed.largest, iter(range(1000))

    def interrupted(value, device):
        if next(calls) == 0:  # the first checkpoint, of the first of three epochs
            os.kill(os.getpid(), signal.SIGTERM)
        return agree(value, device)

    monkeypatch.setattr(distributed, "largest", interrupted)
    settings = tone_settings()
    with pytest.raises(Stopped, match="SIGTERM"):
        train(settings)
    run = RunFolder.of(settings)
    saved = [torch.load(path, weights_only=True)["global_step"] for path in (run.previous, run.last)]
    assert saved == [5, 6]  # an epoch has five steps


@pytest.mark.parametrize("left", ["", "step,epo"])
def test_metrics_that_a_full_disk_cut_in_their_header_begin_anew(tmp_path, left):
    metrics = MetricsCSV(tmp_path / "metrics.csv")
    metrics.path.write_text(left)
    metrics.truncate_after(7)
    metrics.log_metrics({"val/cer": 0.5}, 7)
    assert [line.split(",")[:4] for line in metrics.path.read_text().splitlines()] == [
        ["step", "epoch", "metric", "value"],
        ["7", "0", "val/cer", "0.5"],
    ]


def test_a_folder_that_turns_read_only_in_mid_write_is_one_line(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    with (
        pytest.raises(UserError, match=r"cannot write .*config.yaml"),
        durable_file(tmp_path / "config.yaml"),
    ):
        pass


def test_before_the_first_step_a_signal_ends_at_once(tone_settings, monkeypatch):
    monkeypatch.setattr(
        "blocksparse_rnn.training.train.load_data", lambda *_: os.kill(os.getpid(), signal.SIGTERM)
    )
    with pytest.raises(Stopped, match="SIGTERM"):
        train(tone_settings())
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_loader_worker_ends_when_its_training_asks_and_not_when_a_scheduler_does(tones):
    utterances = read_manifest(tones["train"])
    data = SpeechData({"train": utterances}, Alphabet("abcd "), sample_rate=16000, batch=1, seed=0, workers=1)
    batches = iter(data.train_dataloader())
    next(batches)
    [worker] = batches._workers
    for name in ("TERM", "INT", "USR2"):
        subprocess.run(["sh", "-c", f"kill -{name} {worker.pid}"], check=True)  # of another sender
    assert len(list(batches)) == len(utterances) - 1
    worker.terminate()  # as at the end of a program that an error ended
    worker.join(60)
    assert worker.exitcode == 0


def damage_in_the_middle(path: Path) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - byte for byte in content[middle : middle + 8])
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["flipped", "cut", "empty", "both"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tone_settings, undisturbed, monkeypatch, capsys, kind
):
    settings = tone_settings(*PRUNED)
    run = RunFolder.of(settings)
    pull_the_plug_after(monkeypatch, "on_train_epoch_start", 3)
    with pytest.raises(Plug):
        train(settings)
    monkeypatch.undo()
    (run.checkpoints / ".last.ckpt.1.tmp").write_bytes(b"half a checkpoi")
    damage_in_the_middle(run.last)
    if kind == "cut":
        run.last.write_bytes(run.last.read_bytes()[:5000])
    elif kind == "empty":
        run.last.write_bytes(b"")
    elif kind == "both":
        damage_in_the_middle(run.previous)
    capsys.readouterr()
    result = train(settings)
    printed = capsys.readouterr().out
    assert f"{run.last}: is damaged (" in printed
    assert result["resumed"] == (kind != "both")
    assert ("resuming from step 5" in printed) == (kind != "both")
    assert_same_end(run, undisturbed)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == ["best.ckpt"]


@pytest.mark.parametrize(("hook", "calls"), [("on_train_end", 1), ("on_test_start", 1), ("_save_best", 1)])
def test_a_run_that_breaks_off_near_its_end_loses_nothing(
    tone_settings, undisturbed, monkeypatch, hook, calls
):
    settings = tone_settings(*PRUNED)
    pull_the_plug_after(monkeypatch, hook, calls)
    with pytest.raises(Plug):
        train(settings)
    monkeypatch.undo()
    result = train(settings)
    assert_same_end(RunFolder.of(settings), undisturbed)
    assert result["wall_seconds"] > 0
    assert (RunFolder.of(settings).path / "masks.png").is_file()


def test_gradients_that_are_not_finite_leave_no_trace_but_the_count(tone_settings, monkeypatch):
    step, seen = Recogniser.training_step, {}

    def poisoned(self, batch, index):
        loss = step(self, batch, index)
        return loss * float("nan") if self.global_step in (3, 4) else loss

    def note(self, trainer, recogniser, *rest):
        seen[trainer.global_step] = {name: value.clone() for name, value in recogniser.state_dict().items()}

    monkeypatch.setattr(Recogniser, "training_step", poisoned)
    monkeypatch.setattr(SkipNonFinite, "on_train_batch_end", note, raising=False)
    result = train(tone_settings("trainer.max_skipped=2", "trainer.max_steps=6"))
    assert result["skipped_steps"] == 2
    for name, value in seen[3].items():
        assert torch.equal(seen[4][name], value), name
        assert torch.equal(seen[5][name], value), name
    assert any(not torch.equal(seen[6][name], value) for name, value in seen[5].items())


def test_verify_finds_what_differs(undisturbed, tmp_path):
    checks = {what: (holds, words) for what, holds, words in verify(undisturbed.path)}
    assert all(holds for holds, _ in checks.values()), checks
    assert {
        "settings",
        "parameters, nonzero",
        "sparsity, total",
        "test CER",
        "version of torch",
    } <= checks.keys()

    lying = tmp_path / undisturbed.path.name
    lying.mkdir()
    for name in ("config.yaml", "result.json"):
        (lying / name).write_text((undisturbed.path / name).read_text())
    (lying / "checkpoints").mkdir()
    os.link(undisturbed.best, lying / "checkpoints" / "best.ckpt")
    result = json.loads((lying / "result.json").read_text())
    result |= {"cer": result["cer"] - 0.1, "sparsity/total": 0.99}
    result["versions"]["torch"] = "1.0"
    (lying / "result.json").write_text(json.dumps(result))
    (lying / "config.yaml").write_text((lying / "config.yaml").read_text().replace("seed: 0", "seed: 8"))
    wrong = {what for what, holds, _ in verify(lying) if not holds}
    assert wrong == {"settings", "name", "test CER", "sparsity, total", "version of torch"}
    (lying / "config.yaml").write_text((lying / "config.yaml").read_text().replace("size: 16", "size: 20"))
    with pytest.raises(UserError, match=r"its checkpoint does not fit its config.yaml: size mismatch"):
        list(verify(lying))


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_checkpoint_with_code_in_it_runs_none(tone_settings, tmp_path, monkeypatch):
    settings = tone_settings(*PRUNED)
    run = RunFolder.of(settings)
    pull_the_plug_after(monkeypatch, "on_train_epoch_start", 2)
    with pytest.raises(Plug):
        train(settings)
    monkeypatch.undo()
    trap = tmp_path / "exploded"
    assert pickle.loads(pickle.dumps(Bomb(trap))) is None
    assert trap.exists()  # the bomb works
    trap.unlink()
    torch.save(torch.load(run.last, weights_only=True) | {"extra": Bomb(trap)}, run.last)
    assert zipfile.is_zipfile(run.last)
    train(settings)
    torch.save(torch.load(run.best, weights_only=True) | {"extra": Bomb(trap)}, run.best)
    with pytest.raises(UserError, match="cannot read the checkpoint"):
        load_weights(run.best)
    assert not trap.exists()


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "blocksparse_rnn.files.os.system",
        "blocksparse_rnn.runs.folder.subprocess",
        "builtins.eval",
    ],
)
def test_settings_build_nothing_from_outside_the_package(target):
    with pytest.raises(UserError, match=r"must lie inside blocksparse_rnn|no such class"):
        typed({**compose_settings([]).plain(), "optimizer": {"_target_": target}})


def test_a_manifest_cannot_lead_out_of_its_folder(tmp_path):
    for name, good in {"a.flac": True, "x/../a.flac": True, "/data/a.flac": True, "../a.flac": False}.items():
        manifest = tmp_path / "list.jsonl"
        manifest.write_text(json.dumps({"audio_filepath": name, "duration": 1.0, "text": "a"}) + "\n")
        if good:
            [utterance] = read_manifest(manifest)
            assert utterance.audio == tmp_path / name
        else:
            with pytest.raises(UserError, match=r"line 1: .*leads out of"):
                read_manifest(manifest)


@pytest.mark.slow
def test_a_key_is_nowhere_in_what_a_run_leaves(tones, tmp_path):
    secret = "5ec7e7" * 7  # of the length of a W&B key
    data = [f"data.{split}={path}" for split, path in tones.items()]
    options = ["scale=mini", "width=16", "data=manifest", "batch=8", "trainer.max_steps=2", "logger=wandb"]
    command = [
        sys.executable,
        str(CONF.parent / "src/train.py"),
        *options,
        *data,
        f"outputs={tmp_path / 'outputs'}",
    ]
    environment = os.environ | {"WANDB_API_KEY": secret, "WANDB_MODE": "offline", "HOME": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert secret not in done.stdout + done.stderr
    files = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert any(path.suffix == ".wandb" for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_short_form_of_make_faults_loses_nothing(tmp_path):
    command = [
        sys.executable,
        str(CONF.parent / "tests/faults.py"),
        "--short",
        "--out",
        str(tmp_path / "outcomes.json"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = json.loads((tmp_path / "outcomes.json").read_text())["outcomes"]
    assert sum(outcome["injected"] for outcome in outcomes) >= 8
    assert not any(outcome["lost"] for outcome in outcomes)
