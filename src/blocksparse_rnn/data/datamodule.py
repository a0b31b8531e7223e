"""Utterances on disk -> batches of waveforms, for Lightning.

Shapes: B batch, S samples.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler, Subset

from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.data.augment import Augmenter
from blocksparse_rnn.data.sampler import BucketBatchSampler
from blocksparse_rnn.data.shards import ShardBatchSampler, ShardedUtterances, read_place
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet


@dataclass
class Batch:
    """Utterances ready for a recogniser. Lengths are Python integers, so that reading them needs no GPU sync."""

    wave_BS: Tensor
    samples: list[int]
    targets: Tensor
    """Indices of the letters of all texts, concatenated."""
    target_lengths: list[int]
    texts: list[str]
    files: list[str]
    counts: bool = True
    """False for a placeholder, which a rank without a share of a small global batch gets."""
    unreadable: list[tuple[str, str]] = field(default_factory=list)
    """Files missing from the batch, with the reasons."""


@dataclass
class Item:
    """One element of the dataset: a waveform, or None if its file could not be read."""

    wave_S: Tensor | None
    utterance: Utterance
    unreadable: list[tuple[str, str]]
    counts: bool = True


class SpeechDataset(Dataset[Item]):
    """Waveform and utterance by index, or by (index, epoch), which augments the waveform.

    `~index` (below 0) is the same utterance as a placeholder that does not count (see the sampler).
    A file may become unreadable after it was inspected, for instance because a disk fails.

    Args:
        utterances: of the dataset.
        sample_rate: of the waveforms.
        replace: return another utterance for one that cannot be read, so that training batches keep
            their size; otherwise return none.
        augment: applied to waveforms; None leaves them unchanged.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        sample_rate: int,
        *,
        replace: bool,
        augment: Augmenter | None = None,
    ) -> None:
        self.utterances = utterances
        self.sample_rate = sample_rate
        self.tries = 10 if replace else 1
        self.augment = augment

    def __len__(self) -> int:
        return len(self.utterances)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        index, epoch = (key, None) if isinstance(key, int) else key
        counts = index >= 0
        index = index if counts else ~index
        unreadable: list[tuple[str, str]] = []
        for attempt in range(self.tries):
            # Far from each other in the corpus, since a whole folder or shard may be missing.
            utterance = self.utterances[(index + attempt * (1 + len(self) // self.tries)) % len(self)]
            try:
                wave_S = self._load(utterance)
                if self.augment is not None and epoch is not None:
                    wave_S = self.augment(wave_S, self.sample_rate, epoch, index, utterance.text)
                return Item(wave_S, utterance, unreadable, counts)
            except UserError as error:
                unreadable.append((str(utterance.audio), str(error)))
        if self.tries == 1:
            return Item(None, utterance, unreadable, counts)
        raise UserError(
            f"{self.tries} audio files across the corpus cannot be read, the last: {unreadable[-1][1]}"
        )

    def _load(self, utterance: Utterance) -> Tensor:
        source = utterance.audio if utterance.place is None else read_place(utterance)
        wave_S = load_audio(source, self.sample_rate, utterance.offset, utterance.duration)
        # Audio too short for its text, or a sample that is NaN, would make the loss infinite or NaN.
        if len(wave_S) < round((utterance.duration - 0.001) * self.sample_rate):
            raise UserError(f"{utterance.audio} has become shorter than its {utterance.duration:.2f} s")
        if not torch.isfinite(wave_S).all():
            raise UserError(f"{utterance.audio} has samples that are not finite numbers")
        return wave_S


class Collate:
    """Pad utterances into a batch, which is empty if none of them could be read."""

    def __init__(self, alphabet: Alphabet) -> None:
        self.alphabet = alphabet

    def __call__(self, items: list[Item]) -> Batch:
        readable = [(item.wave_S, item.utterance) for item in items if item.wave_S is not None]
        waves = [wave for wave, _ in readable]
        texts = [utterance.text for _, utterance in readable]
        targets = [torch.tensor(self.alphabet.encode(text)) for text in texts]
        return Batch(
            wave_BS=pad_sequence(waves, batch_first=True) if waves else torch.empty(0, 0),
            samples=[len(wave) for wave in waves],
            targets=torch.cat(targets) if targets else torch.empty(0, dtype=torch.long),
            target_lengths=[len(target) for target in targets],
            texts=texts,
            files=[str(utterance.audio) for _, utterance in readable],
            counts=all(item.counts for item in items),
            unreadable=[failure for item in items for failure in item.unreadable],
        )


class EpochKeys(Sampler[list[tuple[int, int]]]):
    """Batches of (index, epoch): worker processes outlive an epoch, so each index carries its own."""

    def __init__(self, batches: BucketBatchSampler) -> None:
        self.batches = batches
        self.sampler = batches  # Lightning sets the epoch of `batch_sampler.sampler`

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for batch in self.batches:
            yield [(index, self.batches.epoch) for index in batch]


class SpeechData(pl.LightningDataModule):
    """Loaders of the three splits of a corpus; training resumes within an epoch.

    Args:
        splits: usable utterances of `train`, `dev` and `test`.
        alphabet: letters of the texts.
        sample_rate: of the batches' waveforms.
        batch: utterances of a global batch.
        epochs_per_pass: epochs that make one pass over train.
        seed: seed of the order of batches.
        workers: processes that load a split's audio; 0 loads in the training process.
        augment: applied to the waveforms of train; None leaves them unchanged.
        report: called with file and reason when an inspected file cannot be read.
    """

    def __init__(
        self,
        splits: dict[str, Sequence[Utterance]],
        alphabet: Alphabet,
        *,
        sample_rate: int,
        batch: int,
        epochs_per_pass: int = 1,
        seed: int,
        workers: int,
        augment: Augmenter | None = None,
        report: Callable[[str, str], None] | None = None,
    ) -> None:
        super().__init__()
        self.datasets = {
            name: SpeechDataset(split, sample_rate, replace=name == "train", augment=augment)
            for name, split in splits.items()
        }
        self.collate = Collate(alphabet)
        self.batch, self.epochs_per_pass, self.seed = batch, epochs_per_pass, seed
        self.workers = min(workers, os.cpu_count() or 1)
        self.report = report
        self._reported: set[str] = set()
        self._sampler: BucketBatchSampler | None = None
        self._resume: tuple[int, int] | None = None

    def train_dataloader(self) -> DataLoader:
        self._sampler = self._batches("train")
        if not len(self._sampler):
            raise UserError(
                f"epochs_per_pass={self.epochs_per_pass}: train has fewer batches of {self.batch} than that; "
                "give more data, or epochs_per_pass=null"
            )
        if self._resume is not None:
            self._sampler.resume(*self._resume)
            self._resume = None
        return self._loader("train", EpochKeys(self._sampler))

    def val_dataloader(self) -> DataLoader:
        return self._loader("dev", self._batches("dev"))

    def test_dataloader(self) -> DataLoader:
        return self._loader("test", self._batches("test"))

    def sample_of_training(self, utterances: int) -> Iterator[tuple[Tensor, list[int]]]:
        """Batches of (wave_BS, samples) of about `utterances` utterances, evenly spaced in train."""
        dataset = self.datasets["train"]
        every = max(1, len(dataset) // utterances)
        sample = Subset(dataset, range(0, len(dataset), every))
        for batch in DataLoader(sample, self.batch, collate_fn=self.collate, num_workers=self.workers):
            yield batch.wave_BS, batch.samples

    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        for file, reason in batch.unreadable:
            if self.report is not None and file not in self._reported:
                self._reported.add(file)
                self.report(file, reason)
        return batch

    def state_dict(self) -> dict[str, int]:
        """Where training resumes: the epoch, its finished batches, and the number of utterances of train."""
        trainer, sampler = self.trainer, self._sampler
        assert trainer is not None
        assert sampler is not None
        progress = trainer.fit_loop.epoch_loop.batch_progress
        # Not `completed`, which is counted only after the hooks that save checkpoints.
        done = progress.current.processed  # type: ignore[attr-defined]
        epochs, batches = divmod(done, len(sampler))
        return {
            "epoch": trainer.current_epoch + epochs,
            "batches": batches,
            "utterances": len(self.datasets["train"]),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume from a state.

        Raises:
            UserError: train has another number of utterances, so that the order of batches would differ.
        """
        before, now = state["utterances"], len(self.datasets["train"])
        if before != now:
            raise UserError(
                f"data has changed since this run was stopped: {before} utterances of train, now {now}; "
                "move the run's folder away to start again"
            )
        self._resume = (state["epoch"], state["batches"])
        if self._sampler is not None:
            self._sampler.resume(*self._resume)
            self._resume = None

    def _batches(self, split: str) -> BucketBatchSampler:
        """The batches of this rank; dev and test are shared among ranks too, so that no utterance counts twice."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        utterances = self.datasets[split].utterances
        sharing = {
            "batch": self.batch,
            "epochs_per_pass": self.epochs_per_pass if split == "train" else 1,
            "seed": self.seed,
            "rank": rank,
            "world": world,
        }
        if isinstance(utterances, ShardedUtterances):
            return ShardBatchSampler(utterances, **sharing)
        durations = [utterance.duration for utterance in utterances]
        return BucketBatchSampler(
            durations, weights=[utterance.weight for utterance in utterances], **sharing
        )

    def _loader(self, split: str, batches: Sampler) -> DataLoader:
        return DataLoader(
            self.datasets[split],
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            worker_init_fn=_leave_signals_to_the_training,
            # Its own generator, so that loading never draws from that of training.
            generator=torch.Generator().manual_seed(self.seed),
        )


def _leave_signals_to_the_training(worker: int) -> None:
    """Let the training alone end a loader's worker, not a terminal or a scheduler.

    A scheduler sends SIGTERM to every process of a job, and the training needs its loader until it has saved.
    The training ends its workers by SIGTERM too; only the sender tells the two apart.
    """
    for number in (signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    threading.Thread(target=_end_with_the_training, daemon=True).start()


def _end_with_the_training() -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != os.getppid():
        pass
    os._exit(0)
