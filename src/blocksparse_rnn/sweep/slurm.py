"""`launcher=slurm`: the points of a sweep as a job array, through submitit; what is preempted goes on by itself.

SLURM warns a job with SIGUSR2 before its time is up. The training saves, submitit queues the job again,
and it goes on from there. The package submitit is an extra.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from blocksparse_rnn.config.schema import read_settings
from blocksparse_rnn.errors import RunLocked, UserError
from blocksparse_rnn.processes import environment_of_jobs
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped
from blocksparse_rnn.sweep.live_table import SweepTable
from blocksparse_rnn.sweep.plan import Job

_POLL_SECONDS = 2.0
_LOCK_PATIENCE = 1.0  # seconds for another sweep to write the settings of a point


class Slurm:
    """How the points of a sweep are submitted, one element of a job array each.

    Args:
        cluster: `slurm`, or `local`: all at once on this machine, to try it out.
        hours: time limit of a job; one that needs longer is queued again and goes on.
        nodes: machines of a job; each runs `trainer.devices` processes.
        cpus_per_task: cores of each process.
        mem_gb: memory on each machine, in GB; null for the cluster's own default.
        partition: partition, or null.
        account: account, or null.
        qos: quality of service, or null.
        constraint: features that a machine must have, or null.
        jobs_at_once: elements of the array that run at a time.
        warning_seconds: time to save in before a job is ended.
        requeues: times that a job whose time was up is queued again.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self,
        *,
        cluster: Literal["slurm", "local"],
        hours: float,
        nodes: int,
        cpus_per_task: int,
        mem_gb: int | None,
        partition: str | None,
        account: str | None,
        qos: str | None,
        constraint: str | None,
        jobs_at_once: int,
        warning_seconds: int,
        requeues: int,
    ) -> None:
        for name, value in {
            "hours": hours,
            "nodes": nodes,
            "cpus_per_task": cpus_per_task,
            "jobs_at_once": jobs_at_once,
            "warning_seconds": warning_seconds,
        }.items():
            if value <= 0:
                raise UserError(f"launcher.{name}={value}: must be above 0")
        if requeues < 0:
            raise UserError(f"launcher.requeues={requeues}: must not be negative")
        if cluster == "local" and nodes > 1:
            raise UserError(f"launcher.nodes={nodes}: launcher.cluster=local has one machine")
        self.cluster = cluster
        self.minutes = max(1, round(60 * hours))
        self.nodes = nodes
        self.cpus_per_task = cpus_per_task
        self.mem_gb = mem_gb
        self.requeues = requeues
        self.slurm = {
            "partition": partition,
            "account": account,
            "qos": qos,
            "constraint": constraint,
            "array_parallelism": jobs_at_once,
            "signal_delay_s": warning_seconds,
        }

    def run(self, jobs: list[Job]) -> int:
        """Submit what is left to do and wait for it.

        Returns:
            0 when every point is finished, 1 when one failed.

        Raises:
            UserError: submitit is not installed, or this is no SLURM machine.
            Stopped: on Ctrl-C; the jobs stay in the queue.
        """
        table = SweepTable(len(jobs))
        submitted: dict[Path, Any] = {}
        try:
            with table:
                for ready in (lambda job: not job.after, lambda job: job.after):
                    left = [job for job in jobs if job.state == "waiting" and ready(job)]
                    self._submit(left, submitted, table)
                self._wait(jobs, submitted, table)
        except KeyboardInterrupt:
            if submitted:
                print(
                    f"the jobs stay in the queue; scancel {' '.join(_ids(submitted))} ends them",
                    file=sys.stderr,
                )
            raise Stopped(signal.SIGINT) from None
        table.report(jobs)
        return 0 if all(job.state == "finished" for job in jobs) else 1

    def _submit(self, jobs: list[Job], submitted: dict[Path, Any], table: SweepTable) -> None:
        """Submit some jobs as one array; those that need a dense run's weights begin when it has ended."""
        after = {dense.run.path: dense for job in jobs for dense in job.after}
        # Neither the local cluster nor a job of somebody else takes part in dependencies.
        alone = [dense for dense in after.values() if self.cluster == "local" or dense.state == "busy"]
        if alone:
            self._wait(alone, submitted, table)
        dense = [submitted[path] for path in after if path in submitted]
        for job in jobs:
            job.fail_with_dense()
        jobs = [job for job in jobs if job.state == "waiting" and _prepare(job)]
        by_processes: dict[tuple[int, int], list[Job]] = {}
        for job in jobs:
            trainer = job.settings.trainer
            gpus = 0 if trainer.accelerator == "cpu" else trainer.devices
            by_processes.setdefault((trainer.devices, gpus), []).append(job)
        for (processes, gpus), group in by_processes.items():
            executor = self._executor(Path(group[0].settings.outputs), processes, gpus, dense)
            with executor.batch():
                array = [executor.submit(Element(job)) for job in group]
            submitted |= {job.run.path: element for job, element in zip(group, array, strict=True)}

    def _executor(self, outputs: Path, processes: int, gpus: int, dense: list[Any]) -> Any:
        try:
            import submitit
        except ModuleNotFoundError:
            raise UserError("launcher=slurm: needs the package submitit; pip install submitit") from None
        os.environ["PYTHONPATH"] = environment_of_jobs()["PYTHONPATH"]
        folder = outputs.resolve() / ".slurm" / "%j"
        again = {f"{self.cluster}_max_num_timeout": self.requeues}
        try:
            executor = submitit.AutoExecutor(folder, cluster=self.cluster, **again)
        except RuntimeError as error:
            raise UserError(f"launcher.cluster={self.cluster}: {error}") from None
        specific = {f"slurm_{name}": value for name, value in self.slurm.items()}
        if dense and self.cluster == "slurm":
            specific["slurm_dependency"] = "afterany:" + ":".join(job.job_id for job in dense)
        executor.update_parameters(
            name="blocksparse",
            timeout_min=self.minutes,
            nodes=self.nodes,
            tasks_per_node=processes,
            gpus_per_node=gpus,
            cpus_per_task=self.cpus_per_task,
            mem_gb=self.mem_gb,
            **specific,
        )
        return executor

    def _wait(self, jobs: list[Job], submitted: dict[Path, Any], table: SweepTable) -> None:
        while True:
            for job in jobs:
                if not job.ended:
                    _look(job, submitted.get(job.run.path))
            table.show(jobs)
            if all(job.ended for job in jobs):
                return
            time.sleep(_POLL_SECONDS)


def _prepare(job: Job) -> bool:
    """Write a point's settings where its job finds them; False where it can't be done now."""
    try:
        with job.run.lock(_LOCK_PATIENCE):
            job.run.create(job.settings)
        return True
    except RunLocked:
        job.leave_to_others()
    except UserError as error:
        job.fail(str(error))
    return False


def _look(job: Job, submitted: Any) -> None:
    """Bring a job's state up to date. Only a result means that it is done.

    Args:
        job: the job.
        submitted: what submitit knows of it; None where another process has it.
    """
    # First: what it wrote before its end is there then.
    ended = submitted.done() if submitted else not job.run.is_locked()
    if job.run.result() is not None:
        job.state, job.problem = "finished", ""
    elif ended and not submitted:
        job.fail("another process left it unfinished; the same command goes on")
    elif ended and job.run.is_locked():
        job.leave_to_others()  # a job of the same command, given earlier, has it
    elif ended:
        job.fail(f"job {submitted.job_id} ended with no result")
    elif job.run.status().get("state") == "running":
        job.state = "running"


def _ids(submitted: dict[Path, Any]) -> list[str]:
    return sorted({job.job_id.split("_")[0] for job in submitted.values()})


class Element:
    """What each process of a submitted job does: train one run folder.

    Args:
        job: the point, whose dense ones must be finished when it begins.
    """

    def __init__(self, job: Job) -> None:
        self.path = str(job.run.path.resolve())
        self.after = [str(dense.run.path.resolve()) for dense in job.after]

    def __call__(self) -> float:
        from submitit.helpers import TorchDistributedEnvironment

        from blocksparse_rnn import distributed
        from blocksparse_rnn.training.train import train

        # One process or several, torch finds in its variables which of them this is.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        run = RunFolder(self.path)
        if not distributed.rank():
            _speak_into(run.path / "stdout.log")
        for dense in map(RunFolder, self.after):  # SLURM waits for their end, however they end
            if dense.result() is None:
                raise SystemExit(f"error: needs q of {dense.path.name}, which has no result")
        queue_again: Callable | Any = signal.getsignal(signal.SIGUSR2)  # submitit's
        try:
            return train(read_settings(run), run)["cer"]
        except Stopped as stopped:
            if stopped.number == signal.SIGUSR2:
                signal.signal(signal.SIGUSR2, queue_again)
                signal.raise_signal(signal.SIGUSR2)
            raise SystemExit(stopped.exit_code) from None

    def checkpoint(self) -> Any:
        """What submitit queues again: the same, since the run folder knows where to go on."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _speak_into(log: Path) -> None:
    """Add what this process prints to the log in the run's folder, where it is with every launcher."""
    with open(log, "ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
