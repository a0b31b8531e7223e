"""The door through which a Hydra sweeper, such as optuna, hands the runs of a sweep to `blocksparse_rnn.sweep`."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class BlocksparseLauncher(Launcher):
    """Hydra's launcher `slots`: checks every run, then does each in a process of its own."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do all runs, finished ones not again; the objective of each is the best dev CER of its result.

        Raises:
            UserError: names every mistake in every run.
            PartlyFailed: a run has no result.
        """
        # Here, since Hydra imports all plugins even to print its help.
        from blocksparse_rnn.sweep.hydra_jobs import dev_cers

        returned = dev_cers(self.context.config_loader, self.config, [list(o) for o in job_overrides])
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=cer)
            for overrides, cer in zip(job_overrides, returned, strict=True)
        ]
