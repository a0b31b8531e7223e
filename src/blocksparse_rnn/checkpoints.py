"""Checkpoints that survive: written durably, complete enough to go on from any step."""

import time
from pathlib import Path
from typing import IO, Any

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.runs import RunFolder
from blocksparse_rnn.sparsifiers.base import Sparsifier


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint, flushes, renames. Lightning's own writer does neither of the
    first two when the temporary directory lies on another file system."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        with durable_file(Path(path)) as file:
            written = _Written(file)
            try:
                torch.save(checkpoint, written)  # type: ignore[arg-type]
            except RuntimeError:
                if written.error is None:
                    raise
                raise written.error from None


class _Written:
    """A file that remembers why writing failed: torch's zip writer forgets it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class Checkpoints(pl.Callback):
    """Keeps last.ckpt (to go on from) and best.ckpt (lowest dev CER once pruning is done) of a run.

    The last one is written at the end of every epoch and every few minutes between; it holds the
    state of the random numbers too.

    Args:
        run: the run's folder.
        every_minutes: time between two checkpoints within an epoch.
    """

    def __init__(self, run: RunFolder, *, every_minutes: float) -> None:
        self.run = run
        self.every_seconds = 60 * every_minutes
        self.best_cer = float("inf")
        self.best_step = 0
        self._saved_at = time.monotonic()
        self._random_state: torch.Tensor | None = None

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_cer": self.best_cer,
            "best_step": self.best_step,
            "random_state": torch.get_rng_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_cer, self.best_step = state["best_cer"], state["best_step"]
        self._random_state = state["random_state"]

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        # Not earlier: setting up a fit draws random numbers, which an undisturbed run draws only once.
        if self._random_state is not None:
            torch.set_rng_state(self._random_state)
            self._random_state = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if time.monotonic() - self._saved_at > self.every_seconds:
            self._save_last(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        # After validation, so that its metrics are there and the epoch is over when a run resumes.
        cer = _dev_cer(trainer)
        sparsifiers = [c for c in trainer.callbacks if isinstance(c, Sparsifier)]  # type: ignore[attr-defined]
        # A model from before the last pruning would hear better and be the wrong one.
        if cer < self.best_cer and all(s.settled(trainer.global_step) for s in sparsifiers):
            self._save_best(trainer)
        self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        if not self.run.best.is_file():
            # Stopped before the first validation, or not settled earlier: the last weights it is.
            self._save_best(trainer)

    def _save_best(self, trainer: pl.Trainer) -> None:
        self.best_cer, self.best_step = _dev_cer(trainer), trainer.global_step
        trainer.save_checkpoint(self.run.best, weights_only=True)

    def _save_last(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.run.last)
        self._saved_at = time.monotonic()


def _dev_cer(trainer: pl.Trainer) -> float:
    return float(trainer.callback_metrics.get("val/cer", float("inf")))


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint, by name; nothing pickled is run.

    Raises:
        UserError: the file is missing or damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    except (OSError, RuntimeError, KeyError, EOFError, ValueError) as error:
        first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"cannot read the checkpoint {path}: {first_line}") from None
