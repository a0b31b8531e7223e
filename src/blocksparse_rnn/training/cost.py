"""Estimates before a start what runs at the paper's scale cost on a CPU."""

import time

import torch

from blocksparse_rnn.config.build import build_shapes
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.pruning.prunable import count_parameters
from blocksparse_rnn.runs.folder import RunFolder

_SHARE_OF_PEAK = 0.29
"""Of the processor's fp32 peak that a training step reaches (28 to 30 %, rnn 440 and gru 640 on one AVX-512 core)."""
_MATRIX = 1024


def cost_on_cpu(runs: list[Settings]) -> str | None:
    """A note on models, hours of speech and days of computing; None with a GPU, or without runs at the paper's scale.

    The time is an estimate: 6 operations per parameter and output frame (forward, and twice that backward), at the
    share of the peak that training steps reach. The peak is measured by a product of two matrices.

    Args:
        runs: of a sweep, or a single one; those that are finished cost nothing.
    """
    if torch.cuda.is_available():
        return None
    large = [r for r in runs if r.scale.name == "paper" and RunFolder.of(r).result() is None]
    if not large:
        return None
    counts, operations, hours = [], 0.0, 0.0
    for settings in large:
        model, features = build_shapes(settings), settings.features.build()
        counts.append(count_parameters(model, settings.prunable).total / 1e6)
        hours = max(hours, getattr(settings.data, "hours", 0.0))
        frames = model.frames(features.frames(3600 * features.sample_rate))  # type: ignore[operator]
        passes = settings.trainer.max_epochs / (settings.epochs_per_pass or 1)
        if settings.trainer.max_steps < 0:
            operations += 6e6 * counts[-1] * frames * passes * getattr(settings.data, "hours", 0.0)
    size = (
        f"{min(counts):.0f} M"
        if max(counts) - min(counts) < 1
        else f"{min(counts):.0f} to {max(counts):.0f} M"
    )
    speech = f", {hours:g} hours of speech to synthesise" if hours else ""
    days = operations / (_SHARE_OF_PEAK * _peak()) / 86400
    time_needed = f", about {days:,.0f} days of computing" if days >= 1 else ""
    return (
        f"note: no GPU found; the paper's scale on a CPU: {len(large)} model{'s' * (len(large) > 1)} of {size} "
        f"parameters{speech}{time_needed}. scale=mini trains in minutes"
    )


def _peak() -> float:
    """Operations per second of the fastest of a few products of two matrices, with all of torch's threads."""
    a = torch.rand(_MATRIX, _MATRIX)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - started)
    return 2 * _MATRIX**3 / best
