"""A list of utterances on disk: JSON lines of `audio_filepath`, `duration`, `text` (NeMo's convention)."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import inside


@dataclass(frozen=True)
class Utterance:
    """One recording: its audio file, its length in seconds and what is said in it."""

    audio: Path
    duration: float
    text: str


def read_manifest(path: Path) -> list[Utterance]:
    """Read a manifest; paths in it are relative to its folder.

    Raises:
        UserError: the file is missing, or a line is not a JSON object with the three fields.
    """
    utterances = []
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                try:
                    row = json.loads(line)
                    audio = inside(path.parent, row["audio_filepath"])
                    duration, text = float(row["duration"]), row["text"]
                except (ValueError, KeyError, TypeError) as error:
                    raise UserError(
                        f"{path}, line {number}: each line must be a JSON object with "
                        f"audio_filepath, duration and text ({error})"
                    ) from None
                utterances.append(Utterance(audio, duration, text))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the manifest {path}: {error}") from None
    return utterances


def manifest_line(utterance: Utterance, folder: Path, **extra: object) -> str:
    """One utterance as a line of a manifest that lies in `folder`."""
    row = {
        "audio_filepath": str(utterance.audio.relative_to(folder)),
        "duration": utterance.duration,
        "text": utterance.text,
        **extra,
    }
    return json.dumps(row) + "\n"


def total_hours(utterances: Iterable[Utterance]) -> float:
    """Hours of audio in `utterances`."""
    return sum(u.duration for u in utterances) / 3600


class Manifests:
    """A corpus of your own: one manifest per split.

    Args:
        train: manifest of the training split.
        dev: manifest that chooses the best checkpoint.
        test: manifest that gives the final error rate.
    """

    def __init__(self, *, train: str, dev: str, test: str) -> None:
        self.paths = {"train": train, "dev": dev, "test": test}

    def prepare(self) -> dict[str, list[Utterance]]:
        """Read the three manifests; raises UserError where one can't be read."""
        return {split: read_manifest(Path(path)) for split, path in self.paths.items()}
