"""Utterances on disk -> batches of waveforms, for Lightning.

Shapes: B batch, S samples.
"""

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Subset

from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.data.manifest import Utterance
from blocksparse_rnn.data.sampler import BucketBatchSampler
from blocksparse_rnn.text import Alphabet


@dataclass
class Batch:
    """Some utterances, ready for a recogniser. Lengths are plain numbers: the CPU plans with them."""

    wave_BS: Tensor
    samples: list[int]
    targets: Tensor
    """Letters of all utterances, one text after the other."""
    target_lengths: list[int]
    texts: list[str]
    files: list[str]
    counts: bool = True
    """False for the stand-in of a rank that has no utterance of a small global batch."""


Item = tuple[Tensor, Utterance, bool]
"""Waveform, utterance, and whether it counts."""


class SpeechDataset(Dataset[Item]):
    """Waveform and utterance by index; `~index` is the same as a stand-in (see the sampler)."""

    def __init__(self, utterances: list[Utterance], sample_rate: int) -> None:
        self.utterances = utterances
        self.sample_rate = sample_rate

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, index: int) -> Item:
        utterance = self.utterances[index if index >= 0 else ~index]
        return load_audio(utterance.audio, self.sample_rate), utterance, index >= 0


class Collate:
    """Pad some utterances into a batch."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet

    def __call__(self, items: list[Item]) -> Batch:
        waves = [wave for wave, *_ in items]
        texts = [utterance.text for _, utterance, _ in items]
        targets = [torch.tensor(self.alphabet.encode(text)) for text in texts]
        return Batch(
            wave_BS=pad_sequence(waves, batch_first=True),
            samples=[len(wave) for wave in waves],
            targets=torch.cat(targets),
            target_lengths=[len(target) for target in targets],
            texts=texts,
            files=[str(utterance.audio) for _, utterance, _ in items],
            counts=all(counts for *_, counts in items),
        )


class SpeechData(pl.LightningDataModule):
    """Loaders over the three splits of a corpus; training resumes in mid-epoch.

    Args:
        splits: usable utterances of `train`, `dev` and `test`.
        alphabet: letters of the texts.
        sample_rate: of the batches' waveforms.
        batch: utterances of a global batch.
        seed: seed of the order of batches.
        workers: processes that load a split's audio; 0 loads in the training process.
    """

    def __init__(
        self,
        splits: dict[str, list[Utterance]],
        alphabet: Alphabet,
        *,
        sample_rate: int,
        batch: int,
        seed: int,
        workers: int,
    ) -> None:
        super().__init__()
        self.datasets = {name: SpeechDataset(split, sample_rate) for name, split in splits.items()}
        self.collate = Collate(alphabet)
        self.batch, self.seed = batch, seed
        self.workers = min(workers, os.cpu_count() or 1)
        self._sampler: BucketBatchSampler | None = None
        self._resume: tuple[int, int] | None = None

    def train_dataloader(self) -> DataLoader:
        self._sampler = self._batches("train")
        if self._resume is not None:
            self._sampler.resume(*self._resume)
            self._resume = None
        return self._loader("train", self._sampler)

    def val_dataloader(self) -> DataLoader:
        return self._loader("dev", self._batches("dev"))

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self._batches("test"))

    def sample_of_training(self, utterances: int) -> Iterator[tuple[Tensor, list[int]]]:
        """Batches of (wave_BS, samples) that hold an even sample of the training split."""
        dataset = self.datasets["train"]
        every = max(1, len(dataset) // utterances)
        sample = Subset(dataset, range(0, len(dataset), every))
        for batch in DataLoader(sample, self.batch, collate_fn=self.collate, num_workers=self.workers):
            yield batch.wave_BS, batch.samples

    def state_dict(self) -> dict[str, int]:
        """Where training stands: the epoch to go on in, and the batches done in it."""
        trainer, sampler = self.trainer, self._sampler
        assert trainer is not None
        assert sampler is not None
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # Not `completed`: that is counted only after the hooks in which checkpoints are saved.
        done = progress.current.processed  # type: ignore[attr-defined]
        if done < len(sampler):
            return {"epoch": trainer.current_epoch, "batches": done}
        return {"epoch": trainer.current_epoch + 1, "batches": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._resume = (state["epoch"], state["batches"])
        if self._sampler is not None:
            self._sampler.resume(*self._resume)
            self._resume = None

    def _batches(self, split: str) -> BucketBatchSampler:
        """The share of this rank: of dev and test too, so that no utterance is counted twice."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        durations = [utterance.duration for utterance in self.datasets[split].utterances]
        return BucketBatchSampler(durations, batch=self.batch, seed=self.seed, rank=rank, world=world)

    def _loader(self, split: str, batches: BucketBatchSampler) -> DataLoader:
        return DataLoader(
            self.datasets[split],
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=_leave_signals_to_the_training,
            # Its own generator, so that loading never draws from the numbers that training draws from.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _leave_signals_to_the_training(worker: int) -> None:
    """A loader's worker ends when the training tells it to, not when a terminal or scheduler does."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
