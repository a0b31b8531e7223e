"""Deep-Speech-2-style recogniser: convolutions, recurrent layers, one fully connected layer, letters.

Source: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, section 4;
Amodei et al., "Deep Speech 2", 2016. Shapes: B batch, T frames, F features, V outputs.
"""

from typing import Literal

from pydantic import PositiveInt
from torch import Tensor, nn

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.layers import (
    ConvolutionSettings,
    ConvolutionStack,
    FullyConnected,
    GRULayer,
    RNNLayer,
    repack,
    unpack,
)

LAYERS = {"rnn": RNNLayer, "gru": GRULayer}


class DeepSpeech2(nn.Module):
    """Maps features to a row of logits per output frame.

    Args:
        features: features per frame.
        outputs: letters and blank.
        cell: `rnn`, bidirectional with clipped ReLU, or `gru`, forward only.
        layers: recurrent layers.
        hidden_size: units of each recurrent layer and of the fully connected one.
        convolutions: first to last; kernels have odd sizes.

    Raises:
        UserError: a kernel is even or there is no convolution.
    """

    def __init__(
        self,
        features: int,
        outputs: int,
        *,
        cell: Literal["rnn", "gru"],
        layers: PositiveInt,
        hidden_size: PositiveInt,
        convolutions: list[ConvolutionSettings],
    ) -> None:
        super().__init__()
        if not convolutions:
            raise UserError("model.convolutions=[]: give at least one convolution")
        self.front = ConvolutionStack(features, convolutions)
        sizes = [self.front.output_size] + [hidden_size] * layers
        self.recurrent = nn.ModuleList(LAYERS[cell](inputs, hidden_size) for inputs in sizes[:-1])
        self.fc = FullyConnected(hidden_size)
        self.output = nn.Linear(hidden_size, outputs)

    def frames(self, frames: int) -> int:
        """Output frames for `frames` feature frames."""
        return self.front.frames(frames)

    def forward(self, feature_BTF: Tensor, lengths: list[int]) -> tuple[Tensor, list[int]]:
        """Logits of a padded batch.

        Args:
            feature_BTF: features, zero beyond each utterance's end.
            lengths: valid frames of each, at least 1.

        Returns:
            logits_BTV, zero beyond each utterance's end, and the output frames of each.
        """
        packed, lengths = self.front(feature_BTF, lengths)
        for layer in self.recurrent:
            packed = layer(packed)
        logits_NV = self.output(self.fc(packed.data))
        return unpack(repack(logits_NV, packed)), lengths
