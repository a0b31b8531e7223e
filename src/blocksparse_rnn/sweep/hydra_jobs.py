"""The runs that a Hydra sweeper asks for, and the dev CER that each returns to it."""

import sys
from pathlib import Path

from hydra.core.config_loader import ConfigLoader
from omegaconf import DictConfig

from blocksparse_rnn.config.compose import settings_of, sweep_name
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.errors import PartlyFailed, UserError
from blocksparse_rnn.files import create_folder
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.sweep.plan import run_sweep


def dev_cers(loader: ConfigLoader, config: DictConfig, overrides: list[list[str]]) -> list[float]:
    """Do the runs that are not finished, and read the results of all.

    Args:
        loader: Hydra's loader of configurations.
        config: the primary configuration, with the overrides of the command line.
        overrides: those that the sweeper chose for each run.

    Returns:
        The best dev CER of each run, as its result.json has it.

    Raises:
        UserError: names every mistake in every run, one to a line.
        PartlyFailed: a run has no result.
    """
    create_folder(Path(config.hydra.sweep.dir))  # the sweeper writes into it at the end, and does not make it
    sweep = sweep_name(list(config.hydra.overrides.task), config.hydra.job.config_name)
    runs: list[Settings] = []
    problems: list[str] = []
    for each in overrides:
        cfg = loader.load_sweep_config(config, each)
        try:
            runs.append(settings_of(cfg, cfg.hydra.runtime.choices, sweep))
        except UserError as error:
            problems += str(error).splitlines()
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    exit_code = run_sweep(runs)
    if exit_code > 1:  # a signal
        sys.exit(exit_code)
    cers = []
    for settings in runs:
        result = RunFolder.of(settings).result()
        if result is None:
            raise PartlyFailed(f"{RunFolder.of(settings).path}: has no result; its log says why")
        cers.append(float(result["dev_cer"]))
    return cers
