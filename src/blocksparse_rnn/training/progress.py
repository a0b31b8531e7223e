"""One progress line for a whole training: epoch, loss, CER, time left."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Timer
from tqdm import tqdm

from blocksparse_rnn.runs.folder import RunFolder

_STATUS_SECONDS = 5.0  # least time between two writes of status.json within an epoch


class Progress(pl.Callback):
    """On a terminal a bar over all optimizer steps, elsewhere a line per epoch; status.json in both cases.

    Args:
        run: the run's folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run = run
        self._updated_at = 0.0
        self.bar: tqdm | None = None
        self._start = (0.0, 0)

    def on_train_start(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        self.total = int(trainer.estimated_stepping_batches)
        self._start = (time.monotonic(), trainer.global_step)
        self.bar = tqdm(
            total=self.total,
            initial=trainer.global_step,
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty() or not trainer.is_global_zero,
        )

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        assert self.bar is not None
        if time.monotonic() - self._updated_at > _STATUS_SECONDS:
            self._update_status(trainer)
        if not self.bar.disable and self.bar.update(trainer.global_step - self.bar.n):
            self.bar.set_description(f"epoch {trainer.current_epoch + 1}", refresh=False)
            self.bar.set_postfix_str(_figures(trainer), refresh=False)

    def on_train_epoch_end(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            step, left = trainer.global_step, self._seconds_left(trainer)
            self._update_status(trainer)
            line = f"epoch {trainer.current_epoch + 1}, step {step} of {self.total}: {_figures(trainer)}"
            tqdm.write(f"{line}  {tqdm.format_interval(left)} left", file=sys.stderr)

    def _seconds_left(self, trainer: pl.Trainer) -> float:
        """Seconds until the last step, or until `trainer.max_time` if that is sooner."""
        started, first = self._start
        done = trainer.global_step - first
        left = (time.monotonic() - started) / max(1, done) * (self.total - trainer.global_step)
        for timer in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(timer, Timer):
                left = min(left, timer.time_remaining() or 0.0)
        return max(0.0, left)

    def _update_status(self, trainer: pl.Trainer) -> None:
        """Write epoch, step, CER and time left to status.json."""
        if not trainer.is_global_zero:
            return
        self._updated_at = time.monotonic()
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.run.update_status(
            "running",
            epoch=trainer.current_epoch + 1,
            step=trainer.global_step,
            steps=self.total,
            cer=metrics.get("val/cer"),
            sparsity=metrics.get("sparsity/prunable"),
            seconds_left=round(self._seconds_left(trainer)),
        )

    def on_train_end(self, trainer: pl.Trainer, recogniser: pl.LightningModule) -> None:
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: pl.Trainer, *_: Any) -> None:
        if self.bar is not None:
            self.bar.close()


def _figures(trainer: pl.Trainer) -> str:
    names = {"loss": "train/loss", "cer": "val/cer"}
    metrics = trainer.callback_metrics
    return "  ".join(
        f"{short} {float(metrics[name]):.{3 if short == 'cer' else 1}f}"
        for short, name in names.items()
        if name in metrics
    )
