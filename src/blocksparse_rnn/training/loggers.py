"""Loggers: metrics.csv always, W&B or TensorBoard besides where `logger` chooses them."""

import csv
import netrc
import os
import sys
import time
from argparse import Namespace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytorch_lightning.loggers import Logger, TensorBoardLogger, WandbLogger
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.runs.folder import RunFolder


class MetricsCSV(Logger):
    """Rows of (step, epoch, metric, value, seconds), appended as they come.

    Lightning's own CSV logger deletes its file when a run resumes. One metric to a row needs no
    header that changes; `pandas.pivot_table(index="step", columns="metric")` makes it wide.
    """

    COLUMNS = ("step", "epoch", "metric", "value", "seconds")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self._start = time.monotonic()

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The run folder's config.yaml has them already."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        epoch = int(metrics.get("epoch", 0))
        seconds = round(time.monotonic() - self._start, 2)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            if file.tell() == 0:
                writer.writerow(self.COLUMNS)
            # Sorted: Lightning's order depends on when a metric was first logged, so on a resume.
            for name, value in sorted(metrics.items()):
                if name != "epoch":
                    writer.writerow((step, epoch, name, value, seconds))

    def truncate_after(self, step: int) -> None:
        """Drop the rows of an interrupted run beyond the step of the checkpoint from which it resumes."""
        if self.path.exists():
            lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
            # A full disk may have cut any line, the header too.
            whole = [line for line in lines if line.endswith("\n")]
            kept = [row for row in whole[1:] if int(row.split(",", 1)[0]) < step]
            with durable_file(self.path, "w") as file:
                file.writelines(whole[:1] + kept)


def csv_only(run: RunFolder, settings: Settings) -> list[Logger]:
    """Nothing besides metrics.csv."""
    return []


def wandb_logger(
    run: RunFolder, settings: Settings, *, project: str, entity: str | None, tags: list[str]
) -> list[Logger]:
    """W&B: online where a key is configured, else offline in the run folder.

    A run keeps its id when it resumes. W&B never ends a training: if it can't start, a warning is printed, and
    metrics.csv has all metrics.

    Args:
        run: the run's folder; its name is the run's name and id.
        settings: logged in full.
        project: W&B project.
        entity: W&B user or team; null for the key's own.
        tags: tags of the run, besides model, scale and sparsifier.
    """
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb

        offline = not _has_wandb_key()
        if offline:
            print("W&B: no key configured, logging offline into the run folder", file=sys.stderr)
        logger = WandbLogger(
            project=project,
            entity=entity,
            name=run.path.name,
            id=run.path.name,
            resume=None if offline else "allow",
            save_dir=str(run.path),
            mode="offline" if offline else "online",
            group=settings.sweep,
            job_type=settings.model.cell,
            tags=[
                settings.model.cell,
                settings.scale.name,
                str(settings.sparsifier.name),
                *tags,
            ],
            config=settings.plain(),
            settings=wandb.Settings(init_timeout=30, x_disable_stats=offline),
        )
        for rate in ("val/cer", "val/wer"):
            # Not the lowest: that may be of an epoch before pruning has finished.
            logger.experiment.define_metric(rate, summary="last")
    except Exception as error:  # W&B's own errors have no common base, and none may end a training
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        print(f"W&B could not start ({reason}); metrics.csv has everything", file=sys.stderr)
        return []
    return [logger]


def replay_metrics(path: Path, loggers: list[Logger]) -> None:
    """Log all earlier metrics of a resumed run to W&B again, if it is offline.

    Each process has an offline folder of its own, and syncing one replaces the run, so the newest must have all.

    Args:
        path: the run's metrics.csv.
        loggers: of the resumed training.
    """
    for logger in loggers:
        if isinstance(logger, WandbLogger) and logger.experiment.offline and path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                moments = groupby(csv.DictReader(file), key=itemgetter("step", "epoch", "seconds"))
                for (step, epoch, _), rows in moments:
                    metrics = {row["metric"]: float(row["value"]) for row in rows}
                    logger.log_metrics(metrics | {"epoch": int(epoch)}, int(step))


def _has_wandb_key() -> bool:
    """Whether a key is configured, in the environment or in ~/.netrc; without a prompt or the network."""
    if os.environ.get("WANDB_MODE") in ("offline", "disabled", "dryrun"):
        return False
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return netrc.netrc().authenticators(host or "") is not None
    except (OSError, netrc.NetrcParseError):
        return False


def tensorboard_logger(run: RunFolder, settings: Settings) -> list[Logger]:
    """TensorBoard files in the run folder.

    Raises:
        UserError: the package isn't installed.
    """
    try:
        return [TensorBoardLogger(str(run.path), name="tensorboard", version="")]
    except ModuleNotFoundError as error:
        raise UserError(f"logger=tensorboard: {error}; pip install tensorboard") from None
