"""`weights=RUN`: re-evaluates a finished run with another decoder or on other data; trains nothing."""

import os
import shutil
import time
from typing import Any

from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.checkpoint_files import load_weights
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import identity, recipe
from blocksparse_rnn.runs.sources import source_of
from blocksparse_rnn.training.loggers import MetricsCSV
from blocksparse_rnn.training.recogniser import Recogniser
from blocksparse_rnn.training.trainer import make_trainer


def re_evaluate(
    settings: Settings, run: RunFolder, recogniser: Recogniser, data: SpeechData
) -> dict[str, Any]:
    """Error rates on dev and test with another run's weights, as the result of a run.

    Args:
        settings: those of the other run except for decoder and data; `weights` names its folder.
        run: the folder of the re-evaluation.
        recogniser: with the decoder to try; its weights are replaced.
        data: to evaluate on.

    Raises:
        UserError: several devices; the other run isn't finished, or was trained with other settings.
    """
    if settings.trainer.devices != 1:
        raise UserError("weights: a recogniser is re-evaluated on one device; set trainer.devices=1")
    source = source_of(settings.plain(), "weights")
    trained = source.result()
    assert trained is not None
    recogniser.load_state_dict(load_weights(source.best))
    run.metrics.unlink(missing_ok=True)
    loggers = [MetricsCSV(run.metrics), *settings.logger.build(run, settings)]
    trainer = make_trainer(settings.trainer, run, [], loggers)
    started = time.monotonic()
    dev = trainer.validate(recogniser, datamodule=data, verbose=False)[0]
    test = trainer.test(recogniser, datamodule=data, verbose=False)[0]
    for logger in loggers:
        logger.finalize("success")
    _link(source, run)
    return {
        **trained,
        "name": run.path.name,
        "cer": test["test/cer"],
        "wer": test["test/wer"],
        "dev_cer": dev["val/cer"],
        "dev_wer": dev["val/wer"],
        "wall_seconds": round(time.monotonic() - started, 1),
        "weights": str(source.path),
        "trained": recipe(source.settings()),
        "identity": identity(settings.plain()),
        "sweep": settings.sweep,
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _link(source: RunFolder, run: RunFolder) -> None:
    """Put the weights into the run's folder, so that it can transcribe."""
    run.best.unlink(missing_ok=True)
    try:
        os.link(source.best, run.best)
    except OSError:  # on another disk
        shutil.copyfile(source.best, run.best)
