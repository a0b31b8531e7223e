"""Checkpoint files: written durably, and checked for damage before they are read."""

import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from lightning_fabric.plugins.io.torch_io import TorchCheckpointIO

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.runs.folder import RunFolder


class DurableCheckpointIO(TorchCheckpointIO):
    """Writes beside the old checkpoint, flushes and renames. Lightning's own writer does not write beside it
    or flush when the temporary directory is on another file system."""

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


def resume_point(run: RunFolder) -> tuple[Path, int] | None:
    """The newest undamaged checkpoint to resume from, and its step; damaged ones are reported and removed."""
    for path in (run.last, run.previous):
        if path.is_file():
            problem = damage(path)
            if problem is None:
                return path, _step(path)
            print(f"{path}: is damaged ({problem}); resuming from the one before it, or from the beginning")
            path.unlink()
    return None


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, in a few words; None if it is undamaged.

    torch reads flipped bytes without an error, although the file has checksums.
    """
    try:
        with zipfile.ZipFile(path) as file:
            member = file.testzip()
        if member is not None:
            return f"the checksum of {member} is wrong"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)["state_dict"]
    except (OSError, RuntimeError, KeyError, EOFError, ValueError, zipfile.BadZipFile) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    except Exception as error:  # unpickling raises errors of its own
        return str(error).splitlines()[0]
    return None


def step_of(path: Path) -> int | None:
    """The step at which a checkpoint was written; None where there is none, or a damaged one."""
    if not path.is_file() or damage(path) is not None:
        return None
    return _step(path)


def _step(path: Path) -> int:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """Weights of a checkpoint, by name; no pickled code runs.

    Raises:
        UserError: the file is missing or damaged.
    """
    problem = damage(path)
    if problem is not None:
        raise UserError(f"cannot read the checkpoint {path}: {problem}")
    return torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
