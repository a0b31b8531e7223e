"""Reading audio files into waveforms.

Shapes: S samples, C channels.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
import torch
import torchaudio.functional as audio
from torch import Tensor

from blocksparse_rnn.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au")
NO_LENGTH = "its header lacks its length; encode it to a file, not to a pipe"
"""Why a FLAC without a length cannot be used: decoders cannot tell its end from a truncation."""
_MOST_PHASES = 1000
"""Most filters of a polyphase resampler, one for each phase of the two rates; more would take gigabytes."""


def open_audio(source: Path | IO[bytes]) -> soundfile.SoundFile:
    """Open a file, or the bytes of one.

    Raises:
        soundfile.LibsndfileError: it cannot be opened or is no audio.
        ValueError: its name is not a valid path, or it is raw audio.
    """
    try:
        # As bytes, since file names need not be UTF-8.
        return soundfile.SoundFile(os.fsencode(source) if isinstance(source, Path) else source)
    except TypeError:  # soundfile goes by the suffix
        raise ValueError("raw audio lacks a header with its rate and format") from None


def lacks_length(file: soundfile.SoundFile) -> bool:
    """Whether a FLAC has no length in its header."""
    return file.frames == 2**63 - 1


@contextmanager
def _opened(source: Path | IO[bytes]) -> Iterator[soundfile.SoundFile]:
    """A file of known length; errors in opening and reading it become a UserError."""
    try:
        with open_audio(source) as file:
            if lacks_length(file):
                raise ValueError(NO_LENGTH)
            yield file
    except (OSError, ValueError, soundfile.LibsndfileError) as error:
        reason = error.error_string if isinstance(error, soundfile.LibsndfileError) else error
        name = source if isinstance(source, Path) else source.name
        raise UserError(f"cannot read audio from {name}: {reason}") from None


def audio_seconds(path: Path) -> float:
    """Duration according to the header of a file; raises UserError where it is missing or is no audio."""
    with _opened(path) as file:
        return file.frames / file.samplerate


def read_samples(
    source: Path | IO[bytes], offset: float | None = None, duration: float | None = None
) -> tuple[np.ndarray, int]:
    """Samples (S, C) of a file, or of a part of it, and their rate; integer formats are scaled to [-1, 1].

    Args:
        source: a file, or the bytes of one.
        offset: start of the part in seconds; None for the whole file.
        duration: of the part in seconds, if there is an offset.

    Raises:
        UserError: the file is missing or is no audio.
    """
    with _opened(source) as file:
        start, end = 0, file.frames
        if offset is not None and duration is not None:
            start = round(offset * file.samplerate)
            end = start + round(duration * file.samplerate)
        skipped = 0
        if file.seekable():
            file.seek(start)
            skipped = start
        # Formats that cannot seek, such as GSM 6.10, are decoded from the beginning.
        wave_SC = file.read(end - skipped, dtype="float32", always_2d=True)[start - skipped :]
        return wave_SC, file.samplerate


def load_audio(
    source: Path | IO[bytes], sample_rate: int, offset: float | None = None, duration: float | None = None
) -> Tensor:
    """Read a file, or a part of it, as one waveform (S,) in [-1, 1]: channels averaged, resampled.

    Args:
        source: a file, or the bytes of one.
        sample_rate: of the waveform; the file is resampled to it.
        offset: start of the part in seconds; None for the whole file.
        duration: of the part in seconds, if there is an offset.

    Raises:
        UserError: the file is missing or is no audio.
    """
    wave_SC, file_rate = read_samples(source, offset, duration)
    wave_S = torch.from_numpy(wave_SC).mean(dim=1)
    if file_rate == sample_rate or not len(wave_S):
        return wave_S
    if file_rate // math.gcd(file_rate, sample_rate) > _MOST_PHASES:
        return _resample_whole(wave_S, -(-len(wave_S) * sample_rate // file_rate))
    return audio.resample(wave_S, file_rate, sample_rate)


def _resample_whole(wave_S: Tensor, samples: int) -> Tensor:
    """The waveform resampled to another number of samples, by one Fourier transform over all of it."""
    # In float64: for lengths with a large prime factor float32 is off by 1e-5 on some processors.
    spectrum_F = torch.fft.rfft(wave_S.double())[: samples // 2 + 1]
    return (torch.fft.irfft(spectrum_F, samples) * (samples / len(wave_S))).to(wave_S.dtype)
