"""Learning rates over a training."""

import pytest
import torch
from torch.nn import Parameter

from blocksparse_rnn.optimizers import adamw_one_cycle, nesterov_sgd


def rates(made: dict, steps: int) -> list[float]:
    """The learning rate of every step."""
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


@pytest.mark.parametrize("warmup", [0.0, 0.2, 0.5])
def test_one_cycle_fits_a_training_of_any_length(warmup):
    for steps in range(1, 40):
        made = adamw_one_cycle(
            [Parameter(torch.zeros(2, 2))], steps, 1, lr=0.1, weight_decay=0.0, warmup=warmup
        )
        used = rates(made, steps)
        top = used.index(max(used))
        assert used == [*sorted(used[:top]), *sorted(used[top:], reverse=True)]
        assert max(used) <= 0.1
        assert steps < 2 or used[-1] < 1e-6


def test_one_cycle_rises_over_its_share_of_the_steps():
    used = rates(
        adamw_one_cycle([Parameter(torch.zeros(2, 2))], 100, 1, lr=0.1, weight_decay=0.0, warmup=0.2), 100
    )
    assert used.index(max(used)) == 19
    assert max(used) == pytest.approx(0.1, rel=0.001)


def test_nesterov_divides_the_rate_after_every_epoch():
    made = nesterov_sgd([Parameter(torch.zeros(2, 2))], 9, 3, lr=0.9, momentum=0.9, anneal=3.0)
    assert rates(made, 9) == pytest.approx([0.9] * 3 + [0.3] * 3 + [0.1] * 3)
