"""Reading audio files into waveforms."""

from pathlib import Path
from typing import IO

import soundfile
import torch
import torchaudio.functional as audio
from torch import Tensor

from blocksparse_rnn.errors import UserError

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def load_audio(
    source: Path | IO[bytes], sample_rate: int, offset: float | None = None, duration: float | None = None
) -> Tensor:
    """Read a file, or a part of it, as one waveform (S,) in [-1, 1]: channels averaged, resampled.

    Args:
        source: a file, or the bytes of one.
        sample_rate: of the waveform, whatever the file has.
        offset: second at which the part begins; None for the whole file.
        duration: seconds of the part, where there is an offset.

    Raises:
        UserError: the file is missing or is no audio.
    """
    try:
        with soundfile.SoundFile(source) as file:
            frames = -1
            if offset is not None and duration is not None:
                file.seek(round(offset * file.samplerate))
                frames = round(duration * file.samplerate)
            wave_SC = file.read(frames, dtype="float32", always_2d=True)
            file_rate = file.samplerate
    except (OSError, soundfile.LibsndfileError) as error:
        name = source if isinstance(source, Path) else source.name
        raise UserError(f"cannot read audio from {name}: {error}") from None
    wave_S = torch.from_numpy(wave_SC).mean(dim=1)
    return wave_S if file_rate == sample_rate else audio.resample(wave_S, file_rate, sample_rate)
