"""What a report needs of finished runs, copied without their checkpoints: small enough to commit."""

import shutil
from pathlib import Path

from blocksparse_rnn.errors import cannot_write
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.report.results import Run

_FILES = ("config.yaml", "metrics.csv", "masks.png", "result.json")  # result.json last: it says finished


def keep_runs(runs: list[Run], folder: Path) -> int:
    """Copy the runs' files into folders of the same names; returns how many runs there were.

    Raises:
        UserError: no permission, no space.
    """
    for run in runs:
        target = folder / run.path.name
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(target, error) from error
        for source in (run.path / name for name in _FILES):
            if source.exists() and source.resolve() != (target / source.name).resolve():
                with open(source, "rb") as original, durable_file(target / source.name) as copy:
                    shutil.copyfileobj(original, copy)
    return len(runs)
