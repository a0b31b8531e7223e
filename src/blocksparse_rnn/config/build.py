"""Objects that are built from several settings: the model's shapes, and the sparsifiers."""

from functools import partial

import torch
from torch import nn

from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.pruning.sparsifier import Context, Sparsifier
from blocksparse_rnn.runs.dense_reference import find_dense
from blocksparse_rnn.speech.alphabet import Alphabet


def build_shapes(settings: Settings) -> nn.Module:
    """The model on the meta device: names and shapes, no weights."""
    features = settings.features.build()
    with torch.device("meta"):
        return settings.model.build(features.size, len(Alphabet(settings.alphabet)))


def build_sparsifiers(settings: Settings) -> list[Sparsifier]:
    """The sparsifiers of these settings; none for a dense model."""
    context = Context(settings.prunable, partial(find_dense, settings.plain()))
    return [node.build(context) for node in settings.sparsifier.nodes()]
