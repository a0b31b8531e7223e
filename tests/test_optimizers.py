"""Learning rates over a training."""

import pytest
import torch
from torch.nn import Parameter

from blocksparse_rnn.optimizers import adamw, nesterov_sgd


def rates(made: dict, steps: int) -> list[float]:
    """The learning rate of every step."""
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def adamw_rates(steps: int, warmup: float, power: float) -> list[float]:
    made = adamw(
        [Parameter(torch.zeros(2, 2))], steps, 1, lr=0.1, weight_decay=0.0, warmup=warmup, power=power
    )
    return rates(made, steps)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("power", [1.0, 1.5, 2.0])
def test_adamw_rises_and_falls_in_a_training_of_any_length(warmup, power):
    for steps in range(1, 40):
        used = adamw_rates(steps, warmup, power)
        top = used.index(max(used))
        assert used == [*sorted(used[:top]), *sorted(used[top:], reverse=True)]
        assert min(used) > 0
        assert max(used) <= 0.1


def test_adamw_falls_with_the_power_of_what_is_left():
    used = adamw_rates(100, warmup=0.2, power=2.0)
    assert used.index(max(used)) == 20
    assert used[20:] == pytest.approx([0.1 * ((100 - step) / 80) ** 2 for step in range(20, 100)])
    assert used[:20] == pytest.approx([0.1 * (step + 1) / 21 for step in range(20)])


def test_nesterov_divides_the_rate_after_every_epoch():
    made = nesterov_sgd([Parameter(torch.zeros(2, 2))], 9, 3, lr=0.9, momentum=0.9, anneal=3.0)
    assert rates(made, 9) == pytest.approx([0.9] * 3 + [0.3] * 3 + [0.1] * 3)
