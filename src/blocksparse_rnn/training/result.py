"""result.json without the test error rates: size of the model, how it was pruned, durations, circumstances."""

import platform
import time
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.manifest import total_hours
from blocksparse_rnn.pruning.monitor import median_block_norms
from blocksparse_rnn.pruning.prunable import count_parameters, count_zeros
from blocksparse_rnn.pruning.sparsifier import Sparsifier
from blocksparse_rnn.runs.identity import identity
from blocksparse_rnn.runs.provenance import cpu_name, git_commit
from blocksparse_rnn.training.checkpoints import Checkpoints
from blocksparse_rnn.training.skip_nonfinite import SkipNonFinite


def training_result(
    settings: Settings,
    model: nn.Module,
    data: SpeechData,
    trainer: pl.Trainer,
    sparsifiers: list[Sparsifier],
    checkpoints: Checkpoints,
) -> dict[str, Any]:
    """The result of a training that has ended, without its error rates on the test split.

    Args:
        settings: of the training.
        model: with the weights of the best checkpoint.
        data: on which it was trained.
        trainer: that trained it.
        sparsifiers: that pruned it.
        checkpoints: that were kept.
    """
    [skip] = [c for c in trainer.callbacks if isinstance(c, SkipNonFinite)]  # type: ignore[attr-defined]
    hours = total_hours(data.datasets["train"].utterances)
    epochs = trainer.global_step / max(1, int(trainer.num_training_batches))
    audio_hours = hours * epochs / data.epochs_per_pass
    return {
        "dev_cer": checkpoints.best_cer,
        **sizes(model, settings.prunable),
        **_pruning(model, sparsifiers, settings),
        "best_step": checkpoints.best_step,
        "steps": trainer.global_step,
        "skipped_steps": skip.total,
        "epochs": round(epochs, 3),
        "train_hours": round(hours, 4),
        # Over all processes of the run, without the steps that were lost because one was killed.
        "wall_seconds": round(checkpoints.seconds, 1),
        "cpu_seconds": round(checkpoints.cpu_seconds, 1),  # comparable on a shared machine too
        "saving_seconds": round(checkpoints.saving_seconds, 2),
        "audio_hours_per_second": round(audio_hours / max(checkpoints.seconds, 1e-3), 6),
        **_circumstances(settings, trainer),
    }


def sizes(model: nn.Module, prunable: dict[str, list[str]]) -> dict[str, Any]:
    """How many parameters a model has, and how many of them are zero.

    Args:
        model: whose parameters are counted.
        prunable: matrix type -> name patterns.
    """
    counts = count_parameters(model, prunable)
    zeros = count_zeros(model, prunable)
    return {
        "sparsity/total": zeros.total,
        "sparsity/prunable": zeros.prunable,
        "sparsity/matrices": {name: round(share, 6) for name, share in zeros.matrices.items()},
        "parameters": {"total": counts.total, "prunable": counts.prunable, "nonzero": zeros.nonzero},
    }


def _pruning(model: nn.Module, sparsifiers: list[Sparsifier], settings: Settings) -> dict[str, Any]:
    """How a model was pruned; `sizes` has its sparsity."""
    about: dict[str, Any] = {
        "sparsifier": settings.sparsifier.name,
        "block": settings.block if sparsifiers else None,
    }
    for sparsifier in sparsifiers:
        about |= sparsifier.report()
    if sparsifiers:
        about["block_norm"] = median_block_norms(model, settings.prunable, sparsifiers[0].block)
    return about


def _circumstances(settings: Settings, trainer: pl.Trainer) -> dict[str, Any]:
    """What a reader needs to judge or repeat a result."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    packages = ("torch", "torchaudio", "pytorch-lightning", "hydra-core")
    return {
        "seed": settings.seed,
        "identity": identity(settings.plain()),
        "sweep": settings.sweep,
        "device": name,
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
