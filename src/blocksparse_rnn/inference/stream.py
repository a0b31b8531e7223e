"""Streaming: the text of a recording that comes in pieces, in bounded memory.

Shapes: S samples, T frames, F features, V outputs.
"""

import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runtime.network import Network, NetworkStream
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.features import Features
from blocksparse_rnn.speech.greedy import GreedyDecoder

LEAST_CHUNK = 8
"""Fewest frames of logits that a stream computes together: with fewer, the weights leave the cache in between."""


def obstacle(features: Features, network: Network, decoder: object) -> str | None:
    """Why a recogniser needs the whole utterance; None if it can stream."""
    if network.cell != "gru":
        return "a bidirectional rnn needs the whole utterance and cannot stream; use a gru, or give it files"
    if features.normalisation == "utterance":
        return (
            "features.normalisation=utterance needs the whole utterance and cannot stream; train with "
            "features.normalisation=corpus, or give it files"
        )
    if features.hop_length > features.n_fft:
        return "features.hop is longer than the window, and such features cannot stream; give it files"
    if not isinstance(decoder, GreedyDecoder):
        return (
            "a beam search needs the whole utterance and cannot stream; export the run: an exported file "
            "decodes greedily"
        )
    return None


def delay(features: Features, network: Network, chunk: int) -> float:
    """Longest wait, in seconds of audio, from a sound to its text."""
    window = features.n_fft - features.hop_length
    frames = chunk * network.time_stride + network.future
    return (frames * features.hop_length + window) / features.sample_rate


def check_wave(wave_S: Tensor) -> None:
    """Check that a waveform is one row of floats.

    Raises:
        UserError: it isn't.
    """
    if wave_S.ndim != 1 or not wave_S.is_floating_point():
        raise UserError(
            f"a waveform is one row of floats in [-1, 1], not {tuple(wave_S.shape)} of {wave_S.dtype}"
        )


@torch.inference_mode()
def frames_of(wave_S: Tensor, features: Features, network: Network) -> Tensor:
    """Features (T, F) of a waveform of at least one window; their time counts as the network's."""
    with network.timed("features"):
        return features(wave_S[None], [len(wave_S)])[0][0]


class Stream:
    """One recording in pieces of any size.

    Greedy decoding never takes a letter back, so the pieces of text joined are the text of the whole.

    Args:
        features: of a recogniser for which `obstacle` is None, as are the others.
        network: its network.
        alphabet: its letters.
        chunk: frames of logits that are computed together.
        threads: of the native kernels.
    """

    def __init__(
        self, features: Features, network: Network, alphabet: Alphabet, chunk: int, threads: int
    ) -> None:
        self.features, self.network, self.alphabet = features, network, alphabet
        self._logits = NetworkStream(network, chunk, threads)
        self._wave_S = torch.empty(0)
        self._last = alphabet.blank

    def feed(self, wave_S: Tensor) -> str:
        """The text that the next samples, in [-1, 1], add.

        Raises:
            UserError: they are not a row of floats.
        """
        check_wave(wave_S)
        return self._feed(wave_S, end=False)

    def end(self) -> str:
        """The rest of the text. Samples that don't fill a window are dropped, as in a file."""
        return self._feed(torch.empty(0), end=True)

    def _feed(self, wave_S: Tensor, end: bool) -> str:
        self._wave_S = torch.cat([self._wave_S, wave_S])
        frames = self.features.frames(len(self._wave_S))
        feature_TF = torch.empty(0, self.features.size)
        if frames:
            feature_TF = frames_of(self._wave_S, self.features, self.network)
            self._wave_S = self._wave_S[frames * self.features.hop_length :].clone()
        return self._decode(self._logits.feed(feature_TF, end))

    def _decode(self, logits_TV: Tensor) -> str:
        """Best path. A repeat is dropped also where the first letter lies in an earlier piece."""
        letters = []
        for index in logits_TV.argmax(1).tolist():
            if index not in (self._last, self.alphabet.blank):
                letters.append(index)
            self._last = index
        return self.alphabet.decode(letters)
