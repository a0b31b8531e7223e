"""Sweeps through submitit: what is submitted, and with its local executor that preempted jobs resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from mistakes import command_line_problems

from blocksparse_rnn.config.compose import CONF
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.sweep.live_table import SweepTable
from blocksparse_rnn.sweep.plan import plan, run_sweep
from blocksparse_rnn.sweep.slurm import Element, _poll

submitit = pytest.importorskip("submitit")
TRAIN = str(CONF.parent / "src" / "train.py")


def fake_slurm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that take jobs as SLURM's do, and lose them."""
    folder.mkdir()
    for name, does in {
        "sbatch": "echo Submitted batch job $((100 + $(cat $1 | wc -c)))",
        "srun": "true",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{does}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_runs_are_array_jobs_and_pruned_ones_wait_for_their_dense_runs(tone_settings, tmp_path, monkeypatch):
    fake_slurm(tmp_path / "bin", monkeypatch)
    options = ["launcher=slurm", "launcher.partition=fast", "trainer.devices=2", "launcher.mem_gb=32"]
    options += ["launcher.jobs_at_once=1"]
    runs = [tone_settings(*options, f"sparsifier={s}", f"seed={n}") for n in (0, 1) for s in ("bp", "none")]
    submitted: dict = {}
    slurm, jobs = runs[0].launcher.build(), plan(runs)
    slurm._submit(jobs[:2], submitted, SweepTable(4))
    slurm._submit(jobs[2:], submitted, SweepTable(4))
    files = sorted(
        (tmp_path / "outputs/.slurm").rglob("*_submission.sh"), key=lambda path: path.stat().st_size
    )
    dense, pruned = [path.read_text() for path in files]
    for line in (
        "--array=0-1%1",
        "--ntasks-per-node=2",
        "--partition=fast",
        "--signal=USR2@120",
        "--mem=32GB",
    ):
        assert f"#SBATCH {line}" in dense, line
    assert "--gpus-per-node" not in dense.replace("--gpus-per-node=0", "")
    assert "dependency" not in dense
    ids = [submitted[job.run.path].job_id for job in jobs[:2]]
    assert f"#SBATCH --dependency=afterany:{':'.join(ids)}" in pruned
    assert all((job.run.path / "config.yaml").is_file() for job in jobs)


def test_a_pruned_run_begins_only_with_the_result_of_its_dense_one(tone_settings, monkeypatch):
    monkeypatch.setattr("submitit.helpers.TorchDistributedEnvironment", MagicMock)
    monkeypatch.setattr("blocksparse_rnn.sweep.slurm._redirect_output", lambda log: None)
    monkeypatch.setattr("blocksparse_rnn.training.train.train", lambda settings, run: {"cer": 0.5})
    dense, pruned = plan([tone_settings(f"sparsifier={s}") for s in ("none", "bp")])
    pruned.run.create(pruned.settings)
    with pytest.raises(SystemExit, match=f"needs q of {dense.name}, which has no result"):
        Element(pruned)()
    dense.run.path.mkdir()
    dense.run.write_result({"cer": 0.1})
    assert Element(pruned)() == 0.5


def test_what_another_process_has_is_waited_for(tone_settings, tmp_path, monkeypatch):
    fake_slurm(tmp_path / "bin", monkeypatch)
    runs = [tone_settings("launcher=slurm", f"sparsifier={s}") for s in ("none", "bp")]
    monkeypatch.setattr("blocksparse_rnn.sweep.slurm._LOCK_PATIENCE", 0)
    slurm, jobs = runs[0].launcher.build(), plan(runs)
    with jobs[0].run.lock():
        slurm._submit(jobs[:1], {}, SweepTable(2))
        assert jobs[0].state == "busy"
    slurm._submit(jobs[1:], {}, SweepTable(2))
    assert jobs[0].problem == "another process left it unfinished; rerun the command to resume"
    assert jobs[1].problem == f"needs q of {jobs[0].name}, which failed"


def test_what_an_earlier_job_of_the_same_command_trains_is_not_failed(tone_settings):
    [job] = plan([tone_settings()])
    refused = MagicMock(done=lambda: True, job_id="17_0")
    with job.run.lock():
        _poll(job, refused)
        assert job.state == "busy"
    _poll(job, refused)
    assert (job.state, job.problem) == ("failed", "job 17_0 ended with no result")


def test_without_slurm_one_line_says_so(tone_settings, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ValueError, match=r"launcher.cluster=slurm: Could not detect"):
        run_sweep([tone_settings("launcher=slurm")])


def test_values_of_slurm_are_checked():
    options = [
        "launcher=slurm",
        "launcher.hours=0",
        "data=manifest",
        "data.train=a",
        "data.dev=b",
        "data.test=c",
    ]
    assert command_line_problems(options) == ["launcher.hours=0: must be above 0"]


def command(tones: dict[str, Path], tmp_path: Path, *more: str) -> list[str]:
    data = [f"data.{split}={path}" for split, path in tones.items()]
    options = ["scale=mini", "width=16", "data=manifest", "logger=csv", "workers=0", "batch=8", *more]
    where = [f"outputs={tmp_path / 'outputs'}", "trainer.accelerator=cpu", "launcher.cluster=local"]
    return [sys.executable, TRAIN, "-m", "launcher=slurm", *options, *where, *data]


@pytest.mark.slow
def test_a_sweep_through_submitit_with_two_processes_a_run(tones, tmp_path):
    # q of the pruned run is that of the dense one, which so has ended before.
    schedule = ["trainer.max_epochs=4", "schedule.freq=2", "schedule.end_frac=0.8"]
    sweep = command(tones, tmp_path, "sparsifier=none,bp", "trainer.devices=2", *schedule)
    done = subprocess.run(sweep, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads(path.read_text()) for path in (tmp_path / "outputs").glob("*/result.json")]
    by_name = {result["sparsifier"]: result for result in results}
    assert by_name.keys() == {"none", "bp"}
    assert by_name["none"]["name"] in by_name["bp"]["q_source"]
    assert {result["devices"] for result in results} == {2}


@pytest.mark.slow
def test_a_preempted_job_is_queued_again_and_resumes(tones, tmp_path):
    sweep = command(tones, tmp_path, "trainer.max_epochs=60", "seed=3")
    process = subprocess.Popen(sweep, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 200
    while not (lasts := list((tmp_path / "outputs").glob("*/checkpoints/last.ckpt"))):
        assert time.monotonic() < end
        time.sleep(0.05)
    run = RunFolder(lasts[0].parents[1])
    os.kill(run.status()["pid"], signal.SIGUSR2)
    shown, _ = process.communicate(timeout=300)
    assert process.returncode == 0, shown
    result = run.result()
    assert result is not None
    assert result["resumed"]
    log = (run.path / "stdout.log").read_text()
    assert "SIGUSR2: saving after this step" in log
    assert (
        "Requeued job"
        in "".join(path.read_text() for path in (tmp_path / "outputs/.slurm").rglob("*.out")) + log
    )
