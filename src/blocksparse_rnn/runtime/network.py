"""A whole network in the runtime: features in, logits out, every batch norm folded into the layer before it.

It computes what `models.deepspeech2` computes in eval mode, for a batch of utterances of any lengths, or for one
utterance in pieces (`NetworkStream`).

Shapes: C channels, T frames, F frequencies, O x I a matrix, N packed frames, H units, V outputs.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as functional
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_sequence, unpack_sequence

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.models.recurrence import CLIP
from blocksparse_rnn.runtime.bsr import BlockSparse
from blocksparse_rnn.runtime.cpu_layers import gru_layer, rnn_layer

PARTS = ("features", "convolutions", "recurrent", "fully connected")
"""What a recogniser's time is counted under; whoever computes the features counts theirs."""


@dataclass(frozen=True)
class Convolution:
    """A convolution over (frequency, time), padded by half a kernel on each side, and a clipped ReLU."""

    weight_OCFT: Tensor
    bias_O: Tensor
    stride: tuple[int, int]
    """In frequency and time."""

    @property
    def kernel(self) -> tuple[int, int]:
        """Size in frequency and time."""
        return self.weight_OCFT.shape[2], self.weight_OCFT.shape[3]

    @cached_property
    def _weight_OCTF(self) -> Tensor:
        # Time outermost, channels innermost: a frame is contiguous, and oneDNN is fastest.
        return self.weight_OCFT.float().transpose(2, 3).contiguous(memory_format=torch.channels_last)

    def apply(self, x_CTF: Tensor, padding: int) -> Tensor:
        """(C, T, F) -> (O, T', F'), with `padding` frames of zeros before and after."""
        x_1CTF = x_CTF.unsqueeze(0).contiguous(memory_format=torch.channels_last)
        stride, edges = self.stride[::-1], (padding, self.kernel[0] // 2)
        return functional.conv2d(x_1CTF, self._weight_OCTF, self.bias_O, stride, edges)[0].clamp_(0.0, CLIP)

    def __call__(self, x_CTF: Tensor) -> Tensor:
        """A whole utterance (C, T, F) -> (O, ceil(T / time stride), F')."""
        return self.apply(x_CTF, self.kernel[1] // 2)


@dataclass(frozen=True)
class Recurrent:
    """A recurrent layer: W and U of a GRU, or W and one U for each direction of an RNN."""

    w: BlockSparse
    u: BlockSparse
    u_reverse: BlockSparse | None
    bias_O: Tensor

    @property
    def matrices(self) -> tuple[BlockSparse, ...]:
        """W, U and, in an RNN, the U backward in time."""
        return (self.w, self.u) if self.u_reverse is None else (self.w, self.u, self.u_reverse)

    def __call__(
        self, x_NI: Tensor, batch_sizes: Sequence[int], threads: int, state_BH: Tensor | None = None
    ) -> Tensor:
        """Packed frames (N, I) -> (N, H); a GRU reads its initial state from `state_BH` and writes its final one."""
        if self.u_reverse is None:
            return gru_layer(self.w, self.u, self.bias_O, x_NI, batch_sizes, state_BH, threads)
        return rnn_layer(self.w, self.u, self.u_reverse, self.bias_O, x_NI, batch_sizes, threads)


@dataclass(frozen=True)
class Network:
    """A recogniser without its features and alphabet.

    Raises:
        UserError: layers that don't fit each other.
    """

    cell: Literal["rnn", "gru"]
    features: int
    """Values in a frame of features."""
    convolutions: tuple[Convolution, ...]
    recurrent: tuple[Recurrent, ...]
    fc_HH: BlockSparse
    fc_bias_H: Tensor
    output_VH: Tensor
    output_bias_V: Tensor
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0), compare=False)
    """Time spent so far in each of PARTS."""

    def __post_init__(self) -> None:
        channels, size = 1, self.features
        for convolution in self.convolutions:
            _fits("dimensions of a convolution", convolution.weight_OCFT.ndim, 4)
            _fits("a convolution's channels", convolution.weight_OCFT.shape[1], channels)
            frequency_stride, time_stride = convolution.stride
            if min(frequency_stride, time_stride) < 1:
                raise UserError(f"a convolution's strides must be at least 1, not {convolution.stride}")
            channels, size = len(convolution.weight_OCFT), math.ceil(size / frequency_stride)
            _fits("a convolution's bias", tuple(convolution.bias_O.shape), (channels,))
        inputs, gates = channels * size, 3 if self.cell == "gru" else 1
        for layer in self.recurrent:
            _fits("matrices of a recurrent layer", len(layer.matrices), 2 if self.cell == "gru" else 3)
            _fits(f"inputs of a recurrent layer ({self.features} features a frame)", layer.w.shape[1], inputs)
            rows, inputs = layer.w.shape[0], layer.w.shape[0] // gates
            for matrix in layer.matrices[1:]:
                _fits("a recurrent matrix", matrix.shape, (rows, inputs))
            _fits("a recurrent layer's bias", tuple(layer.bias_O.shape), (rows,))
        _fits("inputs of the fully connected layer", self.fc_HH.shape[1], inputs)
        _fits("its bias", tuple(self.fc_bias_H.shape), self.fc_HH.shape[:1])
        _fits("the output layer", tuple(self.output_VH.shape), (len(self.output_VH), self.fc_HH.shape[0]))
        _fits("its bias", tuple(self.output_bias_V.shape), (len(self.output_VH),))

    @property
    def time_stride(self) -> int:
        """Frames of features for each frame of logits."""
        return math.prod(c.stride[1] for c in self.convolutions)

    @property
    def future(self) -> int:
        """Frames of features after its own that a frame of logits needs in a network of GRU layers."""
        frames = 0
        for convolution in reversed(self.convolutions):
            frames = frames * convolution.stride[1] + convolution.kernel[1] // 2
        return frames

    @torch.inference_mode()
    def __call__(self, features: Sequence[Tensor], threads: int = 1) -> list[Tensor]:
        """Logits (T', V) of each utterance, given its features (T, F), T at least 1."""
        with self.timed("convolutions"):
            packed = pack_sequence([self._front(feature_TF) for feature_TF in features], enforce_sorted=False)
        sizes, x_NI = packed.batch_sizes.tolist(), packed.data
        with self.timed("recurrent"):
            for layer in self.recurrent:
                x_NI = layer(x_NI, sizes, threads)
        logits_NV = self._logits(x_NI, threads)
        return unpack_sequence(
            PackedSequence(logits_NV, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)
        )

    def _front(self, feature_TF: Tensor) -> Tensor:
        x_CTF = feature_TF.unsqueeze(0)
        for convolution in self.convolutions:
            x_CTF = convolution(x_CTF)
        return as_frames(x_CTF)

    def _logits(self, x_NH: Tensor, threads: int) -> Tensor:
        with self.timed("fully connected"):
            hidden_NH = self.fc_HH.product(x_NH, threads).add_(self.fc_bias_H).clamp_(0.0, CLIP)
            return functional.linear(hidden_NH, self.output_VH, self.output_bias_V)

    @contextmanager
    def timed(self, part: str) -> Iterator[None]:
        """Count the time spent within as one of PARTS."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


class NetworkStream:
    """One utterance in pieces: the logits of the whole, in bounded memory.

    Args:
        network: with GRU layers.
        chunk: frames of logits that are computed together, so that weights are read once for several.
        threads: of the native kernels.

    Raises:
        UserError: the network is bidirectional.
    """

    def __init__(self, network: Network, chunk: int, threads: int = 1) -> None:
        if network.cell != "gru":
            raise UserError(
                "a bidirectional rnn needs the whole utterance and cannot stream; use a gru, or give it files"
            )
        self.network, self.chunk, self.threads = network, chunk, threads
        self._convolutions = [_ConvolutionStream(c) for c in network.convolutions]
        self._waiting: list[Tensor] = []
        self._states = [torch.zeros(1, layer.u.shape[1]) for layer in network.recurrent]

    @torch.inference_mode()
    def feed(self, feature_TF: Tensor, end: bool = False) -> Tensor:
        """Logits (T', V) that the next frames complete, often none; at the end, the remaining ones."""
        with self.network.timed("convolutions"):
            x_CTF = feature_TF.unsqueeze(0)
            for convolution in self._convolutions:
                x_CTF = convolution.feed(x_CTF, end)
            self._waiting.append(as_frames(x_CTF))
            frames_NI = torch.cat(self._waiting)
        if len(frames_NI) < (1 if end else self.chunk):
            self._waiting = [frames_NI]
            return torch.empty(0, len(self.network.output_bias_V))
        self._waiting = []
        with self.network.timed("recurrent"):
            for layer, state_1H in zip(self.network.recurrent, self._states, strict=True):
                frames_NI = layer(frames_NI, [1] * len(frames_NI), self.threads, state_1H)
        return self.network._logits(frames_NI, self.threads)


class _ConvolutionStream:
    """A convolution over pieces; it keeps the frames that the next outputs need."""

    def __init__(self, convolution: Convolution) -> None:
        self.convolution = convolution
        self._kept_CTF: Tensor | None = None

    def feed(self, x_CTF: Tensor, end: bool) -> Tensor:
        convolution, kernel = self.convolution, self.convolution.kernel[1]
        edge_CTF = x_CTF.new_zeros(x_CTF.shape[0], kernel // 2, x_CTF.shape[2])
        before = edge_CTF if self._kept_CTF is None else self._kept_CTF
        x_CTF = torch.cat([before, x_CTF, edge_CTF] if end else [before, x_CTF], dim=1)
        stride = convolution.stride[1]
        count = max(0, (x_CTF.shape[1] - kernel) // stride + 1)
        self._kept_CTF = x_CTF[:, count * stride :].clone()
        if count == 0:
            size = math.ceil(x_CTF.shape[2] / convolution.stride[0])
            return x_CTF.new_zeros(len(convolution.bias_O), 0, size)
        return convolution.apply(x_CTF[:, : (count - 1) * stride + kernel], padding=0)


def as_frames(x_CTF: Tensor) -> Tensor:
    """(C, T, F) -> (T, C * F)."""
    return x_CTF.transpose(0, 1).flatten(1)


def _fits(what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise UserError(f"the layers don't fit each other: {what}: {found}, not {wanted}")
