"""One training, from settings to result.

settings -> run folder -> corpus -> recogniser -> fit -> test from the best checkpoint -> result.json
"""

import functools
import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
from pydantic import AfterValidator, NonNegativeFloat, NonNegativeInt, PositiveInt
from pytorch_lightning.loggers import Logger
from pytorch_lightning.strategies import DDPStrategy

from blocksparse_rnn import distributed
from blocksparse_rnn.config.schema import build, build_sparsifiers
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.manifest import total_hours
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.pruning.monitor import SparsityMonitor
from blocksparse_rnn.pruning.sparsifier import Sparsifier
from blocksparse_rnn.runs.checkpoint_files import DurableCheckpointIO, load_weights, resume_point
from blocksparse_rnn.runs.folder import FollowedRun, RunFolder
from blocksparse_rnn.signals import Stopped, StopRequests
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.training.corpus import load_data
from blocksparse_rnn.training.loggers import MetricsCSV, tell_again
from blocksparse_rnn.training.progress import Progress
from blocksparse_rnn.training.ranks import LeaveOnError, run_ranks
from blocksparse_rnn.training.recogniser import Recogniser
from blocksparse_rnn.training.reevaluation import retest
from blocksparse_rnn.training.result import circumstances, pruning, sizes
from blocksparse_rnn.training.skip_nonfinite import SkipNonFinite
from blocksparse_rnn.training.skip_zeros import SkipZeros

STATISTICS_UTTERANCES = 1000
"""Training utterances from which corpus normalisation is measured."""


def train(settings: dict[str, Any], run: RunFolder | None = None) -> dict[str, Any]:
    """Train, test and write result.json; a finished run is not done again, a broken one goes on.

    Args:
        settings: resolved and checked (`config.resolve`).
        run: the folder to do it in; None for the one that belongs to the settings.

    Returns:
        The result.

    Raises:
        UserError: unusable data, no permission, no space, a run that another process works on.
    """
    run = run or RunFolder.of(settings)
    devices = settings["trainer"]["devices"]
    if distributed.launched():
        _check_ranks(devices)
    _check_gpus(settings["trainer"]["accelerator"], devices)
    if distributed.rank():
        run = FollowedRun(run.path)
    alone = devices == 1 or distributed.launched()
    with StopRequests() as stop, _first_rank_speaks():
        with run.lock():
            result = run.result()
            if result is not None:
                run.forget_training()  # killed between its last two steps, it may still have checkpoints
                print(f"{run.path}: finished before")
            else:
                run.create(settings)
                if alone:
                    with _status_of_the_end(run):
                        result = _train(settings, run, stop)
        if result is None:
            run_ranks(run, devices)  # the first of them takes the lock
            result = run.result()
            assert result is not None
            return result
        print(f"{run.path}: test CER {result['cer']:.4f}, WER {result['wer']:.4f}")
        return result


def _check_ranks(devices: int) -> None:
    """Hold the settings against the processes that somebody started."""
    here = distributed.on_this_machine()
    if devices != here:
        raise UserError(
            f"trainer.devices={devices}: {here} processes were started on this machine; set trainer.devices={here}"
        )


def _check_gpus(accelerator: str, devices: int) -> None:
    """Hold the settings against this machine: the one that trains, not the one that plans a sweep."""
    found = torch.cuda.device_count()
    if _on_gpu(accelerator) and devices > found:
        raise UserError(
            f"trainer.accelerator={accelerator}, trainer.devices={devices}: this machine has {found} GPUs; "
            "set trainer.accelerator=cpu or fewer devices"
        )


@contextmanager
def _first_rank_speaks() -> Iterator[None]:
    """What one rank says on standard output is enough; errors come from all."""
    with redirect_stdout(io.StringIO()) if distributed.rank() else nullcontext():
        yield


@contextmanager
def _status_of_the_end(run: RunFolder) -> Iterator[None]:
    """Say in status.json what ended a training."""
    try:
        yield
    except (Stopped, KeyboardInterrupt):
        run.update_status("stopped")
        raise
    except BaseException as error:
        run.update_status("failed", error=f"{type(error).__name__}: {error}")
        raise


def _train(settings: dict[str, Any], run: RunFolder, stop: StopRequests) -> dict[str, Any]:
    quieten_lightning()
    run.update_status("running", epoch=0, step=0)
    with distributed.joined(_on_gpu(settings["trainer"]["accelerator"])):
        return _fit_and_test(settings, run, stop)


def _fit_and_test(settings: dict[str, Any], run: RunFolder, stop: StopRequests) -> dict[str, Any]:
    pl.seed_everything(settings["seed"], verbose=False)
    recogniser = build_recogniser(settings)
    # A decoder reads its files when it is first used; better now than after an epoch.
    recogniser.decoder(torch.zeros(1, 1, len(recogniser.alphabet)), [1], recogniser.alphabet)
    if distributed.rank():
        # Else all would mask the same of their utterances. Not by torch alone: Lightning seeds again as it starts.
        pl.seed_everything(settings["seed"] + distributed.rank(), verbose=False)
    data = load_data(settings, recogniser, run)
    if settings.get("weights"):
        return retest(settings, run, recogniser, data)
    metrics = MetricsCSV(run.metrics)
    loggers = [] if distributed.rank() else [metrics, *build(settings["logger"], run, settings)]
    sparsifiers = build_sparsifiers(settings)
    monitors = _monitors(sparsifiers, settings, run)
    checkpoints = build(settings["checkpoints"], run, stop)
    # Sparsifiers come first, so that what is saved and shown after a step is what they left.
    skipping = [SkipZeros(sparsifiers)] if any(s.skip_zeros for s in sparsifiers) else []
    callbacks = [*sparsifiers, *skipping, *monitors, checkpoints, Progress(run), LeaveOnError()]
    trainer = build(settings["trainer"], run, callbacks, loggers)

    point = distributed.from_first(None if distributed.rank() else resume_point(run))
    resume_from, step = point or (None, 0)
    if resume_from is None:
        if settings.get("start_from"):
            # Its statistics of the features with them, for which they were trained.
            recogniser.load_state_dict(load_weights(RunFolder(Path(settings["start_from"])).best))
        else:
            _measure_features(recogniser, data)
        if not distributed.rank():
            run.metrics.unlink(missing_ok=True)
    else:
        if not distributed.rank():
            metrics.forget_after(step)
            tell_again(run.metrics, loggers)
        print(f"{run.path}: going on from step {step}")

    trainer.fit(recogniser, datamodule=data, ckpt_path=resume_from, weights_only=True)
    if not checkpoints.trained:
        # Resumed at its very end, where Lightning calls no hook of a training.
        for sparsifier in sparsifiers:
            sparsifier.on_train_start(trainer, recogniser)
        for monitor in monitors:
            monitor.on_train_end(trainer, recogniser)

    recogniser.load_state_dict(load_weights(run.best))
    for sparsifier in sparsifiers:
        sparsifier.verify(recogniser.model)
    test = trainer.test(recogniser, datamodule=data, verbose=False)[0]
    hours = total_hours(data.datasets["train"].utterances)
    epochs = trainer.global_step / max(1, int(trainer.num_training_batches))
    heard = hours * epochs / data.epochs_per_pass
    result = {
        "name": run.path.name,
        "cer": test["test/cer"],
        "wer": test["test/wer"],
        "dev_cer": checkpoints.best_cer,
        **sizes(recogniser.model, settings),
        **pruning(recogniser.model, sparsifiers, settings),
        "best_step": checkpoints.best_step,
        "steps": trainer.global_step,
        "skipped_steps": _skipped(trainer),
        "epochs": round(epochs, 3),
        "train_hours": round(hours, 4),
        # Over all processes that a run took, without what was done twice because one was killed.
        "wall_seconds": round(checkpoints.seconds, 1),
        "cpu_seconds": round(checkpoints.cpu_seconds, 1),  # on a shared machine the wall clock says little
        "saving_seconds": round(checkpoints.saving_seconds, 2),
        "audio_hours_per_second": round(heard / max(checkpoints.seconds, 1e-3), 6),
        "resumed": resume_from is not None,
        **circumstances(settings, trainer),
    }
    for logger in loggers:
        # Of the best checkpoint, for whoever compares runs by their last values.
        logger.log_metrics(_last_metrics(result), trainer.global_step)
        logger.finalize("success")
    run.write_result(result)
    run.update_status("finished", step=trainer.global_step, cer=result["cer"])
    return result


def build_recogniser(settings: dict[str, Any]) -> Recogniser:
    """The recogniser that some settings describe, with fresh weights."""
    alphabet = Alphabet(settings["alphabet"])
    features = build(settings["features"])
    model = build(settings["model"], features.size, len(alphabet))
    make_optimizer = functools.partial(build, settings["optimizer"])
    return Recogniser(features, model, alphabet, build(settings["decoder"]), make_optimizer)


def _step_limit(steps: int) -> int:
    if steps != -1 and steps < 1:
        raise ValueError("must be at least 1, or -1 for as many as the epochs take")
    return steps


def _time_limit(time: str) -> str:
    if not re.fullmatch(r"\d+:\d\d:\d\d:\d\d", time):
        raise ValueError("must be days:hours:minutes:seconds, such as 00:07:30:00")
    return time


def make_trainer(
    run: RunFolder,
    callbacks: list[pl.Callback],
    loggers: list[Logger],
    *,
    max_epochs: PositiveInt,
    max_steps: Annotated[int, AfterValidator(_step_limit)],
    max_time: Annotated[str, AfterValidator(_time_limit)] | None,
    accelerator: Literal["auto", "cpu", "gpu"],
    devices: PositiveInt,
    strategy: Literal["auto", "ddp"],
    precision: Literal["auto", "32-true", "bf16-mixed", "16-mixed", "64-true"],
    clip: NonNegativeFloat,
    max_skipped: NonNegativeInt,
    log_every: PositiveInt,
) -> pl.Trainer:
    """Lightning's trainer as this project uses it.

    Args:
        run: where the run lies.
        callbacks: of this training.
        loggers: of this training.
        max_epochs: epochs of training.
        max_steps: optimizer steps after which training ends earlier, or -1.
        max_time: time after which training ends earlier, as days:hours:minutes:seconds.
        accelerator: `auto`, `cpu` or `gpu`.
        devices: GPUs or processes of each machine; all share a batch.
        strategy: Lightning's name of how they share it.
        precision: Lightning's name of it, or `auto`: bf16-mixed on a GPU, 32-true on a CPU.
        clip: largest norm of the gradient; 0 for any.
        max_skipped: steps in a row that may be left out because their gradients are not finite.
        log_every: steps between rows of training metrics.
    """
    if precision == "auto":
        precision = "bf16-mixed" if _on_gpu(accelerator) else "32-true"
    # Named, since Lightning takes any process in a SLURM allocation for one of several.
    environment = TorchElasticEnvironment() if distributed.launched() else LightningEnvironment()
    trainer = pl.Trainer(
        default_root_dir=run.path,
        callbacks=[*callbacks, SkipNonFinite(max_skipped)],
        logger=loggers,
        plugins=[DurableCheckpointIO(), environment],
        max_epochs=max_epochs,
        max_steps=max_steps,
        max_time=max_time,
        accelerator=accelerator,
        devices=devices,
        num_nodes=distributed.machines(),
        strategy=_strategy(strategy),
        precision=precision,
        gradient_clip_val=clip,
        log_every_n_steps=log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # It would take them from `StopRequests` and, within a handler, wait for ranks that wait elsewhere for this one.
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    return trainer


def _strategy(name: str) -> str | DDPStrategy:
    """Batch norm's statistics are equal on all ranks already, so DDP need not copy the first's to the others."""
    return (
        DDPStrategy(broadcast_buffers=False) if distributed.launched() and name in ("auto", "ddp") else name
    )


def _on_gpu(accelerator: str) -> bool:
    return accelerator == "gpu" or (accelerator == "auto" and torch.cuda.is_available())


def _skipped(trainer: pl.Trainer) -> int:
    [skip] = [c for c in trainer.callbacks if isinstance(c, SkipNonFinite)]  # type: ignore[attr-defined]
    return skip.total


def _measure_features(recogniser: Recogniser, data: SpeechData) -> None:
    if recogniser.features.normalisation == "corpus":
        recogniser.features.fit(data.sample_of_training(STATISTICS_UTTERANCES))


def _last_metrics(result: dict[str, Any]) -> dict[str, float]:
    sparsity = {name: result[name] for name in ("sparsity/total", "sparsity/prunable")}
    return {**sparsity, "parameters/nonzero": result["parameters"]["nonzero"]}


def _monitors(
    sparsifiers: list[Sparsifier], settings: dict[str, Any], run: RunFolder
) -> list[SparsityMonitor]:
    if not sparsifiers:
        return []
    return [SparsityMonitor(settings["prunable"], sparsifiers[0].block, run.path / "masks.png")]


def quieten_lightning() -> None:
    """Lightning's hints about GPUs and loader workers would drown what this project has to say."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in (
        ".*LeafSpec.*",
        ".*does not have many workers.*",
        ".*before the epoch ended.*",
        ".*log_every_n_steps.*",
        ".*broadcast_buffers.*",
        ".*sync_dist=True.*",  # what is logged is summed over the ranks already
    ):
        warnings.filterwarnings("ignore", message)
