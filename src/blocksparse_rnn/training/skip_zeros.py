"""Once masks are final, the matrices' products skip the blocks that are zero for good (skip_zeros=true)."""

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.captured import gru_core, rnn_core
from blocksparse_rnn.models.layers import FullyConnected, GRULayer, RNNLayer
from blocksparse_rnn.models.recurrence import gru_forward, rnn_both
from blocksparse_rnn.pruning.blocks import BlockSize
from blocksparse_rnn.pruning.sparsifier import Sparsifier
from blocksparse_rnn.runtime.autograd import KeptBlocks


class SkipZeros(pl.Callback):
    """Lets training skip zero blocks from the step on at which pruning has ended.

    It stands behind the sparsifiers among the callbacks. When the training ends, the model computes densely again.

    Args:
        sparsifiers: of this training.
    """

    def __init__(self, sparsifiers: list[Sparsifier]) -> None:
        self.sparsifiers = sparsifiers
        self.installed = False

    def on_train_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        device = trainer.strategy.root_device
        if device.type != "cpu":
            raise UserError(f"skip_zeros=true: is for training on a CPU, and this one uses {device}")
        self._install_when_final(trainer, recogniser)

    def on_train_batch_end(self, trainer: pl.Trainer, recogniser: Any, *_: Any) -> None:
        self._install_when_final(trainer, recogniser)

    def on_train_end(self, trainer: pl.Trainer, recogniser: Any) -> None:
        skip_nothing(recogniser.model)
        self.installed = False

    def _install_when_final(self, trainer: pl.Trainer, recogniser: Any) -> None:
        if self.installed:
            return
        for sparsifier in self.sparsifiers:
            masks = sparsifier.final_masks(trainer.global_step)
            if sparsifier.skip_zeros and masks is not None:
                skip_zeros(recogniser.model, masks, sparsifier.block)
                self.installed = True


def skip_zeros(model: nn.Module, masks: dict[str, Tensor], block: BlockSize) -> None:
    """Let the products with these matrices of a model skip the blocks that a mask prunes.

    Args:
        model: whose weights are zero where masks prune, and stay so.
        masks: name of the matrix -> (R, C), True where a block is kept.
        block: rows and columns of a block.

    Raises:
        UserError: no kernels for such blocks, or none at all on this machine.
    """
    kept = {name: KeptBlocks(mask_RC, block, torch.get_num_threads()) for name, mask_RC in masks.items()}
    for path, layer in model.named_modules():
        own = {name.rpartition(".")[2]: k for name, k in kept.items() if name.rpartition(".")[0] == path}
        if isinstance(layer, RNNLayer | GRULayer) and "weight_ih" in own:
            layer.project = own["weight_ih"].project
        if isinstance(layer, FullyConnected) and "weight" in own:
            layer.project = own["weight"].project
        if isinstance(layer, RNNLayer) and {"weight_hh", "weight_hh_reverse"} <= own.keys():
            products = (own["weight_hh"].product, own["weight_hh_reverse"].product)
            layer.core = partial(rnn_both, products=products)
        if isinstance(layer, GRULayer) and "weight_hh" in own:
            layer.core = partial(gru_forward, product=own["weight_hh"].product)


def skip_nothing(model: nn.Module) -> None:
    """Let all products be dense again."""
    for layer in model.modules():
        if isinstance(layer, RNNLayer | GRULayer | FullyConnected):
            layer.project = functional.linear
        if isinstance(layer, RNNLayer):
            layer.core = rnn_core
        if isinstance(layer, GRULayer):
            layer.core = gru_core
