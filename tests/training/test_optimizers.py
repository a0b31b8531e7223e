"""Learning rates over a training."""

import pytest
import torch
from torch.nn import Parameter

from blocksparse_rnn.training.optimizers import adamw, nesterov_sgd


def rates(made: dict, steps: int) -> list[float]:
    """The learning rate of every step."""
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    used = []
    for _ in range(steps):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


def adamw_rates(steps: int, warmup: float, decay: float) -> list[float]:
    weight = Parameter(torch.zeros(2, 2))
    shape = {"warmup": warmup, "decay": decay, "end_factor": 0.01}
    return rates(adamw([weight], steps, 1, lr=0.1, weight_decay=0.0, **shape), steps)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("decay", [0.1, 0.85, 1.0])
def test_adamw_rises_and_falls_in_a_training_of_any_length(warmup, decay):
    for steps in range(1, 40):
        used = adamw_rates(steps, warmup, decay)
        top = used.index(max(used))
        assert used == [*sorted(used[:top]), *sorted(used[top:], reverse=True)]
        assert min(used) >= 0.1 * 0.01 * 0.999
        assert max(used) <= 0.1


def test_adamw_falls_along_half_a_cosine_and_stays_low():
    used = adamw_rates(100, warmup=0.2, decay=0.75)
    assert used.index(max(used)) == 20
    assert used[:20] == pytest.approx([0.1 * (step + 1) / 21 for step in range(20)])
    assert used[50] == pytest.approx(0.1 * (1 + 0.01) / 2)
    assert used[80:] == pytest.approx([0.001] * 20)


@pytest.mark.parametrize("decayed", [True, False])
def test_adamw_decays_matrices_alone(decayed):
    parameter = Parameter(torch.ones(2, 2) if decayed else torch.ones(2))
    parameter.grad = torch.zeros_like(parameter)
    shape = {"warmup": 0.0, "decay": 1.0, "end_factor": 0.01}
    made = adamw([parameter], 10, 1, lr=0.1, weight_decay=0.5, **shape)
    made["optimizer"].step()
    assert parameter.detach().unique().tolist() == pytest.approx([0.95 if decayed else 1.0])


def test_nesterov_divides_the_rate_after_every_epoch():
    made = nesterov_sgd([Parameter(torch.zeros(2, 2))], 9, 3, lr=0.9, momentum=0.9, anneal=3.0)
    assert rates(made, 9) == pytest.approx([0.9] * 3 + [0.3] * 3 + [0.1] * 3)
