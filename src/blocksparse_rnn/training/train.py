"""One training, from settings to result: build, restore, fit, evaluate, write the result.

settings -> run folder -> recogniser and corpus -> fit -> test of the best checkpoint -> result.json
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from blocksparse_rnn import distributed
from blocksparse_rnn.config.build import build_sparsifiers
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.pruning.monitor import SparsityMonitor
from blocksparse_rnn.pruning.sparsifier import Sparsifier
from blocksparse_rnn.runs.checkpoint_files import load_weights, resume_point
from blocksparse_rnn.runs.folder import FollowedRun, RunFolder
from blocksparse_rnn.signals import Stopped, StopRequests
from blocksparse_rnn.training.checkpoints import Checkpoints
from blocksparse_rnn.training.corpus import load_data
from blocksparse_rnn.training.loggers import MetricsCSV, replay_metrics
from blocksparse_rnn.training.progress import Progress
from blocksparse_rnn.training.ranks import LeaveOnError, run_ranks
from blocksparse_rnn.training.recogniser import Recogniser, build_recogniser
from blocksparse_rnn.training.reevaluation import re_evaluate
from blocksparse_rnn.training.result import training_result
from blocksparse_rnn.training.skip_zeros import SkipZeros
from blocksparse_rnn.training.trainer import make_trainer, on_gpu, quieten_lightning, validate_devices

STATISTICS_UTTERANCES = 1000
"""Training utterances from which corpus normalisation is measured."""


def train(settings: Settings, run: RunFolder | None = None) -> dict[str, Any]:
    """Train, test and write result.json. A finished run is not trained again, an interrupted one resumes.

    Args:
        settings: composed and checked (`config.compose`).
        run: the run's folder; None for the one that the settings name.

    Returns:
        The result.

    Raises:
        UserError: unusable data, weights or devices; no permission, no space.
        RunLocked: another process works on the run.
        Stopped: after a signal.
        SystemExit: another rank failed.
    """
    run = run or RunFolder.of(settings)
    validate_devices(settings.trainer)
    if distributed.rank():
        run = FollowedRun(run.path)
    in_this_process = settings.trainer.devices == 1 or distributed.launched()
    with StopRequests() as stop, distributed.rank_zero_stdout():
        with run.lock():
            result = run.result()
            if result is not None:
                run.forget_training()  # a process killed right after writing the result left checkpoints
                print(f"{run.path}: finished before")
            else:
                run.create(settings)
                if in_this_process:
                    result = _train(settings, run, stop)
        if result is None:
            run_ranks(run, settings.trainer.devices)  # the first of them takes the lock
            result = run.result()
            assert result is not None
            return result
        print(f"{run.path}: test CER {result['cer']:.4f}, WER {result['wer']:.4f}")
        return result


def _train(settings: Settings, run: RunFolder, stop: StopRequests) -> dict[str, Any]:
    """Train in this process, which is the only rank or one of several."""
    quieten_lightning()
    with _status_of_the_end(run), distributed.joined(on_gpu(settings.trainer.accelerator)):
        run.update_status("running", epoch=0, step=0)
        recogniser = _seeded_recogniser(settings)
        data = load_data(settings, recogniser, run)
        if settings.weights:
            result = re_evaluate(settings, run, recogniser, data)
        else:
            result = _fit_and_evaluate(settings, run, recogniser, data, stop)
        run.write_result(result)
        run.update_status("finished", step=result["steps"], cer=result["cer"])
        return result


def _fit_and_evaluate(
    settings: Settings, run: RunFolder, recogniser: Recogniser, data: SpeechData, stop: StopRequests
) -> dict[str, Any]:
    parts = _build(settings, run, stop)
    resume_from = _restore(settings, run, recogniser, data, parts)

    parts.trainer.fit(recogniser, datamodule=data, ckpt_path=resume_from, weights_only=True)

    recogniser.load_state_dict(load_weights(run.best))
    for sparsifier in parts.sparsifiers:
        sparsifier.verify(recogniser.model)
    test = parts.trainer.test(recogniser, datamodule=data, verbose=False)[0]
    result = {
        "name": run.path.name,
        "cer": test["test/cer"],
        "wer": test["test/wer"],
        "resumed": resume_from is not None,
        **training_result(
            settings, recogniser.model, data, parts.trainer, parts.sparsifiers, parts.checkpoints
        ),
    }
    _log_result(result, parts)
    return result


@dataclass(frozen=True)
class _Parts:
    """The parts of a training besides recogniser and data."""

    sparsifiers: list[Sparsifier]
    checkpoints: Checkpoints
    metrics: MetricsCSV
    loggers: list[Logger]
    trainer: pl.Trainer


def _seeded_recogniser(settings: Settings) -> Recogniser:
    pl.seed_everything(settings.seed, verbose=False)
    recogniser = build_recogniser(settings)
    # A decoder reads its files when it is first used: a missing one must not end the training after an epoch.
    recogniser.decoder(torch.zeros(1, 1, len(recogniser.alphabet)), [1], recogniser.alphabet)
    if distributed.rank():
        # Else SpecAugment would draw the same masks on all ranks. By Lightning's function: `fit` seeds again with its seed.
        pl.seed_everything(settings.seed + distributed.rank(), verbose=False)
    return recogniser


def _build(settings: Settings, run: RunFolder, stop: StopRequests) -> _Parts:
    metrics = MetricsCSV(run.metrics)
    loggers = [] if distributed.rank() else [metrics, *settings.logger.build(run, settings)]
    sparsifiers = build_sparsifiers(settings)
    checkpoints = Checkpoints(run, stop, settings.checkpoints.every_minutes)
    # Sparsifiers come first, so that weights are saved and shown with their masks applied.
    callbacks: list[pl.Callback] = [*sparsifiers]
    if any(sparsifier.skip_zeros for sparsifier in sparsifiers):
        callbacks += [SkipZeros(sparsifiers)]
    if sparsifiers:
        callbacks += [SparsityMonitor(settings.prunable, sparsifiers[0].block, run.path / "masks.png")]
    callbacks += [checkpoints, Progress(run), LeaveOnError()]
    trainer = make_trainer(settings.trainer, run, callbacks, loggers)
    return _Parts(sparsifiers, checkpoints, metrics, loggers, trainer)


def _restore(
    settings: Settings, run: RunFolder, recogniser: Recogniser, data: SpeechData, parts: _Parts
) -> Path | None:
    """Prepare to resume, and return the checkpoint; None for a new training, after loading what it starts from."""
    point = distributed.from_first(None if distributed.rank() else resume_point(run))
    if point is not None:
        path, step = point
        if not distributed.rank():
            parts.metrics.truncate_after(step)
            replay_metrics(run.metrics, parts.loggers)
        print(f"{run.path}: resuming from step {step}")
        return path
    if settings.start_from:
        # With the statistics of its features, which the weights were trained on.
        recogniser.load_state_dict(load_weights(RunFolder(settings.start_from).best))
    elif recogniser.features.normalisation == "corpus":
        recogniser.features.fit(data.sample_of_training(STATISTICS_UTTERANCES))
    if not distributed.rank():
        run.metrics.unlink(missing_ok=True)
    return None


def _log_result(result: dict[str, Any], parts: _Parts) -> None:
    """Log the sparsity of the best checkpoint last, since W&B compares runs by their last values."""
    last = {name: result[name] for name in ("sparsity/total", "sparsity/prunable")}
    for logger in parts.loggers:
        logger.log_metrics(last | {"parameters/nonzero": result["parameters"]["nonzero"]}, result["steps"])
        logger.finalize("success")


@contextmanager
def _status_of_the_end(run: RunFolder) -> Iterator[None]:
    """Write to status.json what ended a training."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        run.update_status("stopped")
        raise
    except BaseException as error:
        run.update_status("failed", error=f"{type(error).__name__}: {error}")
        raise
