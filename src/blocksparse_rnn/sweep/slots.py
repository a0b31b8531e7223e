"""`launcher=slots`: each run of a sweep is a process; a slot is a GPU or a share of the CPU's cores."""

import os
import signal
import time
from types import FrameType

import torch

from blocksparse_rnn.errors import PartlyFailed, RunLocked, UserError, cannot_write
from blocksparse_rnn.files import cores
from blocksparse_rnn.processes import Child, end_all, job_command, job_environment
from blocksparse_rnn.runs.folder import LOCK_PATIENCE
from blocksparse_rnn.signals import signals_to
from blocksparse_rnn.sweep.live_table import SweepTable
from blocksparse_rnn.sweep.plan import Job

_OF_OTHER_PROCESSES = (
    "LOCAL_RANK",
    "RANK",
    "WORLD_SIZE",
    "LOCAL_WORLD_SIZE",
    "NODE_RANK",
    "GROUP_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "TORCHELASTIC_USE_AGENT_STORE",
)
_POLL_SECONDS = 0.2
_PATIENCE = 30.0  # seconds for jobs to end after a signal


class Slots:
    """Runs the jobs of a sweep on this machine.

    Args:
        slots: jobs at a time; null for one per visible GPU (or per `gpus_per_job` of them), or on a CPU
            one per `threads_per_job` cores.
        gpus_per_job: GPUs that a job gets.
        threads_per_job: cores that a job on a CPU gets where `slots` is null; null for all, one job at a time.
        max_attempts: times that a job is tried.
        fail_fast: whether the first failure ends the sweep.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self,
        *,
        slots: int | None,
        gpus_per_job: int,
        threads_per_job: int | None,
        max_attempts: int,
        fail_fast: bool,
    ) -> None:
        for name, value in {
            "slots": slots,
            "gpus_per_job": gpus_per_job,
            "threads_per_job": threads_per_job,
            "max_attempts": max_attempts,
        }.items():
            if value is not None and value < 1:
                raise UserError(f"launcher.{name}={value}: must be at least 1")
        self.slots = slots
        self.gpus_per_job = gpus_per_job
        self.threads_per_job = threads_per_job
        self.max_attempts = max_attempts
        self.fail_fast = fail_fast

    def run(self, jobs: list[Job]) -> int:
        """Run all jobs and report; returns the exit code of `run_sweep`.

        Raises:
            UserError: the jobs need more GPUs than there are, or more than a job gets.
        """
        trainers = [job.settings.trainer for job in jobs]
        devices = max((t.devices for t in trainers if t.accelerator != "cpu"), default=0)
        return _Loop(jobs, self, self.environments(devices)).run()

    def environments(self, devices: int) -> list[dict[str, str]]:
        """The environment of each slot's jobs.

        Args:
            devices: GPUs that a job uses where there are any, at most; 0 for none.

        Raises:
            UserError: there are fewer GPUs than the slots need, or a job needs more than it gets.
        """
        base = {name: v for name, v in job_environment().items() if name not in _OF_OTHER_PROCESSES}
        gpus = visible_gpus() if devices else []
        if not gpus:
            slots = self.slots or max(1, cores() // (self.threads_per_job or cores()))
            threads = {"OMP_NUM_THREADS": str(max(1, cores() // slots))}
            return [threads | base for _ in range(slots)]  # the user's OMP_NUM_THREADS comes first
        if devices > self.gpus_per_job:
            raise UserError(
                f"trainer.devices={devices}: a job gets launcher.gpus_per_job={self.gpus_per_job}; set "
                f"launcher.gpus_per_job={devices}"
            )
        slots = self.slots or len(gpus) // self.gpus_per_job
        if not slots or slots * self.gpus_per_job > len(gpus):
            raise UserError(
                f"launcher.slots={self.slots}: {max(1, slots)} jobs of {self.gpus_per_job} GPUs each need more "
                f"than the {len(gpus)} visible ones; lower launcher.slots or launcher.gpus_per_job"
            )
        shares = [gpus[i * self.gpus_per_job : (i + 1) * self.gpus_per_job] for i in range(slots)]
        return [base | {"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def visible_gpus() -> list[str]:
    """Numbers or names of the GPUs that this process may use; CUDA itself stays untouched."""
    count = torch.cuda.device_count()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",")[:count] if named else [str(i) for i in range(count)]


class _Loop:
    """Starts jobs, polls them and passes signals on."""

    def __init__(self, jobs: list[Job], slots: Slots, environments: list[dict[str, str]]) -> None:
        self.jobs = jobs
        self.slots = slots
        self.environments = environments
        self.table = SweepTable(len(environments))
        self.signal: int | None = None
        self.hurried = False
        self.stop_at: float | None = None

    def run(self) -> int:
        with signals_to(self._on_signal):
            try:
                with self.table:
                    while not all(job.ended for job in self.jobs):
                        if self.signal is not None and self.stop_at is None:
                            self._stop()
                        self._poll_busy()
                        self._poll_running()
                        self._start_ready()
                        self.table.show(self.jobs)
                        time.sleep(_POLL_SECONDS)
                    self.table.show(self.jobs)
            finally:
                end_all(child for _, child in self._running())  # also after an error in this loop
        self.table.report(self.jobs)
        if self.signal is not None:
            print("stopped; rerun the command to resume")
            return 128 + self.signal
        return 0 if all(job.state == "finished" for job in self.jobs) else PartlyFailed.exit_code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note it; the loop acts on it, since a job may be half started at this moment."""
        self.hurried = self.signal is not None  # the second signal: kill without waiting
        self.signal = self.signal or number

    def _stop(self) -> None:
        """Start no more jobs, and send Ctrl-C to the running ones."""
        self.stop_at = time.monotonic() + _PATIENCE
        for job in self.jobs:
            if job.state in ("waiting", "busy"):
                job.state = "dropped"
        for _, child in self._running():
            child.send_signal(signal.SIGINT)

    def _running(self) -> list[tuple[Job, Child]]:
        return [(job, job.child) for job in self.jobs if job.state == "running" and job.child]

    def _poll_busy(self) -> None:
        """Put back into the queue the jobs that no other process works on any more."""
        for job in self.jobs:
            if job.state == "busy" and not job.run.is_locked():
                job.state, job.problem, job.locked_since = "waiting", "", None

    def _poll_running(self) -> None:
        for job, child in self._running():
            code = child.poll()
            if code is not None:
                self._end(job, child, code)
            elif self.stop_at is not None and (self.hurried or time.monotonic() > self.stop_at):
                child.send_signal(signal.SIGKILL)

    def _end(self, job: Job, child: Child, code: int) -> None:
        child.close()
        job.slot = None
        if job.run.result() is not None:
            job.state = "finished"
        elif self.stop_at is not None:
            job.state = "dropped"
        elif code == RunLocked.exit_code:
            # Another sweep had locked the run when our job started, which does not count as an attempt.
            job.leave_to_others()
            job.attempts -= 1
        elif job.attempts < self.slots.max_attempts:
            job.state = "waiting"
        else:
            job.fail(child.failure_reason())
            if self.slots.fail_fast:
                self._stop()

    def _start_ready(self) -> None:
        free = set(range(len(self.environments))) - {job.slot for job, _ in self._running()}
        for job in self.jobs:
            job.fail_with_dense()
            if free and job.state == "waiting" and all(other.ended for other in job.after):
                job.slot = min(free)
                self._start(job, self.environments[job.slot])
                if job.state == "running":
                    free.remove(job.slot)

    def _start(self, job: Job, environment: dict[str, str]) -> None:
        try:
            with job.run.lock(patience=0):  # the loop tries again; it has other jobs to poll
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
            job.fail(str(error))
            return
        job.attempts += 1
        try:
            job.child = Child(job_command(job.run.path), environment, job.log)
        except PermissionError as error:
            job.fail(str(cannot_write(job.log, error)))
        except OSError as error:  # no more processes, no memory
            job.fail(f"could not be started: {error.strerror}")
        else:
            job.state = "running"
