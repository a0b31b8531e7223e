"""A small network and the hooks of a training of it, for the tests of sparsifiers."""

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from blocksparse_rnn.models.layers import FullyConnected, GRULayer, RNNLayer
from blocksparse_rnn.pruning.block_pruning import BlockPruning
from blocksparse_rnn.pruning.schedule import PaperSchedule, Steps
from blocksparse_rnn.pruning.sparsifier import Context

PATTERNS = {"recurrent": ["*.weight_hh*"], "fully_connected": ["*.weight_ih", "fc.weight"]}
SCHEDULE = PaperSchedule(start_epoch=1, ramp_frac=0.25, end_frac=0.5, ramp_ratio=1.5, freq=5)
STEPS = Steps(start_itr=10, ramp_itr=20, end_itr=41, freq=5)  # of a `Training`
UPDATES = [15, 20, 25, 30, 35, 40]


def network(cell: str = "rnn", width: int = 96) -> nn.Module:
    torch.manual_seed(0)
    layer = {"rnn": RNNLayer, "gru": GRULayer}[cell]
    model = nn.Module()
    model.first, model.second, model.fc = layer(32, width), layer(width, width), FullyConnected(width)
    return model


def block_pruning(**changes: Any) -> BlockPruning:
    context = Context(changes.pop("prunable", PATTERNS), changes.pop("find_dense", lambda q: None))
    settings: dict[str, Any] = {
        "block": 4,
        "target_sparsity": 0.9,
        "q": "auto",
        "size_exponent": None,
        "skip_zeros": None,
        "max_sparsity": 0.99,
        "rate_exponent": 0.0,
        "schedule": SCHEDULE,
    }
    return BlockPruning(context, **settings | changes)


class Training:
    """80 steps in epochs of 10, as far as a sparsifier sees them; weights stay as they are without an optimizer."""

    def __init__(self, sparsifier: Any, model: nn.Module, optimizer: Any = None, steps: int = 80):
        self.sparsifier, self.model, self.optimizer = sparsifier, model, optimizer
        self.trainer: Any = SimpleNamespace(
            num_training_batches=10,
            estimated_stepping_batches=steps,
            global_step=0,
            optimizers=[optimizer] if optimizer else [],
            lr_scheduler_configs=[],
        )
        self.logged: dict[str, float] = {}
        self.recogniser: Any = SimpleNamespace(model=model, log=self.logged.__setitem__)
        sparsifier.on_train_start(self.trainer, self.recogniser)

    def step(self, number: int) -> None:
        """The step after which `number` steps are done, with random gradients."""
        self.trainer.global_step = number - 1
        self.sparsifier.on_train_batch_start(self.trainer, self.recogniser, None, number)
        if self.optimizer:
            generator = torch.Generator().manual_seed(number)
            for p in self.model.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
            self.sparsifier.on_before_optimizer_step(self.trainer, self.recogniser, self.optimizer)
            self.optimizer.step()
        self.trainer.global_step = number
        self.sparsifier.on_train_batch_end(self.trainer, self.recogniser, None, None, number)

    def prune(self) -> None:
        for number in (11, *UPDATES):  # q is measured before step 11
            self.step(number)
