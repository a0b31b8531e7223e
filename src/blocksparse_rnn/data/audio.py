"""Reading audio files into waveforms."""

from pathlib import Path

import soundfile
import torch
import torchaudio.functional as audio
from torch import Tensor

from blocksparse_rnn.errors import UserError


def load_audio(path: Path, sample_rate: int) -> Tensor:
    """Read a file as one waveform (S,) in [-1, 1]: channels averaged, resampled to `sample_rate`.

    Raises:
        UserError: the file is missing or is no audio.
    """
    try:
        wave_SC, file_rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (OSError, soundfile.LibsndfileError) as error:
        raise UserError(f"cannot read audio from {path}: {error}") from None
    wave_S = torch.from_numpy(wave_SC).mean(dim=1)
    return wave_S if file_rate == sample_rate else audio.resample(wave_S, file_rate, sample_rate)
