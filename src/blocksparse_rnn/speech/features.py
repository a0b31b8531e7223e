"""From waveform to normalised log spectrogram.

Shapes: B batch, S samples, T frames, F features.
"""

from collections.abc import Iterable
from typing import Annotated, Literal, NotRequired

import torch
import torchaudio.transforms as transforms
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, with_config
from torch import Tensor, nn
from typing_extensions import TypedDict

from blocksparse_rnn.errors import UserError

LOG_FLOOR = 1e-6
"""Added to power before the logarithm, so that digital silence stays finite."""


@with_config(ConfigDict(extra="forbid"))
class SpecAugmentSettings(TypedDict):
    """Masks of `torchaudio.transforms.SpecAugment` (Park et al., "SpecAugment", 2019)."""

    n_time_masks: NonNegativeInt
    time_mask_param: NonNegativeInt
    """Longest mask, in frames."""
    n_freq_masks: NonNegativeInt
    freq_mask_param: NonNegativeInt
    """Widest mask, in bins."""
    p: NotRequired[Annotated[float, Field(ge=0, le=1)]]
    """Longest mask as a share of the utterance."""


class Features(nn.Module):
    """Log spectrogram: linear bins as in the paper, or mel bins.

    A frame depends on its own window alone (no centring, no padding), so it is the same alone, in a batch
    and in a stream.

    Args:
        kind: `linear` keeps the n_fft // 2 + 1 bins; `logmel` sums them into `mel_bins` bands.
        sample_rate: samples per second of the waveforms.
        window: length of a window in seconds.
        hop: seconds from one window to the next.
        n_fft: points of the Fourier transform, at least a window; None means exactly a window.
        mel_bins: bands of `logmel`; unused by `linear`.
        normalisation: `corpus` uses mean and standard deviation of the training corpus, stored with
            the model; `utterance` uses those of each utterance.
        specaugment: SpecAugment in training; None for none.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        *,
        kind: Literal["linear", "logmel"],
        sample_rate: PositiveInt,
        window: PositiveFloat,
        hop: PositiveFloat,
        n_fft: PositiveInt | None,
        mel_bins: PositiveInt,
        normalisation: Literal["corpus", "utterance"],
        specaugment: SpecAugmentSettings | None,
    ) -> None:
        super().__init__()
        self.sample_rate = sample_rate
        self.hop_seconds = hop
        self.normalisation = normalisation
        win_length, self.hop_length = round(window * sample_rate), round(hop * sample_rate)
        self.n_fft = n_fft or win_length
        if win_length < 1:
            raise UserError(f"features.window={window}: must be at least one sample long")
        if self.n_fft < win_length:
            raise UserError(f"features.n_fft={n_fft}: must be at least a window of {win_length} samples")
        if self.hop_length < 1:
            raise UserError(f"features.hop={hop}: must be at least one sample long")
        self.spectrogram = transforms.Spectrogram(
            n_fft=self.n_fft, win_length=win_length, hop_length=self.hop_length, center=False
        )
        self.mel = (
            transforms.MelScale(mel_bins, sample_rate, n_stft=self.n_fft // 2 + 1)
            if kind == "logmel"
            else nn.Identity()
        )
        # Masked with 0, which is the mean of normalised features.
        self.specaugment = transforms.SpecAugment(**specaugment, zero_masking=True) if specaugment else None
        self.size = mel_bins if kind == "logmel" else self.n_fft // 2 + 1
        self.register_buffer("mean_F", torch.zeros(self.size))
        self.register_buffer("std_F", torch.ones(self.size))
        self.mean_F: Tensor
        self.std_F: Tensor

    def frames(self, samples: int) -> int:
        """Number of frames of `samples` samples; 0 for less than a window."""
        return max(0, (samples - self.n_fft) // self.hop_length + 1)

    def log_spectrogram(self, wave_BS: Tensor) -> Tensor:
        """Log spectrogram before normalisation: (B, S) -> (B, T, F)."""
        power_BFT = self.mel(self.spectrogram(wave_BS))
        return (power_BFT + LOG_FLOOR).log().transpose(1, 2)

    def forward(self, wave_BS: Tensor, samples: list[int]) -> tuple[Tensor, list[int]]:
        """Normalised features, zero beyond each utterance's end.

        Args:
            wave_BS: waveforms in [-1, 1], padded at the end.
            samples: valid samples of each.

        Returns:
            feature_BTF and the valid frames of each utterance.
        """
        # Spectra are computed in float32 even under autocast: bf16 has no Fourier transform.
        with torch.autocast(wave_BS.device.type, enabled=False):
            feature_BTF = self.log_spectrogram(wave_BS.float())
        frames = [self.frames(n) for n in samples]
        valid_BT1 = valid_mask(frames, feature_BTF.shape[1], wave_BS.device).unsqueeze(-1)
        if self.normalisation == "corpus":
            feature_BTF = (feature_BTF - self.mean_F) / self.std_F
        else:
            feature_BTF = _normalise_each(feature_BTF, valid_BT1)
        if self.specaugment is not None and self.training:
            feature_BTF = self.specaugment(feature_BTF.transpose(1, 2)).transpose(1, 2)
        return feature_BTF * valid_BT1, frames

    @torch.no_grad()
    def fit(self, batches: Iterable[tuple[Tensor, list[int]]]) -> None:
        """Measure mean and standard deviation of every bin over the valid frames of `batches`.

        Args:
            batches: pairs of wave_BS and the valid samples of each.
        """
        count, total_F = 0, torch.zeros_like(self.mean_F).double()
        squares_F = torch.zeros_like(total_F)
        for wave_BS, samples in batches:
            frames = [self.frames(n) for n in samples]
            feature_BTF = self.log_spectrogram(wave_BS.to(self.mean_F)).double()
            valid_NF = feature_BTF[valid_mask(frames, feature_BTF.shape[1], feature_BTF.device)]
            count += len(valid_NF)
            total_F += valid_NF.sum(0)
            squares_F += valid_NF.square().sum(0)
        mean_F = total_F / count
        self.mean_F.copy_(mean_F)
        self.std_F.copy_((squares_F / count - mean_F.square()).clamp_min(1e-8).sqrt())


def valid_mask(lengths: list[int], size: int, device: torch.device) -> Tensor:
    """Mask (B, size), true where a position lies within its row's length."""
    return torch.arange(size, device=device) < torch.tensor(lengths, device=device).unsqueeze(1)


def _normalise_each(feature_BTF: Tensor, valid_BT1: Tensor) -> Tensor:
    count_B11 = valid_BT1.sum(1, keepdim=True).clamp_min(1)
    mean_B1F = (feature_BTF * valid_BT1).sum(1, keepdim=True) / count_B11
    centred_BTF = (feature_BTF - mean_B1F) * valid_BT1
    variance_B1F = centred_BTF.square().sum(1, keepdim=True) / count_B11
    return centred_BTF * (variance_B1F + 1e-8).rsqrt()
