"""Optimizers with their learning-rate schedules, in the form Lightning takes them."""

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
    """Nesterov's momentum, the learning rate divided by `anneal` after every epoch.

    Source: Amodei et al., "Deep Speech 2", 2016, section 3.1.

    Args:
        parameters: what to train.
        total_steps: steps of the whole training; not needed by this schedule.
        steps_per_epoch: steps after which the rate falls.
        lr: learning rate of the first epoch.
        momentum: share of the velocity kept per step.
        anneal: divisor of the learning rate per epoch.
    """
    optimizer = SGD(parameters, lr=lr, momentum=momentum, nesterov=True)
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
    power: PositiveFloat,
) -> dict[str, Any]:
    """AdamW whose rate rises in proportion to the steps, then falls as a power of the share that is left.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization", 2019; the fall as in Liu et al.,
    "ParseNet", 2015.

    Args:
        parameters: what to train.
        total_steps: steps of the whole training.
        steps_per_epoch: not needed by this schedule.
        lr: highest learning rate.
        weight_decay: decay of matrices and kernels; biases and batch norm are left alone.
        warmup: share of the steps in which the rate rises.
        power: of the fall; with more of it the rate is low for longer.
    """
    parameters = list(parameters)
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimizer = AdamW(groups, lr=lr)
    rise = warmup * total_steps

    def share_of_lr(step: int) -> float:
        left = max(0.0, total_steps - step) / (total_steps - rise)
        return min((step + 1) / (rise + 1), left**power)

    return _per_step(optimizer, LambdaLR(optimizer, share_of_lr))


def _per_step(optimizer: Any, schedule: Any) -> dict[str, Any]:
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
