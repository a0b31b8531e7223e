"""Several processes train as one: the same sums, masks and results, and none outlives the others."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from processes import alive, children, wait_for

from blocksparse_rnn import distributed
from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.batch_norm import BatchNorm
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped
from blocksparse_rnn.training import ranks
from blocksparse_rnn.training.train import train

SHARES = (5, 3, 0)
"""Frames of each rank; one has none of its own."""


def on_ranks(function, *arguments) -> None:
    """Call a function in one process for each share, all of which have met."""
    multiprocessing.start_processes(_meet, (function, arguments), nprocs=len(SHARES), start_method="fork")


def _meet(rank, function, arguments) -> None:
    torch.set_num_threads(1)
    [store, *rest] = arguments
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=len(SHARES))
    function(rank, *rest)
    dist.destroy_process_group()


def _normalise_share(rank: int, shape: tuple[int, ...]) -> None:
    whole = torch.randn(sum(SHARES), *shape, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    goal = torch.randn(whole.shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    ours, torchs = (norm(shape[0]).double() for norm in (BatchNorm, torch.nn.BatchNorm1d))
    expected_in = whole.clone().requires_grad_()
    expected = torchs(expected_in)
    (expected * goal).sum().backward()

    begin = sum(SHARES[:rank])
    mine = slice(begin, begin + SHARES[rank]) if SHARES[rank] else slice(0, 1)
    given = whole[mine].clone().requires_grad_()
    with distributed.counting(SHARES[rank] > 0):
        got = ours(given)
    (got * goal[mine] * (SHARES[rank] > 0)).sum().backward()
    near: Any = {"rtol": 1e-9, "atol": 1e-9}
    if SHARES[rank]:
        torch.testing.assert_close(got, expected[mine], **near)
        assert expected_in.grad is not None
        torch.testing.assert_close(given.grad, expected_in.grad[mine], **near)
    else:
        assert given.grad is not None
        assert not given.grad.any()
    for name, buffer in ours.named_buffers():
        torch.testing.assert_close(buffer, torchs.get_buffer(name), **near)
    for mine_, whole_ in zip(ours.parameters(), torchs.parameters(), strict=True):
        assert mine_.grad is not None
        torch.testing.assert_close(distributed.sum_all(mine_.grad), whole_.grad, **near)


@pytest.mark.parametrize("shape", [(4,), (3, 7)])
def test_batch_norm_counts_the_frames_of_all_ranks_there_and_back(tmp_path, shape):
    on_ranks(_normalise_share, tmp_path / "store", shape)


def _compare_masks(rank: int) -> None:
    same = torch.arange(64).view(8, 8) % 3 > 0
    distributed.check_equal({"a": same, "b": ~same})
    other = same.clone()
    other[2, 3] ^= rank == 1
    with pytest.raises(RuntimeError, match="masks differ between ranks: b"):
        distributed.check_equal({"a": same, "b": other})
    assert distributed.any_rank(rank == 2, torch.device("cpu"))
    assert distributed.largest(rank, torch.device("cpu")) == 2
    assert distributed.from_first(f"rank {rank}") == "rank 0"
    assert distributed.gather_names([str(rank)]) == ["0", "1", "2"]


def test_masks_that_differ_between_ranks_are_noticed(tmp_path):
    on_ranks(_compare_masks, tmp_path / "store")


def test_another_number_of_processes_than_was_set_is_one_line(tone_settings, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"devices=1: 2 processes were started .*set trainer.devices=2"):
        train(tone_settings())


PRUNED = [
    "sparsifier=bp",
    "target_sparsity=0.5",
    "schedule.freq=2",
    "schedule.end_frac=0.8",
    "trainer.log_every=1",
    "optimizer.lr=5e-4",
]


@pytest.mark.slow
def test_two_ranks_equal_one_at_the_same_global_batch(tone_settings, tmp_path):
    # 40 utterances in batches of 13: the last batch of an epoch has one, too few for two ranks.
    results, weights = [], []
    for devices in (1, 2):
        where = [f"outputs={tmp_path / str(devices)}", f"trainer.devices={devices}"]
        settings = tone_settings(*PRUNED, "batch=13", *where)
        results.append(train(settings))
        weights.append(load_weights(RunFolder.of(settings).best))
    one, two = results
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["sparsity/prunable"] == two["sparsity/prunable"] == pytest.approx(0.5, abs=0.01)
    assert two["identity"] == one["identity"]
    assert two["cer"] == pytest.approx(one["cer"], abs=0.05)
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=2e-3, atol=2e-4, msg=name)
        assert torch.equal(weights[1][name] == 0, weight == 0), name


FAULT = """
import os, sys, threading, time
def plant():
    while not hasattr(sys.modules.get("blocksparse_rnn.training.recogniser"), "Recogniser"):
        time.sleep(0.01)
    def broken(self, batch, index):
        raise ValueError("a batch that only this rank has")
    sys.modules["blocksparse_rnn.training.recogniser"].Recogniser.training_step = broken
if os.environ.get("RANK") == "1":
    threading.Thread(target=plant, daemon=True).start()
"""


def start(settings: Settings, folder: Path, **more: str) -> tuple[RunFolder, subprocess.Popen]:
    run = RunFolder.of(settings)
    run.create(settings)
    path = os.pathsep.join([str(folder), str(CONF.parent / "src")])
    command = [sys.executable, "-m", "blocksparse_rnn.cli.job", str(run.path)]
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return run, subprocess.Popen(command, env=os.environ | {"PYTHONPATH": path} | more, **pipes)


def metrics_of(run: RunFolder) -> list[str]:
    """Rows without their last column, the wall clock."""
    return [row.rsplit(",", 1)[0] for row in run.metrics.read_text().splitlines()]


@pytest.mark.slow
def test_an_error_on_one_rank_ends_the_job_with_its_traceback(tone_settings, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FAULT)
    run, process = start(tone_settings("trainer.devices=2", "trainer.max_epochs=500"), tmp_path)
    wait_for(lambda: len(children(process.pid)) == 2)
    pids = children(process.pid)
    wait_for(lambda: "Traceback" in (run.path / "rank-1.log").read_text())
    failed = time.monotonic()
    output, _ = process.communicate(timeout=60)
    assert time.monotonic() - failed < 30
    assert process.returncode == 1
    assert "ValueError: a batch that only this rank has" in output
    assert "error: rank 1: exit code 1: ValueError" in output
    assert run.status()["state"] == "failed"
    assert "rank 1" in run.status()["error"]
    wait_for(lambda: not any(map(alive, pids)), 5)


STOPPED = """
import os, pathlib, signal, sys
if os.environ["RANK"] == "0":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # as if another rank had broken the connection
    pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""
KILLED = """
import os, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), 9)
time.sleep(100)
"""


@pytest.fixture
def run_of_stubs(tone_settings, monkeypatch):
    """A run, and a function that does it on two ranks which run some other program."""
    settings = tone_settings()
    run = RunFolder.of(settings)
    run.create(settings)

    def start(program: str) -> None:
        monkeypatch.setattr(
            ranks, "job_command", lambda path: [sys.executable, "-c", program, f"{path}/ready"]
        )
        ranks.run_ranks(run, 2)

    return run, start


def test_ranks_that_end_after_a_signal_with_any_code_were_stopped(run_of_stubs):
    run, start = run_of_stubs

    def ask():
        wait_for((run.path / "ready").exists)
        os.kill(os.getpid(), signal.SIGTERM)

    Thread(target=ask).start()
    with pytest.raises(Stopped, match="SIGTERM"):
        start(STOPPED)
    assert run.status()["state"] == "stopped"


def test_a_killed_rank_is_named_and_ends_the_others(run_of_stubs, monkeypatch, capsys):
    run, start = run_of_stubs
    before = children(os.getpid())
    monkeypatch.setattr(ranks, "_GRACE", 0.1)
    with pytest.raises(SystemExit) as ended:
        start(KILLED)
    assert ended.value.code == 128 + signal.SIGKILL
    assert "error: rank 1: killed by SIGKILL (out of memory?); the other ranks" in capsys.readouterr().err
    assert run.status()["state"] == "failed"
    assert set(children(os.getpid())) <= set(before)


@pytest.mark.slow
def test_two_ranks_that_are_asked_to_end_save_and_resume_to_the_bit(tone_settings, tmp_path):
    augmented = (
        "features.specaugment={n_time_masks: 1, time_mask_param: 5, n_freq_masks: 1, freq_mask_param: 9}"
    )
    options = [augmented, "trainer.devices=2", "trainer.max_epochs=12"]
    undisturbed = tone_settings(*options, f"outputs={tmp_path / 'undisturbed'}")
    train(undisturbed)
    settings = tone_settings(*options)
    run, process = start(settings, tmp_path)
    wait_for(lambda: run.last.is_file())
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 143, output
    assert run.status()["state"] == "stopped"
    states = torch.load(run.last, weights_only=True)["callbacks"]["Checkpoints"]["random_state"]
    assert not torch.equal(*states)  # else both ranks would mask the same of their utterances
    assert train(settings)["resumed"]
    expected = load_weights(RunFolder.of(undisturbed).best)
    for name, weight in load_weights(run.best).items():
        assert torch.equal(weight, expected[name]), name
    assert metrics_of(run) == metrics_of(RunFolder.of(undisturbed))
    assert json.loads((run.path / "result.json").read_text())["devices"] == 2
