"""Sweeps: order, slots, and that no run is lost or done twice whatever ends a job or the sweep."""

import contextlib
import errno
import io
import json
import multiprocessing
import os
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from threading import Timer
from types import SimpleNamespace
from unittest.mock import patch

import pytest
from mistakes import command_line_problems
from processes import wait_for

from blocksparse_rnn.cli import program, train
from blocksparse_rnn.config.compose import CONF, read_command, sweep_name
from blocksparse_rnn.config.grids import grid_overrides
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import SIGNALS
from blocksparse_rnn.sweep import slots
from blocksparse_rnn.sweep.plan import Job, plan, run_sweep, show_plan
from blocksparse_rnn.sweep.slots import Slots

ROOT = CONF.parent
# A stand-in for a training: notes its environment and when it ran, then succeeds or fails as a file in its run folder says.
CHILD = """
import json, os, pathlib, sys, time
run = pathlib.Path(sys.argv[1])
started = time.time()
attempt = len(list(run.glob("attempt-*")))
time.sleep(0.15)
note = {"gpus": os.environ.get("CUDA_VISIBLE_DEVICES"), "threads": os.environ.get("OMP_NUM_THREADS"),
        "rank": os.environ.get("RANK"), "started": started, "ended": time.time()}
(run / f"attempt-{attempt}.json").write_text(json.dumps(note))
if (run / "fails").exists() and attempt < int((run / "fails").read_text()):
    print("error: out of luck")
    sys.exit(1)
(run / "result.json").write_text(json.dumps({"cer": 0.1, "epochs": 1, "sparsity/prunable": 0.0}))
"""


def stub(run: Path) -> list[str]:
    return [sys.executable, "-c", CHILD, str(run)]


def run_with(runs: list, command) -> int:
    """A sweep whose jobs are another program."""
    with patch("blocksparse_rnn.sweep.slots.job_command", command):
        return run_sweep(runs)


def launcher(**changes) -> Slots:
    given = {"slots": None, "gpus_per_job": 1, "threads_per_job": 1, "max_attempts": 1, "fail_fast": False}
    return Slots(**given | changes)


def with_seeds(settings: Settings, count: int) -> list[Settings]:
    return [settings.model_copy(update={"seed": seed}) for seed in range(count)]


def notes(runs: list[Settings]) -> list[dict]:
    files = [f for settings in runs for f in RunFolder.of(settings).path.glob("attempt-*.json")]
    return sorted((json.loads(f.read_text()) for f in files), key=lambda note: note["started"])


def fail(settings: Settings, times: int) -> RunFolder:
    run = RunFolder.of(settings)
    run.path.mkdir(parents=True)
    (run.path / "fails").write_text(str(times))
    return run


def test_dense_runs_come_first_and_pruned_ones_wait_for_theirs(tone_settings):
    runs = [tone_settings(f"sparsifier={s}", f"seed={seed}") for seed in (0, 1) for s in ("bp", "none", "gl")]
    jobs = plan(runs)
    names = [job.settings.sparsifier.name for job in jobs]
    assert names == ["none", "none", "bp", "gl", "bp", "gl"]
    for job in jobs:
        expected = [jobs[job.settings.seed]] if job.settings.sparsifier.name == "bp" else []
        assert job.after == expected
    targeted = plan([tone_settings(), tone_settings("sparsifier=bp", "target_sparsity=0.5")])
    assert targeted[1].after == []
    rates = [
        tone_settings(f"sparsifier={s}", f"optimizer.lr={lr}") for lr in (0.1, 0.2) for s in ("bp", "none")
    ]
    slow, fast, *pruned = plan(rates)
    assert [job.after for job in pruned] == [[slow], [fast]]  # not one that was trained in another way
    slow, fast, pruned_otherwise = plan(
        [rates[1], rates[3], tone_settings("sparsifier=bp", "optimizer.lr=0.3")]
    )
    assert pruned_otherwise.after == [slow, fast]


def test_runs_that_are_the_same_run_are_one_job(tone_settings):
    runs = [tone_settings(f"sparsifier={s}", f"block={b}") for s in ("none", "bp") for b in (4, 8)]
    assert len(plan(runs)) == 3


@pytest.mark.parametrize(("gpus_per_job", "slots_at_once"), [(1, 8), (2, 4)])
def test_each_of_eight_gpus_has_one_job_at_a_time(tone_settings, monkeypatch, gpus_per_job, slots_at_once):
    monkeypatch.setattr(slots, "visible_gpus", lambda: [f"GPU-{i}" for i in range(8)])
    monkeypatch.setenv("RANK", "3")
    base = tone_settings("trainer.accelerator=auto", f"launcher.gpus_per_job={gpus_per_job}")
    runs = with_seeds(base, 16)
    assert run_with(runs, stub) == 0
    attempts = notes(runs)
    assert len(attempts) == 16
    assert {note["rank"] for note in attempts} == {None}
    assert all(len(note["gpus"].split(",")) == gpus_per_job for note in attempts)
    assert len({note["gpus"] for note in attempts}) == slots_at_once
    for i, note in enumerate(attempts):
        for later in attempts[i + 1 :]:
            if set(note["gpus"].split(",")) & set(later["gpus"].split(",")):
                assert later["started"] >= note["ended"]


def test_slots_on_a_cpu_share_its_threads(tone_settings, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(slots, "cores", lambda: 8)
    runs = with_seeds(tone_settings("launcher.slots=3"), 3)
    assert run_with(runs, stub) == 0
    assert [note["threads"] for note in notes(runs)] == ["2", "2", "2"]
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    [first, _] = launcher(slots=2).environments(devices=1)
    assert first["OMP_NUM_THREADS"] == "5"


@pytest.mark.parametrize(("threads_per_job", "count", "threads"), [(None, 1, "8"), (3, 2, "4"), (1, 8, "1")])
def test_without_a_number_slots_have_as_many_threads_as_a_job_wants(
    monkeypatch, threads_per_job, count, threads
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(slots, "cores", lambda: 8)
    environments = launcher(slots=None, threads_per_job=threads_per_job).environments(devices=1)
    assert [environment["OMP_NUM_THREADS"] for environment in environments] == [threads] * count


def test_more_slots_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(slots, "visible_gpus", lambda: ["0", "1", "2"])
    for wanted, per_job in ((4, 1), (2, 2), (None, 4)):
        with pytest.raises(UserError, match="the 3 visible ones"):
            launcher(slots=wanted, gpus_per_job=per_job).environments(devices=1)
    with pytest.raises(UserError, match=r"trainer\.devices=2: .*; set launcher\.gpus_per_job=2"):
        launcher(slots=1).environments(devices=2)
    assert command_line_problems(["launcher.slots=0"]) == ["launcher.slots=0: must be at least 1"]


def test_a_failure_stands_alone_and_is_reported(tone_settings, capsys):
    runs = with_seeds(tone_settings(), 3)
    failing = fail(runs[1], times=9)
    assert run_with(runs, stub) == 1
    assert [RunFolder.of(settings).result() is not None for settings in runs] == [True, False, True]
    shown = capsys.readouterr()
    assert f"failed   {failing.path.name}: exit code 1: out of luck" in shown.out
    assert f"failed: {failing.path}: exit code 1: out of luck" in shown.err
    assert f"repeat: python -m blocksparse_rnn.cli.job {failing.path}" in shown.err
    assert "2 finished, 1 failed" in shown.out

    (failing.path / "fails").unlink()
    assert run_with(runs, stub) == 0  # the same again does only what is left
    assert [len(list(RunFolder.of(p).path.glob("attempt-*"))) for p in runs] == [1, 2, 1]


def test_a_result_of_an_older_version_is_one_and_a_damaged_or_foreign_one_a_line(tone_settings, capsys):
    runs = [tone_settings()]
    run = RunFolder.of(runs[0])
    run.path.mkdir(parents=True)
    (run.path / "result.json").write_text('{"cer": 0.25}')
    assert run_with(runs, stub) == 0
    assert f"finished {run.path.name}: test CER 0.2500\n" in capsys.readouterr().out
    foreign = "is not a result of this program"
    for text, problem in (
        *(("{}", foreign), ("[1]", foreign), ('{"cer": null}', foreign)),
        *(('{"cer":', "is damaged"), ("[" * 100_000, "is damaged")),
    ):
        (run.path / "result.json").write_text(text)
        with pytest.raises(UserError, match=rf"result.json: {problem}; move it away"):
            run_with(runs, stub)


def test_attempts_are_repeated_as_often_as_asked(tone_settings):
    runs = with_seeds(tone_settings("launcher.max_attempts=3"), 2)
    fail(runs[0], times=2)
    assert run_with(runs, stub) == 0
    fewer = [tone_settings("seed=7", "launcher.max_attempts=2")]
    fail(fewer[0], times=2)
    assert run_with(fewer, stub) == 1


def test_fail_fast_starts_nothing_more(tone_settings):
    runs = with_seeds(tone_settings("launcher.fail_fast=true", "launcher.slots=1"), 3)
    fail(runs[0], times=1)
    assert run_with(runs, stub) == 1
    assert len(notes(runs)) == 1


@pytest.mark.parametrize("ends", ["with a result", "without one"])
def test_a_run_that_another_process_has_is_waited_for(tone_settings, monkeypatch, capsys, ends):
    monkeypatch.setattr("blocksparse_rnn.sweep.slots.LOCK_PATIENCE", 0.1)
    runs = [tone_settings("sparsifier=none"), tone_settings("sparsifier=bp")]
    dense = RunFolder.of(runs[0])
    lock = ExitStack()
    lock.enter_context(dense.lock())

    def end():
        begun.extend(notes(runs))
        if ends == "with a result":
            dense.write_result({"cer": 0.2, "epochs": 1, "sparsity/prunable": 0.0})
        lock.close()

    def leave(job):
        leave_to_others(job)
        Timer(0.5, end).start()

    begun: list = []
    leave_to_others = Job.leave_to_others
    monkeypatch.setattr(Job, "leave_to_others", leave)
    assert run_with(runs, stub) == 0
    assert begun == []  # the pruned run waited too: its q is the dense one's
    assert len(notes(runs)) == (1 if ends == "with a result" else 2)
    assert f"busy     {dense.path.name}: another process is working on this run" in capsys.readouterr().out


# A job that finds its run taken, if by nobody else then by itself, so that nobody has it once the job has ended.
OVERTAKEN = """
import sys
from blocksparse_rnn.cli.program import run
from blocksparse_rnn.runs.folder import RunFolder

def main():
    with RunFolder(sys.argv[1]).lock(), RunFolder(sys.argv[1]).lock(patience=0):
        pass

run(main)
"""


@pytest.mark.parametrize("other", ["still has it", "has let go"])
def test_a_run_whose_job_another_one_overtook_is_waited_for(tone_settings, monkeypatch, other):
    monkeypatch.setattr("blocksparse_rnn.sweep.slots.LOCK_PATIENCE", 0.1)
    runs = [tone_settings()]
    run = RunFolder.of(runs[0])
    lock = ExitStack()

    def overtaken(path: Path) -> list[str]:
        if len(started) == 0:
            started.append(path)
            if other == "still has it":
                lock.enter_context(run.lock())
                Timer(3.0, lock.close).start()
            return [sys.executable, "-c", OVERTAKEN, str(path)]
        return stub(path)

    started: list[Path] = []
    assert run_with(runs, overtaken) == 0  # and it counts as no attempt, of which there is one


# A job that trains as `training.train` does: with the lock, and only without a result.
LOCKING = """
import sys, time
from blocksparse_rnn.runs.folder import RunFolder

run = RunFolder(sys.argv[1])
with run.lock():
    if run.result() is None:
        time.sleep(0.3)
        print("trained", flush=True)
        run.write_result({"cer": 0.1})
"""


def test_two_sweeps_at_once_do_every_run_once(tone_settings):
    runs = with_seeds(tone_settings("launcher.slots=2"), 4)

    def sweep() -> None:
        sys.exit(run_with(runs, lambda run: [sys.executable, "-c", LOCKING, str(run)]))

    both = [multiprocessing.get_context("fork").Process(target=sweep) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    logs = [RunFolder.of(settings).path / "stdout.log" for settings in runs]
    assert [log.read_text() for log in logs] == ["trained\n"] * 4


def test_a_pruned_run_fails_with_the_dense_one_that_it_needs(tone_settings, capsys):
    runs = [tone_settings(f"sparsifier={s}", f"seed={n}") for n in (0, 1) for s in ("none", "bp")]
    dense = fail(runs[0], times=9)
    assert run_with(runs, stub) == 1
    assert [RunFolder.of(settings).result() is not None for settings in runs] == [False, False, True, True]
    assert (
        f"failed: {RunFolder.of(runs[1]).path}: needs q of {dense.path.name}, which failed"
        in capsys.readouterr().err
    )


def test_a_job_that_cannot_be_started_says_why(tone_settings, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    assert run_with([tone_settings()], stub) == 1
    assert ": could not be started: Resource temporarily unavailable" in capsys.readouterr().err


def test_a_file_system_without_locks_is_one_line(tone_settings, monkeypatch):
    def flock(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(UserError, match=r"cannot lock .*; choose a folder on a file system with locks"):
        RunFolder.of(tone_settings()).lock().__enter__()


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_every_job_to_end_and_starts_no_other(tone_settings, monkeypatch, capsys, number):
    child = """
import pathlib, signal, sys, time
run = pathlib.Path(sys.argv[1])
(run / "began").touch()
try:
    time.sleep(20)
except KeyboardInterrupt:
    (run / "asked").touch()
"""
    runs = with_seeds(tone_settings("launcher.slots=2"), 3)
    popen = subprocess.Popen

    def just_then(*args, **kwargs):
        job = popen(*args, **kwargs)
        folders = [RunFolder.of(settings).path for settings in runs[:2]]
        wait_for((folders[0] / "began").exists)
        if folders[1].exists():  # this is the second, which the sweep doesn't know as running yet
            wait_for((folders[1] / "began").exists)
            os.kill(os.getpid(), number)
        return job

    monkeypatch.setattr("blocksparse_rnn.processes.subprocess.Popen", just_then)
    started = time.monotonic()
    assert run_with(runs, lambda run: [sys.executable, "-c", child, str(run)]) == 128 + number
    assert time.monotonic() - started < 10
    asked = [(RunFolder.of(settings).path / "asked").exists() for settings in runs]
    assert asked == [True, True, False]
    assert "stopped; rerun the command to resume" in capsys.readouterr().out


def test_runs_of_the_same_name_in_two_folders_are_shown_once_each(tone_settings, tmp_path, capsys):
    runs = [tone_settings(f"outputs={tmp_path / name}") for name in ("one", "other")]
    assert run_with(runs, stub) == 0
    assert capsys.readouterr().out.count("running ") == 2


def test_an_output_folder_that_cannot_be_written_fails_in_one_line(tone_settings, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run_with([tone_settings(f"outputs={tmp_path / 'file'}")], stub) == 1
    assert "cannot write" in capsys.readouterr().err


# The real thing, through the command line.


@pytest.fixture
def command(tones, tmp_path):
    data = [f"data.{split}={path}" for split, path in tones.items()]
    options = ["scale=mini", "width=16", "data=manifest", "logger=csv", "workers=0", "batch=8"]
    where = [f"outputs={tmp_path / 'outputs'}", "trainer.accelerator=cpu", "launcher.slots=2"]
    return [sys.executable, str(ROOT / "src/train.py"), "-m", *options, *where, *data]


def run(command: list[str], *more: str) -> SimpleNamespace:
    """Exit code and output of a command. Only the jobs of its sweep are processes of their own."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    given = patch.object(sys, "argv", [*command[1:], *more])
    with given, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            program.run(train.main)
        except SystemExit as ended:
            code = int(ended.code or 0)
    return SimpleNamespace(returncode=code, stdout=out.getvalue(), stderr=err.getvalue())


def planned(command: list[str], *more: str) -> list[list[str]]:
    """What `dry_run=true` prints, a list of words for each run."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        show_plan(read_command([*command[2:], *more]).runs)
    return [line.split() for line in shown.getvalue().splitlines()]


def results(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "outputs").glob("*/result.json"))


@pytest.mark.parametrize(
    "command", ["-m scale=mini width=16,32", "scale=mini -m width=16,32", "width=16,32 scale=mini -m"]
)
def test_options_may_stand_between_settings(command):
    runs = read_command(command.split()).runs
    assert [settings.width for settings in runs] == [16, 32]


def test_a_sweep_runs_to_the_end_and_again_skips_everything(command, tmp_path):
    sweep = ["sparsifier=none,bp", "block=4,8", "trainer.max_epochs=3", "schedule.freq=1"]
    dry = run(command, *sweep, "dry_run=true")
    assert [line.split()[0] for line in dry.stdout.splitlines()] == ["new"] * 3
    assert not (tmp_path / "outputs").exists()

    first = run(command, *sweep)
    assert first.returncode == 0, first.stderr
    assert "3 finished" in first.stdout
    trained = {path.parent.name: json.loads(path.read_text()) for path in results(tmp_path)}
    dense = next(name for name in trained if "dense" in name)
    assert {r.get("q_source") for r in trained.values()} == {None, f"dense run {dense}"}
    assert len({r["sweep"] for r in trained.values()}) == 1
    times = [path.stat().st_mtime for path in results(tmp_path)]

    again = run(command, *sweep)
    assert again.returncode == 0
    assert [path.stat().st_mtime for path in results(tmp_path)] == times
    assert [words[0] for words in planned(command, *sweep)] == ["skip"] * 3


def test_a_mistake_in_any_run_stops_the_sweep_before_the_first(command, tmp_path):
    done = run(command, "seed=1,2", "block=4,3", "sparsifier=bp")
    assert done.returncode == 2
    assert "block=3x3: 3 rows do not divide" in done.stderr
    assert not (tmp_path / "outputs").exists()


def test_a_sweep_into_a_folder_that_cannot_be_made_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    done = run(command, "seed=1,2", f"outputs={tmp_path / 'file' / 'outputs'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: cannot write ")
    assert done.stderr.count("\n") == 1


GRIDS = """
defaults: [config, _self_]
sweep: two_grids
hydra:
  sweeper:
    params: {seed: 1}
    grids:
      - {width: '\\${scale.row_width.w704}', sparsifier: none}
      - {sparsifier: bp, block: "4,8", target_sparsity: 0.5}
"""


def test_a_sweep_file_may_hold_several_grids(command, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "grids.yaml").write_text(GRIDS)
    sweep = [word for word in command if not word.startswith("width=")]
    sweep[3:3] = ["-cd", str(tmp_path / "files"), "-cn", "grids"]
    short = ["trainer.max_steps=1", "width=16"]
    names = [Path(words[1]).name for words in planned(sweep)]
    expected = ["rnn-176-dense-s1", "rnn-2560-bp-b4-t0.5-s1", "rnn-2560-bp-b8-t0.5-s1"]
    assert [name.rsplit("-", 1)[0].replace("gru", "rnn") for name in names] == expected
    # What is typed holds in every grid.
    typed = [words[1] for words in planned(sweep, *short, "seed=7,8", "block=4")]
    assert sum("-16-bp-b4-t0.5-s" in name for name in typed) == 2
    assert sum("-16-dense-s" in name for name in typed) == 2
    other = planned(sweep, *short, "hydra.sweeper.grids=[{sparsifier: none}]")
    assert [Path(words[1]).name.rsplit("-", 1)[0] for words in other] == [
        names[0].split("-")[0] + "-16-dense-s1"
    ]
    with pytest.raises(UserError, match=r"hydra\.sweeper\.grids=5: must be a list"):
        planned(sweep, "hydra.sweeper.grids=5")
    with pytest.raises(UserError, match=r"^block=4,8,: "):
        planned(sweep, "hydra.sweeper.grids=[{block: '4,8,'}]")
    assert grid_overrides({"seed": 1}, [{"epochs_per_pass": None}], []) == [
        ["seed=1", "epochs_per_pass=null"]
    ]
    assert {settings.sweep for settings in read_command(sweep[2:]).runs} == {"two_grids"}
    (tmp_path / "files" / "outputs").mkdir()
    with pytest.raises(UserError, match="its folder outputs hides the setting"):
        planned(sweep)


def test_sweep_files_that_name_no_sweep_are_sweeps_of_their_own():
    names = [sweep_name(["seed=1,2"], name) for name in ("config", "one", "other", "one")]
    assert len(set(names)) == 3
    assert names[1] == names[3]
    runs = read_command(["-m", "width=64", "seed=1,2"]).runs
    assert {settings.sweep for settings in runs} == {sweep_name(["width=64", "seed=1,2"], "config")}


SWEEPS = ROOT / "sweeps"


def sweep_file(name: str) -> list[str]:
    return [sys.executable, str(ROOT / "src/train.py"), "-m", "-cd", str(SWEEPS), "-cn", name]


@pytest.mark.parametrize("name", sorted(path.stem for path in SWEEPS.glob("*.yaml")))
def test_sweep_files_compose_and_are_checked(name):
    if name == "decoder":  # of a finished run
        with pytest.raises(UserError, match=r"^weights=nowhere: no run folder.*$"):
            planned(sweep_file(name), "weights=nowhere")
        return
    plan = planned(sweep_file(name), "outputs=nowhere")
    assert len(plan) > 1
    assert {words[0] for words in plan} == {"new"}


def test_an_unknown_sweep_file_is_one_line():
    wrong = run(sweep_file("demmo"))
    assert wrong.returncode == 2
    assert wrong.stderr == "error: --config-name demmo: unknown; did you mean demo?\n"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["-m", "hydra/sweeper=gridz"], "hydra/sweeper=gridz: unknown; did you mean grids?"),
        (["-cp", "x"], "--config-path x: settings are in conf/; add others by --config-dir"),
        (["--experimental-rerun", "x"], "--experimental-rerun: is not supported; a rerun of the command .*"),
    ],
)
def test_what_hydra_would_pass_over_is_refused(arguments, line):
    with pytest.raises(UserError, match=f"^{line}$".replace("?", r"\?")):
        read_command(arguments)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("a: [", "--config-name odd: is no YAML: .*odd.yaml.*"),
        ("defaults: [config, nope]", "--config-name odd: In 'odd': Could not .*'nope'.*"),
        (
            "defaults: [config, _self_]\nhydra: {sweeper: {params: [1]}}",
            "hydra.sweeper.params=.*: must be settings.*",
        ),
    ],
)
def test_a_sweep_file_that_cannot_be_read_is_one_line(tmp_path, content, line):
    (tmp_path / "odd.yaml").write_text(content)
    with pytest.raises(UserError, match=f"^{line}$"):
        read_command(["-m", "-cd", str(tmp_path), "-cn", "odd"])


def test_a_mistake_in_settings_to_be_shown_is_one_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--cfg", "job", "widht=3"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(UserError, match=r"^Could not override 'widht'"):
        train.main()


PAPER = {  # Narang et al., 2017, table of results; dense totals worked out to the parameter
    **{"rnn-704-dense": 11.614, "rnn-1760-dense": 67.689, "gru-704-dense": 10.986, "gru-2560-dense": 115.310},
    **{
        "rnn-1760-bp": 7.3,
        "rnn-2560-glp": 12.9,
        "rnn-3072-bp": 25.8,
        "gru-2560-glp": 10.8,
        "gru-3584-bp": 25.6,
    },
}


def test_the_table_sweep_has_the_papers_nine_rows():
    found = {}
    for _, path, count, *_ in planned(sweep_file("table"), "outputs=nowhere"):
        found["-".join(Path(path).name.split("-")[:3])] = float(count)
    assert found.keys() == PAPER.keys()
    for name, count in found.items():
        assert count == pytest.approx(PAPER[name], abs=0.0006 if "dense" in name else 0.2), name
