"""The layers of a Deep-Speech-2-style recogniser, over packed sequences.

Packed sequences (`torch.nn.utils.rnn.PackedSequence`) hold valid frames only: batch norm counts no padding,
nothing leaks from it, and no product is spent on it.

Shapes: B batch, C channels, F frequencies, T frames, N packed frames, I inputs, H hidden units.
"""

import math
from collections.abc import Callable, Iterator
from typing import Annotated

import torch
import torch.nn.functional as functional
from pydantic import ConfigDict, Field, PositiveInt, with_config
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from typing_extensions import TypedDict

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.batch_norm import BatchNorm
from blocksparse_rnn.models.captured import gru_core, rnn_core
from blocksparse_rnn.models.recurrence import CLIP


def clipped_relu(x: Tensor) -> Tensor:
    """min(max(x, 0), 20) (Hannun et al., "Deep Speech", 2014, section 2)."""
    return x.clamp(0.0, CLIP)


def pack(x_BT: Tensor, lengths: list[int]) -> PackedSequence:
    """The valid frames of a padded batch (B, T, ...), lengths in any order."""
    return pack_padded_sequence(x_BT, torch.tensor(lengths), batch_first=True, enforce_sorted=False)


def unpack(packed: PackedSequence) -> Tensor:
    """Padded batch (B, T, ...) of a packed sequence, zero beyond each utterance's end."""
    return pad_packed_sequence(packed, batch_first=True)[0]


def repack(data_N: Tensor, like: PackedSequence) -> PackedSequence:
    """Other values for the same frames."""
    return PackedSequence(data_N, like.batch_sizes, like.sorted_indices, like.unsorted_indices)


@with_config(ConfigDict(extra="forbid"))
class ConvolutionSettings(TypedDict):
    """A convolution in the settings; kernel and stride are [frequency, time]."""

    channels: PositiveInt
    kernel: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]
    stride: Annotated[list[PositiveInt], Field(min_length=2, max_length=2)]


class Convolution(nn.Module):
    """2-D convolution over (frequency, time) without bias, batch norm, clipped ReLU.

    Padding is half a kernel on each side, so an axis of size n and stride s becomes ceil(n / s).

    Args:
        in_channels: channels before it.
        channels: channels after it.
        kernel: odd sizes in frequency and time.
        stride: steps in frequency and time.

    Raises:
        UserError: a size is even.
    """

    def __init__(self, in_channels: int, *, channels: int, kernel: list[int], stride: list[int]) -> None:
        super().__init__()
        if any(size % 2 == 0 for size in kernel):
            raise UserError(f"model.convolutions: kernel={kernel} must have odd sizes")
        (high, wide), (down, along) = kernel, stride
        self.stride = down, along
        padding = high // 2, wide // 2
        self.conv = nn.Conv2d(in_channels, channels, (high, wide), self.stride, padding, bias=False)
        self.norm = BatchNorm(channels)

    def forward(self, x_BCFT: Tensor, lengths: list[int]) -> tuple[PackedSequence, list[int]]:
        """Packed (N, C, F) and the frames of each utterance. The input is zero beyond each utterance's end."""
        lengths = [math.ceil(length / self.stride[1]) for length in lengths]
        packed = pack(self.conv(x_BCFT).permute(0, 3, 1, 2), lengths)
        return repack(clipped_relu(self.norm(packed.data)), packed), lengths


class ConvolutionStack(nn.Module):
    """Convolutions one after the other: features (B, T, F) -> packed frames (N, C * F)."""

    def __init__(self, features: int, convolutions: list[ConvolutionSettings]) -> None:
        super().__init__()
        channels, size = 1, features
        self.convolutions = nn.ModuleList()
        for setting in convolutions:
            self.convolutions.append(Convolution(channels, **setting))
            channels, size = setting["channels"], math.ceil(size / setting["stride"][0])
        self.output_size = channels * size
        self.time_stride = math.prod(c.stride[1] for c in self._each())

    def _each(self) -> Iterator[Convolution]:
        for convolution in self.convolutions:
            assert isinstance(convolution, Convolution)
            yield convolution

    def frames(self, frames: int) -> int:
        """Frames that come out of `frames` feature frames."""
        for convolution in self._each():
            frames = math.ceil(frames / convolution.stride[1])
        return frames

    def forward(self, feature_BTF: Tensor, lengths: list[int]) -> tuple[PackedSequence, list[int]]:
        x_BCFT = feature_BTF.transpose(1, 2).unsqueeze(1)
        for convolution in self._each():
            packed, lengths = convolution(x_BCFT, lengths)
            x_BCFT = unpack(packed).permute(0, 2, 3, 1)
        return repack(packed.data.flatten(1), packed), lengths


class RNNLayer(nn.Module):
    """Bidirectional clipped-ReLU layer: h_t = clip(BN(W x_t) + U h_{t-1}), directions summed.

    Both directions share W and its batch norm and have their own U. The only bias is batch norm's
    shift (Amodei et al., "Deep Speech 2", 2016, section 3.2).

    Args:
        input_size: inputs per frame.
        hidden_size: units.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.weight_hh_reverse = nn.Parameter(torch.empty(hidden_size, hidden_size))
        self.norm = BatchNorm(hidden_size)
        # What computes the two parts; `training.skip_zeros` replaces them.
        self.project: Callable[[Tensor, Tensor], Tensor] = functional.linear
        self.core: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor] = rnn_core
        nn.init.normal_(self.weight_ih, std=input_size**-0.5)
        # At about half the critical spectral radius, a ReLU state neither explodes nor vanishes over many steps.
        nn.init.normal_(self.weight_hh, std=0.5 * hidden_size**-0.5)
        nn.init.normal_(self.weight_hh_reverse, std=0.5 * hidden_size**-0.5)

    def forward(self, packed: PackedSequence) -> PackedSequence:
        """(N, I) -> (N, H), both packed."""
        a_NH = self.norm(self.project(packed.data, self.weight_ih))
        matrices = (self.weight_hh.to(a_NH.dtype), self.weight_hh_reverse.to(a_NH.dtype))
        return repack(self.core(a_NH, *matrices, packed.batch_sizes.tolist()), packed)


class GRULayer(nn.Module):
    """Forward-only GRU layer over BN(W x), gates r, z, n stacked, no bias but batch norm's shift.

    Args:
        input_size: inputs per frame.
        hidden_size: units.
    """

    gates = ("r", "z", "n")
    """Stacked in this order in the rows of both matrices."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.weight_ih = nn.Parameter(torch.empty(3 * hidden_size, input_size))
        self.weight_hh = nn.Parameter(torch.empty(3 * hidden_size, hidden_size))
        self.norm = BatchNorm(3 * hidden_size)
        self.project: Callable[[Tensor, Tensor], Tensor] = functional.linear
        self.core: Callable[[Tensor, Tensor, list[int]], Tensor] = gru_core
        nn.init.normal_(self.weight_ih, std=input_size**-0.5)
        nn.init.uniform_(self.weight_hh, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, packed: PackedSequence) -> PackedSequence:
        """(N, I) -> (N, H), both packed."""
        a_NG = self.norm(self.project(packed.data, self.weight_ih))
        hidden_NH = self.core(a_NG, self.weight_hh.to(a_NG.dtype), packed.batch_sizes.tolist())
        return repack(hidden_NH, packed)


class FullyConnected(nn.Module):
    """Fully connected layer without bias, batch norm, clipped ReLU: (N, H) -> (N, H)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size, size))
        self.norm = BatchNorm(size)
        self.project: Callable[[Tensor, Tensor], Tensor] = functional.linear
        nn.init.normal_(self.weight, std=size**-0.5)

    def forward(self, x_NH: Tensor) -> Tensor:
        return clipped_relu(self.norm(self.project(x_NH, self.weight)))
