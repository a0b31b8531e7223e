"""Augmentation of training speech: speed, reverberation, noise and gain.

The augmented utterance is a function of (seed, epoch, utterance) alone, so it is the same with any number
of worker processes and after a resume.

Shapes: S samples.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torchaudio.functional as audio
from torch import Tensor

from blocksparse_rnn.data.audio import AUDIO_SUFFIXES, audio_seconds, load_audio
from blocksparse_rnn.data.checks import range_problem
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet, ctc_frames_needed

_TRIES = 5  # unreadable files of noise or rooms in a row after which speech is left unchanged


class Transform(Protocol):
    """One way to change a waveform."""

    def __call__(self, wave_S: Tensor, sample_rate: int, rng: np.random.Generator, fewest: int) -> Tensor:
        """The changed waveform, with at least `fewest` samples."""


class Speed:
    """Changes the speed of speech, and its pitch with it (Ko et al., "Audio augmentation", 2015).

    Args:
        factors: one of them is drawn; 1.1 is a tenth faster. Audio that would get too short for CTC to
            write its text keeps its speed.

    Raises:
        UserError: a factor is out of range.
    """

    def __init__(self, *, factors: list[float]) -> None:
        if not factors or not all(0.5 <= factor <= 2 for factor in factors):
            raise UserError(f"augment.speed.factors={factors}: give factors from 0.5 to 2")
        self.factors = factors

    def __call__(self, wave_S: Tensor, sample_rate: int, rng: np.random.Generator, fewest: int) -> Tensor:
        factor = self.factors[rng.integers(len(self.factors))]
        if factor == 1 or len(wave_S) / factor < fewest + 1:
            return wave_S
        # In whole percent: a ratio of rates with few common factors would need a filter for each sample.
        return audio.resample(wave_S, round(100 * factor), 100)


class Gain:
    """Changes the loudness of speech.

    Args:
        db: lowest and highest gain in dB.
    """

    def __init__(self, *, db: list[float]) -> None:
        self.db = _range("augment.gain.db", db, -60, 60)

    def __call__(self, wave_S: Tensor, sample_rate: int, rng: np.random.Generator, fewest: int) -> Tensor:
        return wave_S * float(10 ** (rng.uniform(*self.db) / 20))


class Noise:
    """Adds noise.

    Args:
        probability: share of utterances that get noise.
        snr_db: lowest and highest signal-to-noise ratio in dB.
        folder: of recordings of noise, at any depth; None generates noise, from white to brown.

    Raises:
        UserError: a value is out of range, or the folder has no audio.
    """

    def __init__(self, *, probability: float, snr_db: list[float], folder: str | None) -> None:
        self.probability = _probability("augment.noise.probability", probability)
        self.snr_db = _range("augment.noise.snr_db", snr_db, -20, 100)
        self.files = None if folder is None else _files("augment.noise.folder", folder)

    def __call__(self, wave_S: Tensor, sample_rate: int, rng: np.random.Generator, fewest: int) -> Tensor:
        if rng.random() >= self.probability:
            return wave_S
        snr_db = rng.uniform(*self.snr_db)
        noise_S = self._noise(len(wave_S), sample_rate, rng)
        if noise_S is None or not noise_S.any() or not wave_S.any():
            return wave_S
        return audio.add_noise(wave_S, noise_S, torch.tensor(snr_db, dtype=wave_S.dtype))

    def _noise(self, samples: int, sample_rate: int, rng: np.random.Generator) -> Tensor | None:
        if self.files is None:
            return _coloured_noise(samples, rng.uniform(0, 2), rng)
        noise_S = _read_any(self.files, sample_rate, rng, samples / sample_rate)
        if noise_S is None:
            return None
        if len(noise_S) > samples:
            return noise_S[:samples]
        start = int(rng.integers(len(noise_S)))
        return noise_S.repeat(2 + samples // len(noise_S))[start : start + samples]


def _coloured_noise(samples: int, slope: float, rng: np.random.Generator) -> Tensor:
    """Noise whose power falls with frequency to the power of `slope`: 0 is white, 1 pink, 2 brown."""
    white_S = torch.from_numpy(rng.standard_normal(_fast_length(samples), dtype=np.float32))
    spectrum_F = torch.fft.rfft(white_S)
    spectrum_F *= torch.arange(len(spectrum_F)).clamp_min(1) ** (-slope / 2)
    return torch.fft.irfft(spectrum_F, len(white_S))[:samples]


def _fast_length(samples: int) -> int:
    """The next length with small prime factors only, whose Fourier transform is fast."""
    step = 1 << max(0, samples.bit_length() - 4)
    return -(-samples // step) * step


class Reverberation:
    """Convolves speech with the impulse response of a room.

    Args:
        probability: share of utterances that get reverberation.
        seconds: shortest and longest reverberation time (to -60 dB) of generated rooms.
        folder: of impulse responses, at any depth; None generates them.

    Raises:
        UserError: a value is out of range, or the folder has no audio.
    """

    def __init__(self, *, probability: float, seconds: list[float], folder: str | None) -> None:
        self.probability = _probability("augment.reverberation.probability", probability)
        self.seconds = _range("augment.reverberation.seconds", seconds, 0.01, 10)
        self.files = None if folder is None else _files("augment.reverberation.folder", folder)

    def __call__(self, wave_S: Tensor, sample_rate: int, rng: np.random.Generator, fewest: int) -> Tensor:
        if rng.random() >= self.probability:
            return wave_S
        room_S = self._room(sample_rate, rng)
        if room_S is None or not room_S.any():
            return wave_S
        # The direct sound is the loudest; with it at the start, speech is not delayed.
        room_S = room_S[int(room_S.abs().argmax()) :]
        beyond = _fast_length(len(wave_S) + len(room_S)) - len(wave_S) - len(room_S) + 1
        echo_S = audio.fftconvolve(torch.nn.functional.pad(wave_S, (0, beyond)), room_S)[: len(wave_S)]
        return echo_S * (wave_S.norm() / echo_S.norm().clamp_min(1e-9))

    def _room(self, sample_rate: int, rng: np.random.Generator) -> Tensor | None:
        if self.files is not None:
            return _read_any(self.files, sample_rate, rng)
        seconds = rng.uniform(*self.seconds)
        t = np.arange(round(seconds * sample_rate)) / sample_rate
        tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / seconds)
        energy = rng.uniform(0.1, 1)  # of the echo, relative to the direct sound
        tail *= np.sqrt(energy / np.square(tail).sum())
        tail[0] = 1
        return torch.from_numpy(tail.astype(np.float32))


class Augmenter:
    """Applies transforms one after the other, each utterance with its own random numbers.

    Args:
        transforms: in the order of application.
        seed: of the random numbers.
        fewest_samples: samples that a recogniser needs for 0, 1, 2, ... output frames.
        alphabet: letters of the texts.
    """

    def __init__(
        self, transforms: Sequence[Transform], *, seed: int, fewest_samples: Sequence[int], alphabet: Alphabet
    ) -> None:
        self.transforms = transforms
        self.seed = seed
        self.fewest_samples = fewest_samples
        self.alphabet = alphabet

    def __call__(self, wave_S: Tensor, sample_rate: int, epoch: int, index: int, text: str) -> Tensor:
        """The utterance as training gets it in an epoch.

        Args:
            wave_S: the utterance.
            sample_rate: of the waveform.
            epoch: of training.
            index: of the utterance in its split.
            text: its reference transcript.
        """
        frames = ctc_frames_needed(self.alphabet.encode(text))
        rng = np.random.default_rng([self.seed, epoch, index])
        fewest = self.fewest_samples[frames] if frames < len(self.fewest_samples) else len(wave_S)
        for transform in self.transforms:
            wave_S = transform(wave_S, sample_rate, rng, fewest)
        return wave_S


def _range(name: str, values: list[float], lowest: float, highest: float) -> tuple[float, float]:
    if problem := range_problem(name, values, lowest, highest):
        raise UserError(problem)
    return values[0], values[1]


def _probability(name: str, value: float) -> float:
    if not 0 <= value <= 1:
        raise UserError(f"{name}={value:g}: must be from 0 to 1")
    return value


def _files(name: str, folder: str) -> list[Path]:
    files = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise UserError(f"{name}={folder}: no audio in it ({', '.join(AUDIO_SUFFIXES)}); null generates it")
    return files


def _read_any(
    files: list[Path], sample_rate: int, rng: np.random.Generator, seconds: float = np.inf
) -> Tensor | None:
    """One of the files, or a random part of it slightly longer than `seconds`; None after several failures."""
    for _ in range(_TRIES):
        path = files[rng.integers(len(files))]
        try:
            beyond = audio_seconds(path) - seconds - 0.1
            part = (rng.uniform(0, beyond), seconds + 0.1) if beyond > 0 else (None, None)
            wave_S = load_audio(path, sample_rate, *part)
        except UserError:
            continue
        if len(wave_S) and torch.isfinite(wave_S).all():
            return wave_S
    return None
