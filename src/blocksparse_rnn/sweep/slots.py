"""Where the jobs of a sweep run: one slot for each GPU, or some on a CPU that share its threads."""

import os
import sys
from pathlib import Path

import torch

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import SOURCE, cores

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


class Slots:
    """How a machine is shared out among the jobs of a sweep.

    Args:
        slots: jobs at a time; null for one per visible GPU (or per `gpus_per_job` of them), or on a CPU
            one per `threads_per_job` cores.
        gpus_per_job: GPUs that a job gets.
        threads_per_job: cores that a job on a CPU gets where `slots` is null; null for all, one job at a time.
        max_attempts: times that a point is tried.
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

    def environments(self, devices: int) -> list[dict[str, str]]:
        """The environment of each slot's jobs.

        Args:
            devices: GPUs that a job uses where there are any, at most; 0 for none.

        Raises:
            UserError: there are fewer GPUs than the slots need, or a job needs more than it gets.
        """
        base = {name: value for name, value in os.environ.items() if name not in _OF_OTHER_PROCESSES}
        base["PYTHONPATH"] = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
        gpus = visible_gpus() if devices else []
        if not gpus:
            slots = self.slots or max(1, cores() // (self.threads_per_job or cores()))
            threads = {"OMP_NUM_THREADS": str(max(1, cores() // slots))}
            return [threads | base for _ in range(slots)]  # what the user's environment says counts
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


def job_command(run: Path) -> list[str]:
    """The program that does the job of one run folder."""
    return [sys.executable, "-m", "blocksparse_rnn.cli.job", str(run)]
