"""The speech recogniser as Lightning trains it: features, model, CTC loss, error rates.

Shapes: B batch, S samples, T frames, V outputs.
"""

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from blocksparse_rnn import distributed
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.data.datamodule import Batch
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.features import Features
from blocksparse_rnn.speech.metrics import ErrorCounts


class Recogniser(pl.LightningModule):
    """Waveforms in, text out; trained by CTC.

    It owns its features and their statistics, so its weights and settings are all that
    transcription needs.

    Args:
        features: waveform -> features.
        model: features -> logits, with the blank as last output.
        alphabet: letters of the logits.
        decoder: logits -> texts.
        make_optimizer: (parameters, total steps, steps per epoch) -> what Lightning's
            `configure_optimizers` may return.
    """

    def __init__(
        self,
        features: Features,
        model: nn.Module,
        alphabet: Alphabet,
        decoder: Callable[[Tensor, list[int], Alphabet], list[str]],
        make_optimizer: Callable[[Any, int, int], Any] | None = None,
    ) -> None:
        super().__init__()
        self.features = features
        self.model = model
        self.alphabet = alphabet
        self.decoder = decoder
        self.make_optimizer = make_optimizer
        self.penalties: list[tuple[str, Callable[[], Tensor]]] = []
        """Regularisers: named functions whose values are added to the loss of every step."""
        self._counts = ErrorCounts()
        self._losses: list[tuple[Tensor, int]] = []
        """Of each batch: the sum of its utterances' losses, and their number."""

    def forward(self, wave_BS: Tensor, samples: list[int]) -> tuple[Tensor, list[int]]:
        """Logits (B, T, V) and the valid frames of each utterance."""
        feature_BTF, frames = self.features(wave_BS, samples)
        return self.model(feature_BTF, frames)

    def output_frames(self, samples: int) -> int:
        """Frames of logits that `samples` samples give."""
        return self.model.frames(self.features.frames(samples))  # type: ignore[operator]

    def fewest_samples(self, seconds: float) -> list[int]:
        """Samples that 0, 1, 2, ... frames of logits take at least, as far as `seconds` of speech go."""
        hop, samples, fewest = self.features.hop_length, 0, [0]
        while samples <= seconds * self.features.sample_rate:
            samples = self.features.n_fft if samples == 0 else samples + hop
            frames = self.output_frames(samples)
            fewest += [samples] * (frames + 1 - len(fewest))
        return fewest

    def transcribe(self, wave_BS: Tensor, samples: list[int]) -> list[str]:
        """Texts of a padded batch; every utterance at least one window long."""
        logits_BTV, frames = self(wave_BS, samples)
        return self.decoder(logits_BTV, frames, self.alphabet)

    def ctc_loss(self, logits_BTV: Tensor, frames: list[int], batch: Batch) -> Tensor:
        """Negative log likelihood of the texts, in nats, summed over the batch (Graves et al., 2006)."""
        # In float32 under autocast too: there is no CTC loss in bf16.
        log_probs_TBV = logits_BTV.float().log_softmax(dim=-1).transpose(0, 1)
        return functional.ctc_loss(
            log_probs_TBV,
            batch.targets,
            torch.tensor(frames),
            torch.tensor(batch.target_lengths),
            blank=self.alphabet.blank,
            reduction="sum",
        )

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        with distributed.counting(batch.counts):
            logits_BTV, frames = self(batch.wave_BS, batch.samples)
        total = self.ctc_loss(logits_BTV, frames, batch) * batch.counts
        # The mean over the global batch: ranks have different numbers of utterances, and DDP takes the
        # mean of what each returns.
        sums = torch.stack([total.detach(), total.new_tensor(len(frames) * batch.counts)])
        all_total, utterances = distributed.sum_all(sums)
        loss = total / (utterances / distributed.world())
        logged = {"train/ctc_loss": all_total / utterances}
        penalties = total.new_zeros(())
        for name, penalty in self.penalties:
            value = penalty()
            logged[f"train/{name}"] = value.detach()
            penalties = penalties + value
        logged["train/loss"] = logged["train/ctc_loss"] + penalties.detach()
        self.log_dict(logged, batch_size=len(frames))
        return loss + penalties

    def on_validation_epoch_start(self) -> None:
        self._counts, self._losses = ErrorCounts(), []

    def validation_step(self, batch: Batch, batch_index: int) -> None:
        self._count_errors(batch)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self._rates("val"))

    def on_test_epoch_start(self) -> None:
        self._counts, self._losses = ErrorCounts(), []

    def test_step(self, batch: Batch, batch_index: int) -> None:
        self._count_errors(batch)

    def on_test_epoch_end(self) -> None:
        self.log_dict(self._rates("test"))

    def configure_optimizers(self) -> Any:
        assert self.make_optimizer is not None
        total_steps = int(self.trainer.estimated_stepping_batches)
        return self.make_optimizer(self.parameters(), total_steps, int(self.trainer.num_training_batches))

    def _count_errors(self, batch: Batch) -> None:
        if not batch.texts:  # no file of it could be read
            return
        logits_BTV, frames = self(batch.wave_BS, batch.samples)
        if not batch.counts:
            return
        self._losses += [(self.ctc_loss(logits_BTV, frames, batch), len(frames))]
        hypotheses = self.decoder(logits_BTV, frames, self.alphabet)
        for text, hypothesis in zip(batch.texts, hypotheses, strict=True):
            self._counts.add(text, hypothesis)

    def _rates(self, stage: str) -> dict[str, float]:
        """Loss and error rates of a split, summed over the shares of all ranks."""
        total = torch.stack([loss for loss, _ in self._losses]).double().sum() if self._losses else 0.0
        share = [
            float(total),
            sum(utterances for _, utterances in self._losses),
            *vars(self._counts).values(),
        ]
        loss, utterances, *counts = distributed.sum_all(
            torch.tensor(share, device=self.device, dtype=torch.double)
        ).tolist()
        if not utterances:
            raise UserError(
                f"no utterance of the {stage} split could be read; the run's rejects.jsonl says why"
            )
        errors = ErrorCounts(*map(int, counts))
        return {f"{stage}/loss": loss / utterances, f"{stage}/cer": errors.cer, f"{stage}/wer": errors.wer}


def build_recogniser(settings: Settings) -> Recogniser:
    """The recogniser of these settings, with randomly initialised weights."""
    alphabet = Alphabet(settings.alphabet)
    features = settings.features.build()
    model = settings.model.build(features.size, len(alphabet))
    return Recogniser(features, model, alphabet, settings.decoder.build(), settings.optimizer.build)
