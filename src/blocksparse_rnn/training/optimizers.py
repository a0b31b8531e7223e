"""Optimizers with their learning-rate schedules, as Lightning's `configure_optimizers` returns them."""

import math
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch.nn import Parameter
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR


def nesterov_sgd(
    parameters: Iterable[Parameter],
    total_steps: int,
    steps_per_epoch: int,
    *,
    lr: PositiveFloat,
    momentum: Annotated[float, Field(gt=0, lt=1)],
    anneal: PositiveFloat,
) -> dict[str, Any]:
    """SGD with Nesterov momentum; the learning rate is divided by `anneal` after every epoch.

    Source: Amodei et al., "Deep Speech 2", 2016, section 3.1.

    Args:
        parameters: what to train.
        total_steps: steps of the whole training; not needed by this schedule.
        steps_per_epoch: steps after which the rate falls.
        lr: learning rate of the first epoch.
        momentum: share of the velocity kept per step.
        anneal: divisor of the learning rate per epoch.
    """
    optimizer = SGD(_group_each(parameters), lr=lr, momentum=momentum, nesterov=True)
    schedule = LambdaLR(optimizer, lambda step: anneal ** -(step // steps_per_epoch))
    return _per_step(optimizer, schedule)


def adamw(
    parameters: Iterable[Parameter],
    total_steps: int,
    steps_per_epoch: int,
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    warmup: Annotated[float, Field(ge=0, lt=1)],
    decay: Annotated[float, Field(gt=0, le=1)],
    end_factor: Annotated[float, Field(gt=0, le=1)],
) -> dict[str, Any]:
    """AdamW with a linear warm-up, cosine decay, and a constant low rate at the end.

    Sources: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; the decay is equation 5 of their
    "SGDR", 2017, without restarts.

    Args:
        parameters: what to train.
        total_steps: steps of the whole training.
        steps_per_epoch: not needed by this schedule.
        lr: highest learning rate.
        weight_decay: decay of matrices and kernels; biases and batch norm have none.
        warmup: share of the steps in which the rate rises.
        decay: share of the other steps in which the rate falls.
        end_factor: the last rate, as a share of the highest.
    """
    groups = _group_each(parameters)
    for group in groups:
        group["weight_decay"] = weight_decay if group["params"][0].ndim > 1 else 0.0
    optimizer = AdamW(groups, lr=lr)
    rise = warmup * total_steps
    fall = decay * (total_steps - rise)

    def share_of_lr(step: int) -> float:
        progress = min(max(0.0, step - rise) / fall, 1.0)
        high = (1 + math.cos(math.pi * progress)) / 2
        return min((step + 1) / (rise + 1), end_factor + (1 - end_factor) * high)

    return _per_step(optimizer, LambdaLR(optimizer, share_of_lr))


def _group_each(parameters: Iterable[Parameter]) -> list[dict[str, Any]]:
    """A group for every parameter, so that a sparsifier can change the learning rate of one matrix."""
    return [{"params": [parameter]} for parameter in parameters]


def _per_step(optimizer: Any, schedule: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
