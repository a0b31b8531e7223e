"""skip_zeros=true: once masks are final, products skip the pruned blocks."""

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
    """Makes products skip pruned blocks once pruning has finished; when the training ends they are dense again.

    It must come after the sparsifiers among the callbacks.

    Args:
        sparsifiers: of this training.
    """

    def __init__(self, sparsifiers: list[Sparsifier]) -> None:
        self.sparsifiers = sparsifiers
        self.installed = False

    def on_train_start(self, trainer: pl.Trainer, recogniser: Any) -> None:
        device = trainer.strategy.root_device
        if device.type != "cpu":
            raise UserError(
                f"skip_zeros=true: needs a CPU, and this training uses {device}; set skip_zeros=null"
            )
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
    """Make the products with these matrices of a model skip pruned blocks.

    Args:
        model: its weights are zero where masks prune, and stay zero.
        masks: name of the matrix -> (R, C), True where a block is kept.
        block: rows and columns of a block.

    Raises:
        UserError: there are no kernels for such blocks, or no native library on this machine.
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
    """Make all products of a model dense again."""
    for layer in model.modules():
        if isinstance(layer, RNNLayer | GRULayer | FullyConnected):
            layer.project = functional.linear
        if isinstance(layer, RNNLayer):
            layer.core = rnn_core
        if isinstance(layer, GRULayer):
            layer.core = gru_core
