"""Files and folders: where the settings are, durable writing, lock files; and the number of usable cores."""

import fcntl
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from blocksparse_rnn.errors import cannot_write

_PACKAGE = Path(__file__).resolve().parent
SOURCE = _PACKAGE.parent
"""The folder from which this package is imported."""
_SETTINGS = _PACKAGE if (_PACKAGE / "conf").is_dir() else SOURCE.parent
"""The folder of conf/ and sweeps/: this package where it is installed, the top of a checkout."""
CONF = _SETTINGS / "conf"
"""The folder of the settings."""
SWEEPS = _SETTINGS / "sweeps"
"""The folder of the sweeps."""


def create_folder(folder: Path) -> None:
    """Make a folder unless it exists, and check that it can be written to, before hours of work.

    Raises:
        UserError: no permission, no space, or a file of that name is there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise cannot_write(folder, error) from error


@contextmanager
def durable_file(path: Path, mode: str = "wb") -> Iterator[IO]:
    """A file that takes the place of `path` once it is complete and on disk.

    The temporary file is in the same folder, since a rename is atomic only within a file system.

    Raises:
        UserError: no permission, no space.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):  # else this error would hide why the file could not be written
            temporary.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Make the names in a folder last through a power cut."""
    flush_file(folder)


def flush_file(path: Path) -> None:
    """Make what was appended to a file last through a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def inside(folder: Path, name: str) -> Path:
    """The file that a list in `folder` names: a relative path below the folder, or an absolute path.

    Raises:
        ValueError: a relative path leads out of the folder by "..", as an attack would.
    """
    path = folder / name
    if not Path(name).is_absolute() and not Path(os.path.normpath(path)).is_relative_to(
        os.path.normpath(folder)
    ):
        raise ValueError(f"{name} leads out of {folder}; give a path below it, or one from the root")
    return path


@contextmanager
def only_one(path: Path, doing: str) -> Iterator[None]:
    """Hold a lock file while others wait; the system drops it when the process ends, however it ends.

    Args:
        path: the lock file, made with its folder where it is missing.
        doing: what to tell someone who has to wait: "another process is ...".

    Raises:
        UserError: no permission, no space.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file: IO[Any] = open(path, "a")  # noqa: SIM115
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is {doing}; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise cannot_write(path, error) from error
        yield


def cores() -> int:
    """Cores that this process may use; a batch system may allow fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
