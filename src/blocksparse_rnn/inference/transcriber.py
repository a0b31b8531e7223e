"""Audio in, text out, with the recogniser of a run folder or of an exported file.

recogniser = Transcriber("gru.safetensors")
print(recogniser("speech.wav"))

Shapes: S samples, T frames, F features, V outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.inference.sources import Source
from blocksparse_rnn.inference.stream import LEAST_CHUNK, Stream, check_wave, delay, frames_of, obstacle
from blocksparse_rnn.runtime.bsr import check_native
from blocksparse_rnn.runtime.export_file import UNFIT, first_line, read_network
from blocksparse_rnn.runtime.network import Network
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.features import Features
from blocksparse_rnn.speech.greedy import GreedyDecoder

_BATCH_FILES = 16
_BATCH_SECONDS = 300.0
_LONG_SECONDS = 60.0
"""Longer utterances are streamed, where the recogniser can stream: memory stays bounded."""


@dataclass(frozen=True)
class Transcript:
    """The text of a source, or why there is none."""

    source: Source
    seconds: float = 0.0
    """Of audio."""
    text: str = ""
    problem: str | None = None
    """Why the source could not be read."""


def existing_model(model: str | Path) -> Path:
    """The path of a run folder or a file.

    Raises:
        UserError: there is neither.
    """
    if not Path(model).exists():
        raise UserError(f"{model}: neither a run folder nor an exported file; give one of them")
    return Path(model)


class Transcriber:
    """A trained recogniser.

    Args:
        model: a run folder, or a file that src/export.py has written.
        threads: of the native kernels; None for as many as torch uses.

    Raises:
        UserError: the model is neither, or can't be read; its parts don't fit each other; threads below 1.
    """

    def __init__(self, model: str | Path, threads: int | None = None) -> None:
        path = existing_model(model)
        self.threads = torch.get_num_threads() if threads is None else threads
        check_native(self.threads)
        loaded = _from_run(path) if path.is_dir() else _from_file(path)
        self.features, self.network, self.alphabet, self.decoder = loaded
        if self.features.size != self.network.features:
            raise UserError(
                f"{model}: its features have {self.features.size} values a frame and its network takes "
                f"{self.network.features}; export the run again"
            )
        if len(self.alphabet) != len(self.network.output_bias_V):
            raise UserError(
                f"{model}: {len(self.alphabet)} letters with the blank, and {len(self.network.output_bias_V)} "
                "outputs; export the run again"
            )

    def __call__(self, file: str | Path) -> str:
        """Text of an audio file of any sample rate and channel count.

        Raises:
            UserError: it can't be read.
        """
        return self.transcribe_waves([self._wave(Source(Path(file)))])[0]

    def transcribe(self, sources: Sequence[Source]) -> Iterator[Transcript]:
        """Transcripts in order, computed in batches; one that can't be read has a `problem` instead of a text."""
        for batch in _batches(self._load(sources)):
            texts = iter(self.transcribe_waves([wave for _, wave in batch if wave is not None]))
            for transcript, wave in batch:
                yield transcript if wave is None else replace(transcript, text=next(texts))

    def transcribe_waves(self, waves: Sequence[Tensor]) -> list[str]:
        """Texts of waveforms (S,) in [-1, 1], sampled at `features.sample_rate`.

        Raises:
            UserError: one is not a row of floats.
        """
        for wave_S in waves:
            check_wave(wave_S)
        texts, together = [""] * len(waves), []
        for i, wave_S in enumerate(waves):
            longest = round(_LONG_SECONDS * self.features.sample_rate)
            if len(wave_S) > longest and self.cannot_stream is None:
                stream = self.stream()
                texts[i] = "".join([*map(stream.feed, wave_S.split(longest)), stream.end()])
            elif self.features.frames(len(wave_S)):  # shorter than a window, its text is empty
                together.append(i)
        if together:
            logits = self.network([self._features(waves[i]) for i in together], self.threads)
            for i, logits_TV in zip(together, logits, strict=True):
                texts[i] = self.decoder(logits_TV[None], [len(logits_TV)], self.alphabet)[0]
        return texts

    def stream(self, chunk: int = LEAST_CHUNK) -> Stream:
        """A recording that comes in pieces.

        Args:
            chunk: frames of logits that are computed together.

        Raises:
            UserError: this recogniser can't stream, or the chunk is too small.
        """
        if self.cannot_stream is not None:
            raise UserError(self.cannot_stream)
        if chunk < LEAST_CHUNK:
            raise UserError(f"chunk={chunk}: must be at least {LEAST_CHUNK} frames")
        return Stream(self.features, self.network, self.alphabet, chunk, self.threads)

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent so far in each part, from samples to logits."""
        return self.network.seconds

    @property
    def cannot_stream(self) -> str | None:
        """Why this recogniser needs the whole utterance; None if it can stream."""
        return obstacle(self.features, self.network, self.decoder)

    def delay(self, chunk: int) -> float:
        """Longest wait of a stream, in seconds of audio, from a sound to its text."""
        return delay(self.features, self.network, chunk)

    def _load(self, sources: Sequence[Source]) -> Iterator[tuple[Transcript, Tensor | None]]:
        for source in sources:
            try:
                wave_S = self._wave(source)
                yield Transcript(source, len(wave_S) / self.features.sample_rate), wave_S
            except UserError as error:
                yield Transcript(source, problem=str(error)), None

    def _wave(self, source: Source) -> Tensor:
        wave_S = load_audio(source.audio, self.features.sample_rate, source.offset, source.duration)
        if not bool(wave_S.isfinite().all()):
            raise UserError(f"{source}: has samples that are NaN or infinite; give another file")
        return wave_S

    def _features(self, wave_S: Tensor) -> Tensor:
        return frames_of(wave_S, self.features, self.network)


def _batches(
    loaded: Iterator[tuple[Transcript, Tensor | None]],
) -> Iterator[list[tuple[Transcript, Tensor | None]]]:
    """Groups of recordings, bounded in number and in seconds of audio."""
    batch: list[tuple[Transcript, Tensor | None]] = []
    for transcript, wave in loaded:
        seconds = sum(t.seconds for t, _ in batch) + transcript.seconds
        if batch and (len(batch) == _BATCH_FILES or seconds > _BATCH_SECONDS):
            yield batch
            batch = []
        batch.append((transcript, wave))
    if batch:
        yield batch


class _Loaded(NamedTuple):
    features: Features
    network: Network
    alphabet: Alphabet
    decoder: Callable[[Tensor, list[int], Alphabet], list[str]]


def _from_file(path: Path) -> _Loaded:
    export = read_network(path)
    try:
        features = Features(**export.about["features"]).eval()
        features.mean_F.copy_(export.tensors["features.mean"])
        features.std_F.copy_(export.tensors["features.std"])
        return _Loaded(features, export.network, Alphabet(export.about["alphabet"]), GreedyDecoder())
    except UNFIT as error:
        raise UserError(
            f"{path}: its features or alphabet don't fit: {first_line(error)}; export the run again"
        ) from None


def _from_run(path: Path) -> _Loaded:
    # Imported here: an exported file is read without Lightning and Hydra.
    from blocksparse_rnn.inference.export import load_run, run_network

    settings, recogniser = load_run(path)
    network = run_network(settings, recogniser)
    return _Loaded(recogniser.features, network, recogniser.alphabet, recogniser.decoder)
