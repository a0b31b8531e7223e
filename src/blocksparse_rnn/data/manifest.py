"""Manifests: JSON lines with `audio_filepath`, `duration` and `text`, in NeMo's format."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from blocksparse_rnn.data.checks import keep_apart
from blocksparse_rnn.data.inspection import MEMORY, Inspector
from blocksparse_rnn.data.utterance import Utterance as Utterance  # where most look for it
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import inside


def read_manifest(path: Path, weight: float = 1.0, keep_bad_lines: bool = False) -> list[Utterance]:
    """Read a manifest; paths in it are relative to its folder.

    Args:
        path: the manifest.
        weight: of its utterances.
        keep_bad_lines: turn a line that cannot be parsed into an utterance with a problem.

    Raises:
        UserError: the file cannot be read, or a line is not a JSON object with the three fields.
    """
    utterances = []
    try:
        with open(path, encoding="utf-8-sig") as lines:
            for number, line in enumerate(lines, 1):
                if not line.strip():
                    continue
                try:
                    utterances.append(_parse(line, path.parent, weight))
                except (ValueError, KeyError, TypeError) as error:
                    problem = (
                        f"each line must be a JSON object with audio_filepath, duration and text ({error})"
                    )
                    if not keep_bad_lines:
                        raise UserError(f"{path}, line {number}: {problem}") from None
                    utterances.append(Utterance(path, 0, "", problem=f"line {number}: {problem}"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the manifest {path}: {error}") from None
    return utterances


def _parse(line: str, folder: Path, weight: float) -> Utterance:
    row = json.loads(line)
    audio, text, duration, offset = row["audio_filepath"], row["text"], row["duration"], row.get("offset")
    if not isinstance(text, str):
        raise TypeError("text must be a string")
    start = None if offset is None else seconds(offset)
    original = row.get("original_text")
    return Utterance(
        inside(folder, audio),
        seconds(duration),
        text,
        start,
        weight,
        original_text=original if isinstance(original, str) else None,
    )


def seconds(value: Any) -> float:
    """A time in seconds; raises ValueError or TypeError where `value` is none."""
    time = float(value)
    if not (math.isfinite(time) and time >= 0):
        raise ValueError(f"a time of {value} s")
    return time


def manifest_line(utterance: Utterance, folder: Path, **extra: object) -> str:
    """One utterance as a line of a manifest in `folder`; `extra` are further fields."""
    audio, folder = utterance.audio.absolute(), folder.absolute()
    row = {
        "audio_filepath": str(audio.relative_to(folder) if audio.is_relative_to(folder) else audio),
        "duration": utterance.duration,
        "text": utterance.text,
        **({} if utterance.offset is None else {"offset": utterance.offset}),
        **({} if utterance.written == utterance.text else {"original_text": utterance.written}),
        **extra,
    }
    return json.dumps(row) + "\n"


def total_hours(utterances: Iterable[Utterance]) -> float:
    """Hours of audio in `utterances`."""
    return sum(u.duration for u in utterances) / 3600


class Manifests:
    """`data=manifest`: your own corpus, one or several manifests for each split.

    Args:
        train: manifest of the training split, or several, each with an optional weight: an utterance of
            weight 2 occurs twice in a pass; of those with weight 0.5 a pass has half, drawn anew each time.
        dev: manifests that choose the best checkpoint.
        test: manifests that give the final error rate.
        longest: maximum duration of an utterance in seconds; None means a minute.
        folder: keeps what was found in audio files.
        workers: threads that inspect audio files; None uses all cores.

    Raises:
        UserError: a weight, `longest` or `workers` is not above 0, or dev or test shares a manifest with train.
    """

    def __init__(
        self,
        *,
        train: str | list[str | dict[str, Any]],
        dev: str | list[str],
        test: str | list[str],
        longest: float | None,
        folder: str,
        workers: int | None,
    ) -> None:
        self.sources = {"train": _sources(train), "dev": _sources(dev), "test": _sources(test)}
        manifests = {split: [path for path, _ in sources] for split, sources in self.sources.items()}
        keep_apart(manifests, "give each of them to one split only")
        self.inspector = Inspector(Path(folder) / MEMORY, workers, longest)

    def prepare(self) -> dict[str, list[Utterance]]:
        """Read the manifests and inspect every file; raises UserError where a manifest cannot be read."""
        splits = {
            split: [u for path, weight in sources for u in read_manifest(path, weight, keep_bad_lines=True)]
            for split, sources in self.sources.items()
        }
        return {split: self.inspector(utterances) for split, utterances in splits.items()}


def _sources(given: str | list[str] | list[str | dict[str, Any]]) -> list[tuple[Path, float]]:
    sources: list[tuple[Path, float]] = []
    for source in [given] if isinstance(given, str) else given:
        entry = {"path": source, "weight": 1.0} if isinstance(source, str) else source
        path, weight = entry.get("path"), entry.get("weight")
        if len(entry) != 2 or not isinstance(path, str) or not isinstance(weight, int | float) or weight <= 0:
            raise UserError(
                f"data.train: {entry}: must be a manifest with a weight above 0, such as {{path: a.jsonl, weight: 2}}"
            )
        sources.append((Path(path), float(weight)))
    return sources
