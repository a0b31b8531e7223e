"""A sweep: every point a process of its own, finished ones skipped, broken ones resumed.

Only a result.json means that a point is done, never an exit code, so that the same command again goes
on wherever a sweep was left, whatever ended it.
"""

import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from blocksparse_rnn.config.build import build_shapes
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.errors import RunLocked, UserError, cannot_write
from blocksparse_rnn.pruning.prunable import count_parameters
from blocksparse_rnn.runs.folder import LOCK_PATIENCE, RunFolder
from blocksparse_rnn.runs.identity import needs_dense, same_network, same_recipe
from blocksparse_rnn.signals import SIGNALS, STDIN_IS_PARENT
from blocksparse_rnn.sweep.live_table import SweepTable
from blocksparse_rnn.sweep.slots import Slots, job_command

FAILED = 1
"""Exit code of a sweep in which a point failed."""
_POLL_SECONDS = 0.2
_PATIENCE = 30.0  # seconds that jobs get to end after a signal


@dataclass
class Job:
    """A point of a sweep."""

    settings: Settings
    run: RunFolder
    state: str = "waiting"
    """waiting, running, finished, failed, busy (another process has it: waited for) or dropped (never begun)."""
    after: list["Job"] = field(default_factory=list)
    """Dense points that finish before this one starts."""
    attempts: int = 0
    slot: int | None = None
    process: subprocess.Popen | None = None
    locked_since: float | None = None
    log_begin: int = 0
    """Where the last attempt's part of the log begins."""
    problem: str = ""

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "running", "busy")

    def fail_with_dense(self) -> None:
        """Fail where a dense point did: without it q would come from other weights, and nobody would notice."""
        for dense in self.after:
            if self.state == "waiting" and dense.state == "failed":
                self.state, self.problem = "failed", f"needs q of {dense.name}, which failed"

    def leave_to_others(self) -> None:
        """Another process works on this point: wait for what comes of it."""
        self.state, self.problem = "busy", "another process is working on this run"

    @property
    def log(self) -> Path:
        return self.run.path / "stdout.log"


def plan(points: Iterable[Settings]) -> list[Job]:
    """The jobs of a sweep in the order in which they start: dense ones first, no run folder twice."""
    jobs = {run.path: Job(settings, run) for settings in points for run in [RunFolder.of(settings)]}
    ordered = sorted(jobs.values(), key=lambda job: job.settings.sparsifier.name != "none")
    for job in ordered:
        if job.run.result() is not None:
            job.state = "finished"
        elif needs_dense(job.settings.plain()):
            dense = [
                other
                for other in ordered
                if other.settings.sparsifier.name == "none"
                and same_network(other.settings.plain(), job.settings.plain())
            ]
            # As q=auto chooses: those of the same recipe, else any.
            job.after = [
                other for other in dense if same_recipe(other.settings.plain(), job.settings.plain())
            ] or dense
    return ordered


def show_plan(points: Iterable[Settings]) -> None:
    """Print what would happen to each point; writes nothing."""
    for job in plan(points):
        if job.state == "finished":
            action = "skip"
        elif job.run.is_locked():
            action = "busy"
        else:
            action = "resume" if job.run.can_resume else "new"
        print(f"{action:6}  {job.run.path}  {_weights(job.settings)}")


def _weights(settings: Settings) -> str:
    """How many parameters a point will have, and how many of them not zero if it has a target."""
    counts = count_parameters(build_shapes(settings), settings.prunable)
    prunes = hasattr(settings.sparsifier, "block_pruning")
    share = settings.target_sparsity if prunes else None
    nonzero = "" if share is None else f"{(counts.total - share * counts.prunable) / 1e6:.3f} M nonzero of "
    return f"{nonzero}{counts.total / 1e6:.3f} M"


def run_sweep(points: list[Settings], command: Callable[[Path], list[str]] = job_command) -> int:
    """Run all points and report.

    Args:
        points: resolved and checked settings; launcher settings are the first one's.
        command: run folder -> program that does its job.

    Returns:
        The exit code: 0, 1 where a point failed, 128 and its number after a signal.

    Raises:
        UserError: more slots than GPUs, or the output folder can't be written.
    """
    slots = points[0].launcher.build()
    if not isinstance(slots, Slots):
        return slots.run(plan(points))
    trainers = [point.trainer for point in points]
    devices = max((t.devices for t in trainers if t.accelerator != "cpu"), default=0)
    return _Sweep(plan(points), slots, slots.environments(devices), command).run()


class _Sweep:
    """The loop that starts jobs, watches them and passes signals on."""

    def __init__(
        self,
        jobs: list[Job],
        slots: Slots,
        environments: list[dict[str, str]],
        command: Callable[[Path], list[str]],
    ) -> None:
        self.jobs = jobs
        self.slots = slots
        self.environments = environments
        self.command = command
        self.table = SweepTable(len(environments))
        self.signal: int | None = None
        self.hurried = False
        self.stop_at: float | None = None

    def run(self) -> int:
        previous = {s: signal.signal(s, self._on_signal) for s in SIGNALS}
        try:
            with self.table:
                while not all(job.ended for job in self.jobs):
                    if self.signal is not None and self.stop_at is None:
                        self._stop()
                    self._look_at_busy()
                    self._collect()
                    self._start_ready()
                    self.table.show(self.jobs)
                    time.sleep(_POLL_SECONDS)
                self.table.show(self.jobs)
        finally:
            for job in self._running():  # an error of ours must not leave them behind
                job.process.kill()  # type: ignore[union-attr]
            for signal_number, handler in previous.items():
                signal.signal(signal_number, handler)
        self.table.report(self.jobs)
        if self.signal is not None:
            print("stopped; the same command goes on from the last checkpoints")
            return 128 + self.signal
        return 0 if all(job.state == "finished" for job in self.jobs) else FAILED

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note it; the loop acts, since a job may be half started just now."""
        self.hurried = self.signal is not None  # asked again: no more patience
        self.signal = self.signal or number

    def _stop(self) -> None:
        """Start nothing more, and ask what runs to end."""
        self.stop_at = time.monotonic() + _PATIENCE
        for job in self.jobs:
            if job.state in ("waiting", "busy"):
                job.state = "dropped"
        for job in self._running():
            job.process.send_signal(signal.SIGINT)  # type: ignore[union-attr]

    def _running(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "running"]

    def _look_at_busy(self) -> None:
        """Take back what another process has let go of."""
        for job in self.jobs:
            if job.state == "busy" and not job.run.is_locked():
                job.state, job.problem, job.locked_since = "waiting", "", None

    def _collect(self) -> None:
        """Look after the running jobs."""
        for job in self._running():
            assert job.process is not None
            if job.process.poll() is not None:
                self._end(job)
            elif self.stop_at is not None and (self.hurried or time.monotonic() > self.stop_at):
                job.process.kill()

    def _end(self, job: Job) -> None:
        assert job.process is not None
        assert job.process.stdin is not None
        job.process.stdin.close()
        job.slot = None
        if job.run.result() is not None:
            job.state = "finished"
        elif self.stop_at is not None:
            job.state = "dropped"
        elif job.process.returncode == RunLocked.exit_code:
            # Another sweep's job took it while ours was being loaded, or its sweep wrote the settings just then:
            # whether it still has it says nothing of what ours has met.
            job.leave_to_others()
            job.attempts -= 1
        elif job.attempts < self.slots.max_attempts:
            job.state = "waiting"
        else:
            job.state = "failed"
            job.problem = _last_words(job)
            if self.slots.fail_fast:
                self._stop()

    def _start_ready(self) -> None:
        free = set(range(len(self.environments))) - {job.slot for job in self._running()}
        for job in self.jobs:
            job.fail_with_dense()
            if free and job.state == "waiting" and all(other.ended for other in job.after):
                job.slot = min(free)
                self._start(job)
                if job.state == "running":
                    free.remove(job.slot)

    def _start(self, job: Job) -> None:
        assert job.slot is not None
        try:
            with job.run.lock(patience=0):  # the loop looks again, and after other jobs meanwhile
                if job.run.result() is not None:  # another sweep was faster
                    job.state = "finished"
                    return
                job.run.create(job.settings)
        except RunLocked:
            job.locked_since = job.locked_since or time.monotonic()
            if time.monotonic() - job.locked_since > LOCK_PATIENCE:
                job.leave_to_others()
            return
        except UserError as error:
            job.state, job.problem = "failed", str(error)
            return
        job.attempts += 1
        try:
            log = open(job.log, "ab")  # noqa: SIM115
        except OSError as error:
            job.state, job.problem = "failed", str(cannot_write(job.log, error))
            return
        with log:
            job.log_begin = log.tell()
            try:
                job.process = subprocess.Popen(
                    self.command(job.run.path),
                    env=self.environments[job.slot] | {STDIN_IS_PARENT: "1"},
                    stdin=subprocess.PIPE,  # closes when we die, whatever kills us
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on
                )
            except OSError as error:  # no more processes, no memory
                job.state, job.problem = "failed", f"could not be started: {error.strerror}"
                return
        job.state = "running"


def _last_words(job: Job) -> str:
    """Why a job failed: the signal that ended it, or the line of its log that says it best."""
    assert job.process is not None
    code = job.process.returncode
    if code < 0:
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if -code == signal.SIGKILL else "")
    try:
        spoken = job.log.read_bytes()[job.log_begin :].decode(errors="replace")
    except OSError as error:  # somebody removed the run's folder
        return f"ended with exit code {code}; its log can't be read ({error.strerror})"
    lines = [line for line in spoken.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["it said nothing"])[-1].removeprefix("error: ").strip()
