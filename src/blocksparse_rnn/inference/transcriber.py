"""Audio in, text out, with the recogniser of a run folder or of an exported file.

recogniser = Transcriber("gru.safetensors")
print(recogniser("speech.wav"))
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from blocksparse_rnn.data.audio import AUDIO_SUFFIXES, load_audio
from blocksparse_rnn.data.manifest import Utterance, read_manifest
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runtime.bsr import check_native
from blocksparse_rnn.runtime.export_file import UNFIT, first_line, read_network
from blocksparse_rnn.runtime.network import Network, NetworkStream
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.features import Features
from blocksparse_rnn.speech.greedy import GreedyDecoder

LEAST_CHUNK = 8
"""Frames of logits that a stream computes at once at least: with fewer, weights leave the cache in between."""
_BATCH_FILES = 16
_BATCH_SECONDS = 300.0
_LONG_SECONDS = 60.0
"""Utterances from here on go through in pieces, where the network looks back only."""


@dataclass(frozen=True)
class Source:
    """A recording, or a part of one, to transcribe, and what is said in it where that is known."""

    audio: Path
    text: str | None = None
    offset: float | None = None
    """Second at which the part begins; None for the whole."""
    duration: float | None = None

    @classmethod
    def of(cls, utterance: Utterance) -> "Source":
        """What an utterance of a corpus is heard from."""
        duration = None if utterance.offset is None else utterance.duration
        return cls(utterance.audio, utterance.text, utterance.offset, duration)

    def __str__(self) -> str:
        return str(self.audio) if self.offset is None else f"{self.audio} from {self.offset:g} s"


@dataclass(frozen=True)
class Heard:
    """What became of a recording."""

    source: Source
    seconds: float = 0.0
    text: str = ""
    problem: str | None = None
    """Why there is no text."""


def find_sources(paths: Iterable[Path]) -> list[Source]:
    """Recordings named by audio files, folders of them, and manifests (.jsonl).

    Raises:
        UserError: a path doesn't exist, or there is no audio at all.
    """
    paths = list(paths)
    sources: list[Source] = []
    for path in paths:
        if path.suffix == ".jsonl":
            sources += map(Source.of, read_manifest(path))
        elif path.is_dir():
            sources += [Source(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES]
        elif path.is_file():
            sources.append(Source(path))
        elif path.exists():
            raise UserError(
                f"{path}: neither a file nor a folder; save what it brings as a file, or see --stream"
            )
        else:
            raise UserError(f"{path}: no such file or folder")
    if not sources:
        raise UserError(
            f"no audio in {', '.join(map(str, paths))}; give files or folders of {', '.join(AUDIO_SUFFIXES)}"
        )
    return sources


def corpus_split(run_path: str | Path, split: str) -> list[Utterance]:
    """Utterances of one split of the corpus that a run was trained on; those that have a file of their own.

    Raises:
        UserError: no run folder, or none has a file of its own.
    """
    if Path(run_path).is_file():
        raise UserError(f"{run_path}: an exported file knows no corpus; give its run folder, or audio files")
    from blocksparse_rnn.config.schema import read_settings
    from blocksparse_rnn.runs.folder import RunFolder

    utterances = read_settings(RunFolder.existing(run_path)).data.build().prepare()[split]
    files = [u for u in utterances if u.problem is None and u.place is None and u.offset is None]
    if not files:
        raise UserError(f"{run_path}: {split} has no files of single utterances; name audio files instead")
    return files


def existing_model(model: str | Path) -> Path:
    """The path of a run folder or a file; raises UserError where there is neither."""
    if not Path(model).exists():
        raise UserError(f"{model}: neither a run folder nor an exported file; give one of them")
    return Path(model)


class Transcriber:
    """A trained recogniser, ready to listen.

    Args:
        model: a run folder, or a file that src/export.py has written.
        threads: of the native kernels; None for as many as torch uses.

    Raises:
        UserError: neither, one that can't be read, or features that the network doesn't take; no threads.
    """

    def __init__(self, model: str | Path, threads: int | None = None) -> None:
        path = existing_model(model)
        self.threads = torch.get_num_threads() if threads is None else threads
        check_native(self.threads)
        loaded = _from_run(path) if path.is_dir() else _from_file(path)
        self.features, self.network, self.alphabet, self.decoder = loaded
        self.audio_seconds = 0.0
        """Heard so far."""
        self._feature_seconds = 0.0
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
        return self.hear([self._wave(Source(Path(file)))])[0]

    def transcribe(self, sources: Sequence[Source]) -> Iterator[Heard]:
        """All of them in order, several at a time; one that can't be read has a `problem` instead of a text."""
        for batch in _batches(self._load(sources)):
            texts = iter(self.hear([wave for _, wave in batch if wave is not None]))
            for heard, wave in batch:
                yield heard if wave is None else Heard(heard.source, heard.seconds, next(texts))

    def hear(self, waves: Sequence[Tensor]) -> list[str]:
        """Texts of waveforms (S,) in [-1, 1], sampled at `features.sample_rate`.

        Raises:
            UserError: one is of another shape, or of whole numbers.
        """
        for wave_S in waves:
            _check_wave(wave_S)
        texts = [""] * len(waves)
        together = []
        for i, wave_S in enumerate(waves):
            seconds = len(wave_S) / self.features.sample_rate
            if self.features.frames(len(wave_S)) == 0:
                continue  # less than one window says nothing
            if seconds > _LONG_SECONDS and self.cannot_stream is None:
                stream = Stream(self, LEAST_CHUNK)
                pieces = wave_S.split(round(_LONG_SECONDS * self.features.sample_rate))
                texts[i] = "".join([*map(stream.feed, pieces), stream.end()])
            else:
                together.append(i)
                self.audio_seconds += seconds
        if together:
            logits = self.network([self._features(waves[i]) for i in together], self.threads)
            for i, logits_TV in zip(together, logits, strict=True):
                texts[i] = self.decoder(logits_TV[None], [len(logits_TV)], self.alphabet)[0]
        return texts

    def stream(self, chunk: int = LEAST_CHUNK) -> "Stream":
        """A recording that comes in pieces.

        Args:
            chunk: frames of output that are computed together.

        Raises:
            UserError: this recogniser can't, or the chunk is too small.
        """
        if self.cannot_stream is not None:
            raise UserError(self.cannot_stream)
        if chunk < LEAST_CHUNK:
            raise UserError(f"chunk={chunk}: must be at least {LEAST_CHUNK} frames")
        return Stream(self, chunk)

    @property
    def seconds(self) -> dict[str, float]:
        """Time spent so far in each part, from samples to logits."""
        return {"features": self._feature_seconds, **self.network.seconds}

    @property
    def cannot_stream(self) -> str | None:
        """Why this recogniser has to hear an utterance to its end first, if it does."""
        if self.network.cell != "gru":
            return "an rnn hears an utterance from both ends and cannot stream; use a gru, or give it files"
        if self.features.normalisation == "utterance":
            return (
                "features.normalisation=utterance needs the whole utterance and cannot stream; train with "
                "features.normalisation=corpus, or give it files"
            )
        if self.features.hop_length > self.features.n_fft:
            return "features.hop is longer than a window, and a stream would lose its place; give it files"
        if not isinstance(self.decoder, GreedyDecoder):
            return (
                "a beam search looks back over the whole utterance; export the run: its file decodes greedily"
            )
        return None

    @property
    def frame_seconds(self) -> float:
        """From one frame of output to the next."""
        return self.features.hop_length * self.network.time_stride / self.features.sample_rate

    def delay(self, chunk: int) -> float:
        """Seconds of audio after a sound that a stream waits for at most before it can write it."""
        window = (self.features.n_fft - self.features.hop_length) / self.features.sample_rate
        future = self.network.future * self.features.hop_length / self.features.sample_rate
        return chunk * self.frame_seconds + future + window

    def _load(self, sources: Sequence[Source]) -> Iterator[tuple[Heard, Tensor | None]]:
        for source in sources:
            try:
                wave_S = self._wave(source)
                yield Heard(source, len(wave_S) / self.features.sample_rate), wave_S
            except UserError as error:
                yield Heard(source, problem=str(error)), None

    def _wave(self, source: Source) -> Tensor:
        wave_S = load_audio(source.audio, self.features.sample_rate, source.offset, source.duration)
        if not bool(wave_S.isfinite().all()):
            raise UserError(f"{source}: holds samples that are no numbers")
        return wave_S

    @torch.inference_mode()
    def _features(self, wave_S: Tensor) -> Tensor:
        with self._timed():
            return self.features(wave_S[None], [len(wave_S)])[0][0]

    @contextmanager
    def _timed(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._feature_seconds += time.perf_counter() - start


class Stream:
    """One recording in pieces of any size: what each piece adds to the text, in bounded memory.

    Greedy decoding never takes a letter back, so the pieces of text together are the text.

    Args:
        transcriber: of a recogniser that can stream.
        chunk: frames of output that are computed together.
    """

    def __init__(self, transcriber: Transcriber, chunk: int) -> None:
        self.transcriber = transcriber
        self._network = NetworkStream(transcriber.network, chunk, transcriber.threads)
        self._wave_S = torch.empty(0)
        self._last = transcriber.alphabet.blank

    def feed(self, wave_S: Tensor) -> str:
        """The text that the next samples, in [-1, 1], bring with them.

        Raises:
            UserError: they are no row of floats.
        """
        _check_wave(wave_S)
        return self._feed(wave_S, end=False)

    def end(self) -> str:
        """The rest of the text. Samples that don't fill a window are nothing, as in a file."""
        return self._feed(torch.empty(0), end=True)

    def _feed(self, wave_S: Tensor, end: bool) -> str:
        transcriber, features = self.transcriber, self.transcriber.features
        transcriber.audio_seconds += len(wave_S) / features.sample_rate
        self._wave_S = torch.cat([self._wave_S, wave_S])
        frames = features.frames(len(self._wave_S))
        feature_TF = torch.empty(0, features.size)
        if frames:
            feature_TF = transcriber._features(self._wave_S)
            self._wave_S = self._wave_S[frames * features.hop_length :].clone()
        return self._write(self._network.feed(feature_TF, end))

    def _write(self, logits_TV: Tensor) -> str:
        """Best path: repeats are written once, also where the first lies in an earlier piece."""
        alphabet, letters = self.transcriber.alphabet, []
        for index in logits_TV.argmax(1).tolist():
            if index not in (self._last, alphabet.blank):
                letters.append(index)
            self._last = index
        return alphabet.decode(letters)


def _check_wave(wave_S: Tensor) -> None:
    if wave_S.ndim != 1 or not wave_S.is_floating_point():
        raise UserError(
            f"a waveform is one row of floats in [-1, 1], not {tuple(wave_S.shape)} of {wave_S.dtype}"
        )


def _batches(
    loaded: Iterator[tuple[Heard, Tensor | None]],
) -> Iterator[list[tuple[Heard, Tensor | None]]]:
    """Recordings that go through together: a few, and not too much audio."""
    batch: list[tuple[Heard, Tensor | None]] = []
    for heard, wave in loaded:
        seconds = sum(h.seconds for h, _ in batch) + heard.seconds
        if batch and (len(batch) == _BATCH_FILES or seconds > _BATCH_SECONDS):
            yield batch
            batch = []
        batch.append((heard, wave))
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
    # Imported here: it takes Lightning and Hydra to read a run, and neither to read an export.
    from blocksparse_rnn.inference.export import load_run, run_network

    settings, recogniser = load_run(path)
    network = run_network(settings, recogniser)
    return _Loaded(recogniser.features, network, recogniser.alphabet, recogniser.decoder)
