"""What a report needs of finished runs, copied without their checkpoints: small enough to commit."""

from pathlib import Path

from blocksparse_rnn.files import create_folder, durable_file
from blocksparse_rnn.report.results import Run, by_name

_FILES = ("config.yaml", "metrics.csv", "masks.png", "result.json")  # result.json last: it says finished
_FOLDERS = ("outputs", "corpora")


def keep_runs(runs: list[Run], folder: Path) -> int:
    """Copy the runs' files into folders of the same names; returns how many runs there were.

    Settings and results name the folders of outputs and corpora without the path to them: it is one machine's.

    Raises:
        UserError: two runs have the same name, no permission, no space.
    """
    for name, run in by_name(runs).items():
        target = folder / name
        create_folder(target)
        for source in (run.path / name for name in _FILES):
            if source.exists() and source.resolve() != (target / source.name).resolve():
                content = source.read_bytes()
                if source.name in ("config.yaml", "result.json"):
                    content = _without_paths(content.decode(), run).encode()
                with durable_file(target / source.name) as copy:
                    copy.write(content)
    return len(runs)


def _without_paths(text: str, run: Run) -> str:
    for name in _FOLDERS:
        path = Path(run.settings.get(name) or name)
        if path.is_absolute():
            text = text.replace(str(path), path.name)
    return text
