"""Lightning's trainer for a run, and the check of its devices."""

import logging
import warnings

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from blocksparse_rnn import distributed
from blocksparse_rnn.config.schema import TrainerSettings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.checkpoint_files import DurableCheckpointIO
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.training.skip_nonfinite import SkipNonFinite


def make_trainer(
    settings: TrainerSettings, run: RunFolder, callbacks: list[pl.Callback], loggers: list[Logger]
) -> pl.Trainer:
    """Lightning's trainer for a run.

    Args:
        settings: how long, on which devices and with which precision is trained.
        run: the run's folder.
        callbacks: of this training, in the order in which they act.
        loggers: of this training.
    """
    precision = settings.precision
    if precision == "auto":
        precision = "bf16-mixed" if on_gpu(settings.accelerator) else "32-true"
    strategy: str | DDPStrategy = settings.strategy
    if distributed.launched():
        # Batch norm's statistics are equal on all ranks already: DDP need not copy the first's to the others.
        strategy = DDPStrategy(broadcast_buffers=False)
    trainer = pl.Trainer(
        default_root_dir=run.path,
        callbacks=[*callbacks, SkipNonFinite(settings.max_skipped)],
        logger=loggers,
        # Explicit, since Lightning takes any process in a SLURM allocation for one of several ranks.
        plugins=[
            DurableCheckpointIO(),
            TorchElasticEnvironment() if distributed.launched() else LightningEnvironment(),
        ],
        max_epochs=settings.max_epochs,
        max_steps=settings.max_steps,
        max_time=settings.max_time,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=distributed.machines(),
        strategy=strategy,
        precision=precision,
        gradient_clip_val=settings.clip,
        log_every_n_steps=settings.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's signal handlers would replace `StopRequests`, and could wait for ranks that wait for this one.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def on_gpu(accelerator: str) -> bool:
    """Whether this setting means a GPU on this machine."""
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def validate_devices(settings: TrainerSettings) -> None:
    """Compare the settings with this machine, at the start of a training: a sweep may be planned elsewhere.

    Raises:
        UserError: another number of processes was started here, or there are fewer GPUs.
    """
    here = distributed.on_this_machine()
    if distributed.launched() and settings.devices != here:
        raise UserError(
            f"trainer.devices={settings.devices}: {here} processes were started on this machine; "
            f"set trainer.devices={here}"
        )
    found = torch.cuda.device_count()
    if on_gpu(settings.accelerator) and settings.devices > found:
        raise UserError(
            f"trainer.accelerator={settings.accelerator}, trainer.devices={settings.devices}: this machine has "
            f"{found} GPUs; set trainer.accelerator=cpu or fewer devices"
        )


def quieten_lightning() -> None:
    """Turn off Lightning's hints about GPUs and loader workers, which would bury this project's messages."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        ".*before the epoch ended.*",
        ".*log_every_n_steps.*",
        ".*broadcast_buffers.*",
        ".*sync_dist=True.*",  # what is logged is summed over the ranks already
    ):
        warnings.filterwarnings("ignore", message)
