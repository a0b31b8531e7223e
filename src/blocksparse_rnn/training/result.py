"""What result.json says besides error rates: the size of a model, how it was pruned, under which circumstances."""

import platform
import time
from importlib.metadata import version
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from blocksparse_rnn.pruning.monitor import median_block_norms
from blocksparse_rnn.pruning.prunable import count_parameters, count_zeros
from blocksparse_rnn.pruning.sparsifier import Sparsifier
from blocksparse_rnn.runs.identity import identity
from blocksparse_rnn.runs.provenance import cpu_name, git_commit


def sizes(model: nn.Module, settings: dict[str, Any]) -> dict[str, Any]:
    """How many parameters a model has, and how many of them are zero."""
    counts = count_parameters(model, settings["prunable"])
    zeros = count_zeros(model, settings["prunable"])
    return {
        "sparsity/total": zeros.total,
        "sparsity/prunable": zeros.prunable,
        "sparsity/matrices": {name: round(share, 6) for name, share in zeros.matrices.items()},
        "parameters": {"total": counts.total, "prunable": counts.prunable, "nonzero": zeros.nonzero},
    }


def pruning(model: nn.Module, sparsifiers: list[Sparsifier], settings: dict[str, Any]) -> dict[str, Any]:
    """How a model was pruned, besides how far."""
    about: dict[str, Any] = {
        "sparsifier": settings["sparsifier"]["name"],
        "block": settings["block"] if sparsifiers else None,
    }
    for sparsifier in sparsifiers:
        about |= sparsifier.report()
    if sparsifiers:
        norms = median_block_norms(model, settings["prunable"], sparsifiers[0].block)
        about["block_norm"] = norms
    return about


def circumstances(settings: dict[str, Any], trainer: pl.Trainer) -> dict[str, Any]:
    """What a reader needs to judge or repeat a result."""
    device = trainer.strategy.root_device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()
    packages = ("torch", "torchaudio", "pytorch-lightning", "hydra-core")
    return {
        "seed": settings["seed"],
        "identity": identity(settings),
        "sweep": settings["sweep"],
        "device": name,
        "devices": trainer.world_size,
        "threads": torch.get_num_threads(),
        "precision": str(trainer.precision),
        "commit": git_commit(),
        "versions": {"python": platform.python_version(), **{p: version(p) for p in packages}},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
