"""`launcher=slurm`: the runs of a sweep are a job array of SLURM, submitted with the package submitit (an extra).

SLURM sends SIGUSR2 to a job before its time is up. The training saves a checkpoint, submitit queues the job again,
and the training resumes from the checkpoint.
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
from blocksparse_rnn.processes import job_environment
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped
from blocksparse_rnn.sweep.live_table import SweepTable
from blocksparse_rnn.sweep.plan import Job

_POLL_SECONDS = 2.0
_LOCK_PATIENCE = 1.0  # seconds for another sweep to write the settings of a run


class Slurm:
    """Submits the runs of a sweep, each as one element of a job array.

    Args:
        cluster: `slurm`, or `local` to run all jobs at once on this machine, as a trial.
        hours: time limit of a job; one that needs longer is queued again and resumes.
        nodes: machines of a job; each runs `trainer.devices` processes.
        cpus_per_task: cores of each process.
        mem_gb: memory on each machine, in GB; null for the cluster's own default.
        partition: partition, or null.
        account: account, or null.
        qos: quality of service, or null.
        constraint: features that a machine must have, or null.
        jobs_at_once: elements of the array that run at a time.
        warning_seconds: time to save a checkpoint before a job is ended.
        requeues: times that a job is queued again when its time is up.

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
                raise UserError(f"launcher.{name}={value:g}: must be above 0")
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
        """Submit the jobs that are not finished, and wait for them.

        Returns:
            0 when every run is finished, 1 when one failed.

        Raises:
            UserError: submitit or SLURM is not installed.
            Stopped: on Ctrl-C; the jobs stay in SLURM's queue.
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
                    f"the jobs stay in the queue; to end them: scancel {' '.join(_ids(submitted))}",
                    file=sys.stderr,
                )
            raise Stopped(signal.SIGINT) from None
        table.report(jobs)
        return 0 if all(job.state == "finished" for job in jobs) else 1

    def _submit(self, jobs: list[Job], submitted: dict[Path, Any], table: SweepTable) -> None:
        """Submit jobs as one array; those that need a dense run's weights begin when it has ended."""
        after = {dense.run.path: dense for job in jobs for dense in job.after}
        # SLURM can't make a job depend on one of the local cluster, or of another sweep.
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
        os.environ["PYTHONPATH"] = job_environment()["PYTHONPATH"]
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
                    _poll(job, submitted.get(job.run.path))
            table.show(jobs)
            if all(job.ended for job in jobs):
                return
            time.sleep(_POLL_SECONDS)


def _prepare(job: Job) -> bool:
    """Write the settings into the run's folder for the job to read; False if another process has it or on an error."""
    try:
        with job.run.lock(_LOCK_PATIENCE):
            job.run.create(job.settings)
        return True
    except RunLocked:
        job.leave_to_others()
    except UserError as error:
        job.fail(str(error))
    return False


def _poll(job: Job, submitted: Any) -> None:
    """Update the state of a job. Only a result means that it is finished.

    Args:
        job: the job.
        submitted: submitit's job; None if another process works on the run.
    """
    # Before the result is read, so that a job that has ended has written it.
    ended = submitted.done() if submitted else not job.run.is_locked()
    if job.run.result() is not None:
        job.state, job.problem = "finished", ""
    elif ended and not submitted:
        job.fail("another process left it unfinished; rerun the command to resume")
    elif ended and job.run.is_locked():
        job.leave_to_others()  # a job that the same command submitted earlier works on it
    elif ended:
        job.fail(f"job {submitted.job_id} ended with no result")
    elif job.run.status().get("state") == "running":
        job.state = "running"


def _ids(submitted: dict[Path, Any]) -> list[str]:
    return sorted({job.job_id.split("_")[0] for job in submitted.values()})


class Element:
    """The function that each process of a submitted job calls: it trains one run.

    Args:
        job: the run, and the dense runs that must be finished when it starts.
    """

    def __init__(self, job: Job) -> None:
        self.path = str(job.run.path.resolve())
        self.after = [str(dense.run.path.resolve()) for dense in job.after]

    def __call__(self) -> float:
        from submitit.helpers import TorchDistributedEnvironment

        from blocksparse_rnn import distributed
        from blocksparse_rnn.training.train import train

        # Torch reads its rank from environment variables, with one process too.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        run = RunFolder(self.path)
        if not distributed.rank():
            _redirect_output(run.path / "stdout.log")
        for dense in map(RunFolder, self.after):  # SLURM waited for their end, not for their success
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
        """What submitit queues again: the same call, which resumes from the checkpoint in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def _redirect_output(log: Path) -> None:
    """Append the output of this process to the log in the run's folder, where every launcher writes it."""
    with open(log, "ab") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
