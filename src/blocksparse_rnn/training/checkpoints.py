"""Checkpoints of a training, from which it resumes to the bit at any step."""

import os
import time
from typing import Any

import pytorch_lightning as pl
import torch

from blocksparse_rnn import distributed
from blocksparse_rnn.files import flush_file, flush_folder
from blocksparse_rnn.pruning.sparsifier import Sparsifier
from blocksparse_rnn.runs.checkpoint_files import step_of
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped, StopRequests


class Checkpoints(pl.Callback):
    """Keeps last.ckpt (to resume from), the one before it, and best.ckpt (lowest dev CER after pruning has finished).

    last.ckpt is written at the end of every epoch, every few minutes between, and when the process is
    asked to end. Lightning writes the metrics of a step after all its hooks, so the new file is pending.ckpt until
    the next hook, when those metrics are on disk.

    Args:
        run: the run's folder.
        stop: whether the process was asked to end.
        every_minutes: minutes between two checkpoints within an epoch.
    """

    def __init__(self, run: RunFolder, stop: StopRequests, every_minutes: float) -> None:
        self.run = run
        self.stop = stop
        self.every_seconds = 60 * every_minutes
        self.best_cer = float("inf")
        self.best_step = 0
        # Sums over this process and those from which it resumes:
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self.saving_seconds = 0.0
        self._since, self._cpu_since = time.monotonic(), time.process_time()
        self._saved_at = self._since
        self._random_states: torch.Tensor | None = None
        self._pending = False

    def state_dict(self) -> dict[str, Any]:
        return {
            "best_cer": self.best_cer,
            "best_step": self.best_step,
            "seconds": self.seconds + time.monotonic() - self._since,
            "cpu_seconds": self.cpu_seconds + time.process_time() - self._cpu_since,
            "saving_seconds": self.saving_seconds,
            "random_state": _random_states(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.best_cer, self.best_step = state["best_cer"], state["best_step"]
        for name in ("seconds", "cpu_seconds", "saving_seconds"):
            setattr(self, name, state.get(name, 0.0))
        self._random_states = torch.atleast_2d(state["random_state"])
        if self.best_step and step_of(self.run.best) != self.best_step:
            # best.ckpt is newer than the checkpoint from which we resume: the same steps will write it again.
            self.best_cer, self.best_step = float("inf"), 0

    def on_train_start(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        self._since, self._cpu_since = time.monotonic(), time.process_time()
        self.stop.deferring = True

    def on_train_epoch_start(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        self._commit(trainer)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self._commit(trainer)
        # Not earlier: setting up a fit draws random numbers, which an undisturbed run draws only once.
        if self._random_states is not None:
            _set_random_state(self._random_states)
            self._random_states = None

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step >= trainer.estimated_stepping_batches:
            trainer.should_stop = True  # so that Lightning validates, also within an epoch
        if trainer.is_last_batch or trainer.should_stop:
            return  # the epoch's end saves; a run resumed from here would skip its validation
        due = trainer.is_global_zero and time.monotonic() - self._saved_at > self.every_seconds
        if distributed.any_rank(due or self.stop.asked is not None, trainer.strategy.root_device):
            self._save_last(trainer)

    def on_validation_start(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        self._commit(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        # After validation, so that its metrics are there and the epoch is over when a run resumes.
        cer = _dev_cer(trainer)
        sparsifiers = [c for c in trainer.callbacks if isinstance(c, Sparsifier)]  # type: ignore[attr-defined]
        # Before the last mask update the CER is lower, but the sparsity is not yet reached.
        finished = all(s.pruning_finished(trainer.global_step) for s in sparsifiers)
        # Without an earlier choice the last weights are the best; saved here, so that a resume at the end finds them.
        over = trainer.global_step >= trainer.estimated_stepping_batches and not self.best_step
        if (cer < self.best_cer and finished) or over:
            self._save_best(trainer)
        self._save_last(trainer)

    def on_train_end(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        if not self.best_step:  # stopped by max_time before the first validation
            self._save_best(trainer)
        self.seconds += time.monotonic() - self._since
        self.cpu_seconds += time.process_time() - self._cpu_since
        self._commit(trainer)
        self.stop.deferring = False
        self._end_if_asked(trainer)

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        self.stop.deferring = False

    def _save_best(self, trainer: pl.Trainer) -> None:
        started = time.monotonic()
        self.best_cer, self.best_step = _dev_cer(trainer), trainer.global_step
        trainer.save_checkpoint(self.run.best, weights_only=True)
        self.saving_seconds += time.monotonic() - started

    def _save_last(self, trainer: pl.Trainer) -> None:
        started = time.monotonic()
        trainer.save_checkpoint(self.run.pending)
        self._saved_at, self._pending = time.monotonic(), True
        self.saving_seconds += self._saved_at - started

    def _commit(self, trainer: pl.Trainer) -> None:
        """Make the pending checkpoint the last one, now that the metrics of its step are written; end here if asked to."""
        if not self._pending:
            return
        if trainer.is_global_zero:
            if self.run.metrics.exists():
                flush_file(self.run.metrics)
            if self.run.last.exists():
                os.replace(self.run.last, self.run.previous)
            os.replace(self.run.pending, self.run.last)
            flush_folder(self.run.checkpoints)
        self._pending = False
        self._end_if_asked(trainer)

    def _end_if_asked(self, trainer: pl.Trainer) -> None:
        number = distributed.largest(self.stop.asked or 0, trainer.strategy.root_device)
        # A signal that comes only now stays in `asked`, and ends all ranks after their next step.
        if number:
            raise Stopped(number)


def _dev_cer(trainer: pl.Trainer) -> float:
    return float(trainer.callback_metrics.get("val/cer", float("inf")))


def _random_states() -> torch.Tensor:
    """Random states of all ranks, one row each, the GPU's behind the CPU's."""
    states = [torch.get_rng_state()]
    if not torch.cuda.is_initialized():
        return distributed.gather(states[0])
    states += [torch.cuda.get_rng_state()]
    return distributed.gather(torch.cat(states).cuda()).cpu()


def _set_random_state(states: torch.Tensor) -> None:
    """This rank's row; another number of ranks than before can't resume exactly."""
    state = states[distributed.rank() % len(states)].cpu()
    size = len(torch.get_rng_state())
    # Copies: torch reads a slice from the beginning of its memory, and crashes.
    torch.set_rng_state(state[:size].clone())
    if len(state) > size and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(state[size:].clone())
