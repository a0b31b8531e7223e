"""The door through which Hydra hands a sweep to `blocksparse_rnn.sweep.plan`."""

import hashlib
import sys
from collections.abc import Sequence
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf


class SlotsLauncher(Launcher):
    """Hydra's launcher `slots`: composes and checks every point, then runs each in a process of its own."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context = hydra_context
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all points; leaves with exit code 1 where one failed, so that the others are not lost."""
        # Here, since Hydra imports all plugins even to print its help.
        from blocksparse_rnn.sweep.plan import run_sweep

        points = [self._settings(list(overrides)) for overrides in job_overrides]
        exit_code = run_sweep(points)
        if exit_code:
            sys.exit(exit_code)
        return [JobReturn(overrides=o, status=JobStatus.COMPLETED) for o in job_overrides]

    def _settings(self, overrides: list[str]) -> dict[str, Any]:
        from blocksparse_rnn.config.compose import composed_before
        from blocksparse_rnn.config.schema import resolve

        settings = composed_before(overrides)
        if settings is None:
            cfg = self.context.config_loader.load_sweep_config(self.config, overrides)
            settings = resolve(OmegaConf.masked_copy(cfg, [key for key in cfg if key != "hydra"]))  # type: ignore[misc]
        if settings["sweep"] is None:
            # The same command is the same sweep; a sweep's file is part of it.
            name = self.config.hydra.job.config_name
            typed = " ".join(
                [*sorted(self.config.hydra.overrides.task), *([name] if name != "config" else [])]
            )
            settings["sweep"] = f"sweep-{hashlib.sha256(typed.encode()).hexdigest()[:6]}"
        return settings


ConfigStore.instance().store(
    group="hydra/launcher", name="slots", node={"_target_": f"{__name__}.{SlotsLauncher.__name__}"}
)
