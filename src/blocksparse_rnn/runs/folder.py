"""A run's folder: its name, its lock, its state and its result.

outputs/gru-2560-dense-s0-1f9c2a/
  config.yaml     all settings, interpolations filled in
  status.json     running, finished or failed; epoch, step, CER
  metrics.csv     step, epoch, metric, value, seconds
  rejects.jsonl   utterances that could not be used, with the reason
  checkpoints/    last.ckpt and previous.ckpt while training, best.ckpt
  result.json     written last: only a folder that has it is finished
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import yaml

from blocksparse_rnn.errors import RunLocked, UserError, cannot_write
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.runs.identity import run_name

LOCK_PATIENCE = 8.0
"""Seconds to wait for a lock. Processes that only look at a run or write its settings hold it for less; so do the
loader workers of a killed training, which inherit it, until they end."""
_LOCK_POLL = 0.1

# libyaml's takes a twelfth of the time, and a report reads hundreds.
_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Composed(Protocol):
    """Typed settings of a run: what this package needs of `config.schema.Settings`, which it may not import."""

    def plain(self) -> dict[str, Any]:
        """As config.yaml holds them."""


class RunFolder:
    """The folder of one run.

    Args:
        path: where it is or will be.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.best = self.checkpoints / "best.ckpt"
        self.last = self.checkpoints / "last.ckpt"
        self.previous = self.checkpoints / "previous.ckpt"
        self.pending = self.checkpoints / "pending.ckpt"
        self.metrics = self.path / "metrics.csv"

    @classmethod
    def of(cls, settings: "Composed") -> "RunFolder":
        """The folder that belongs to some settings."""
        values = settings.plain()
        return cls(Path(values["outputs"]) / run_name(values))

    @classmethod
    def existing(cls, path: str | Path, setting: str = "") -> "RunFolder":
        """A folder that holds a run with trained weights.

        Args:
            path: the folder.
            setting: what to put before it in a message, such as `weights=`.

        Raises:
            UserError: config.yaml or best.ckpt is missing.
        """
        run = cls(path)
        if not (run.path / "config.yaml").is_file():
            raise UserError(
                f"{setting}{path}: no run folder (no config.yaml in it); give a folder under outputs/"
            )
        if not run.best.is_file():
            raise UserError(
                f"{setting}{path}: has no checkpoints/best.ckpt yet; let the training end its first epoch"
            )
        return run

    def settings(self) -> dict[str, Any]:
        """The run's settings as config.yaml has them, interpolations filled in; `config.schema` types them.

        Raises:
            UserError: the file is missing or damaged.
        """
        file = self.path / "config.yaml"
        try:
            settings = yaml.load(file.read_text(encoding="utf-8"), Loader=_YAML)
        except FileNotFoundError:
            raise UserError(f"{file}: is missing; restore it, or move the run away") from None
        except (RecursionError, ValueError, yaml.YAMLError):
            raise UserError(f"{file}: is damaged; restore it, or move the run away") from None
        return settings if isinstance(settings, dict) else {}

    @property
    def can_resume(self) -> bool:
        """Whether there is a checkpoint to resume from."""
        return self.last.is_file() or self.previous.is_file()

    def result(self) -> dict[str, Any] | None:
        """The content of result.json; None while the run is not finished.

        Raises:
            UserError: the file is damaged, or no result of this program.
        """
        file = self.path / "result.json"
        advice = "move it away, and the run is done again"
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (RecursionError, ValueError):
            raise UserError(f"{file}: is damaged; {advice}") from None
        try:
            float(result["cer"])  # which every result has
        except (KeyError, TypeError, ValueError):
            raise UserError(f"{file}: is not a result of this program; {advice}") from None
        return result

    def create(self, settings: Composed) -> None:
        """Make the folder and write the settings into it.

        Raises:
            UserError: no permission, no space.
        """
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(self.path, error) from error
        for leftover in [*self.path.glob(".*.tmp"), *self.checkpoints.glob(".*.tmp"), self.pending]:
            leftover.unlink(missing_ok=True)  # of a process that was killed while it wrote
        with durable_file(self.path / "config.yaml", "w") as file:
            yaml.safe_dump(settings.plain(), file, sort_keys=False)

    @contextmanager
    def lock(self, patience: float | None = None) -> Iterator[None]:
        """Keep other processes from working on the same run; the lock ends with the process.

        Args:
            patience: seconds to wait; by default `LOCK_PATIENCE`.

        Raises:
            RunLocked: another process holds it.
            UserError: no permission, no space.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = open(self.path / "lock", "a")  # noqa: SIM115
        except OSError as error:
            raise cannot_write(self.path, error) from error
        with file:
            until = time.monotonic() + (LOCK_PATIENCE if patience is None else patience)
            while not self._take(file):
                if time.monotonic() > until:
                    raise RunLocked(
                        f"{self.path}: another process is working on this run; wait for it or change a setting"
                    )
                time.sleep(_LOCK_POLL)
            yield

    def _take(self, file: IO[str]) -> bool:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:  # a file system without locks
            raise UserError(
                f"cannot lock {self.path}: {error.strerror}; choose a folder on a file system with locks"
            ) from error
        return True

    def is_locked(self) -> bool:
        """Whether another process works on this run now; writes nothing."""
        try:
            with open(self.path / "lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def status(self) -> dict[str, Any]:
        """The content of status.json; empty while there is none, or a damaged one."""
        try:
            return json.loads((self.path / "status.json").read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return {}

    def update_status(self, state: str, **details: Any) -> None:
        """Write the run's state and progress to status.json."""
        status = {
            "state": state,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "parent": os.getppid(),
            "updated": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            **details,
        }
        self._write_json("status.json", status)

    def write_result(self, result: dict[str, Any]) -> None:
        """Write result.json, which finishes the run, and remove what only a training needs."""
        self._write_json("result.json", result)
        self.forget_training()

    def forget_training(self) -> None:
        """Remove the checkpoints that a finished run no longer needs."""
        for checkpoint in (self.last, self.previous, self.pending):
            checkpoint.unlink(missing_ok=True)

    def write_rejects(self, rows: list[dict[str, Any]]) -> None:
        """List the utterances that were left out, with their reasons, in rejects.jsonl."""
        with durable_file(self.path / "rejects.jsonl", "w") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def add_reject(self, file: str, reason: str) -> None:
        """Add an utterance that could not be read during training to rejects.jsonl."""
        with open(self.path / "rejects.jsonl", "a", encoding="utf-8") as rejects:
            rejects.write(json.dumps({"audio_filepath": file, "reason": reason}) + "\n")
        print(f"data: {reason}; left out")

    def _write_json(self, name: str, content: dict[str, Any]) -> None:
        with durable_file(self.path / name, "w") as file:
            json.dump(content, file, indent=2)
            file.write("\n")


class FollowedRun(RunFolder):
    """A run's folder for all ranks but the first: they read it, and only add rejects."""

    @contextmanager
    def lock(self, patience: float | None = None) -> Iterator[None]:
        yield

    def create(self, settings: Composed) -> None:
        """The first rank does."""

    def update_status(self, state: str, **details: Any) -> None:
        """The first rank does."""

    def write_result(self, result: dict[str, Any]) -> None:
        """The first rank does."""

    def forget_training(self) -> None:
        """The first rank does."""

    def write_rejects(self, rows: list[dict[str, Any]]) -> None:
        """The first rank does."""
