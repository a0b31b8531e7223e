"""Hydra's launcher `slots`: runs what a Hydra sweeper, such as optuna, asks for by `blocksparse_rnn.sweep`."""

from collections.abc import Sequence

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class BlocksparseLauncher(Launcher):
    """Checks every run, then does each in a process of its own."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Do all runs that are not finished. The objective of each is the best dev CER in its result.json.

        Raises:
            UserError: a run's settings have mistakes; names all of all runs.
            PartlyFailed: a run has no result.
        """
        # Here, since Hydra imports all plugins even to print its help.
        from blocksparse_rnn.sweep.hydra_jobs import dev_cers

        returned = dev_cers(self.context.config_loader, self.config, [list(o) for o in job_overrides])
        return [
            JobReturn(overrides=overrides, status=JobStatus.COMPLETED, _return_value=cer)
            for overrides, cer in zip(job_overrides, returned, strict=True)
        ]
