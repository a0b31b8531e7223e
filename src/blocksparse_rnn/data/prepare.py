"""From recordings in one of several layouts to manifests, with a report of what they hold."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from blocksparse_rnn.data.checks import Reject, split_usable
from blocksparse_rnn.data.inspection import MEMORY, Inspector
from blocksparse_rnn.data.layouts import read_layout
from blocksparse_rnn.data.manifest import manifest_line, total_hours
from blocksparse_rnn.data.shards import write_shards
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import create_folder, durable_file
from blocksparse_rnn.speech.alphabet import Alphabet

_KINDS = {
    "not readable as audio": "not readable as audio",
    "truncated": "truncated",
    "too short for its text": "too short for its text",
    "lasts": "too long, or of another duration than stated",
    "ends at": "a part beyond the end of its file",
    "line ": "a line that cannot be parsed",
    "there is no ": "audio without text, or text without audio",
    "its text has": "a text with characters outside the alphabet",
}
"""Beginnings of reasons -> the name under which the report counts them."""
_BAR = 40  # characters of the longest bar


def prepare(
    source: Path,
    out: Path,
    *,
    layout: str,
    longest: float | None,
    dev: float,
    test: float,
    workers: int | None,
    shards: float | None,
    alphabet: Alphabet,
    normalise: Callable[[str], str] | None,
    output_frames: Callable[[float], int],
    corpora: Path,
) -> str:
    """Inspect recordings, write manifests and `rejects.jsonl`, and return a report.

    Args:
        source: a folder or a table of recordings.
        out: a manifest to write (.jsonl), or a folder for train.jsonl, dev.jsonl and test.jsonl.
        layout: a name among `layouts.LAYOUTS`, or `auto`.
        longest: maximum duration of an utterance in seconds; None means a minute.
        dev: share of the hours for dev.jsonl, where `out` is a folder; 0 writes none.
        test: share of the hours for test.jsonl, likewise.
        workers: threads that inspect files; None uses all cores.
        shards: size of a shard in megabytes; None writes none beside the manifests.
        alphabet: the letters that texts may have.
        normalise: text -> text; None leaves texts as they are.
        output_frames: frames of logits for a duration in seconds; CTC needs one for each letter.
        corpora: the folder that keeps what was found in audio files.

    Raises:
        UserError: an argument is out of range, no recording can be used, or `out` cannot be written.
    """
    if not (0 <= dev < 1 and 0 <= test < 1 and dev + test < 1):
        raise UserError(f"--dev {dev:g} --test {test:g}: each must be at least 0, and their sum below 1")
    for name, value in (("longest", longest), ("workers", workers), ("shards", shards)):
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value:g}: must be above 0")
    single = out.suffix == ".jsonl"
    folder = out.parent if single else out
    if not single:
        _check_no_earlier_split(folder, {"dev": dev, "test": test})
    inspector = Inspector(corpora / MEMORY, workers, longest)
    found = read_layout(source, layout)
    create_folder(folder)
    accepted, rejects = split_usable(inspector(found), alphabet, output_frames, normalise)
    usable = list(accepted)

    _write_rejects(folder / "rejects.jsonl", out.name if single else None, rejects)
    if not usable:
        raise UserError(
            f"{source}: none of {len(found)} recordings can be used, see {folder / 'rejects.jsonl'}; "
            f"the first: {rejects[0].reason}"
        )
    if single:
        splits = {out.name: usable}
    else:
        splits = _split(usable, {"dev.jsonl": dev, "test.jsonl": test})
        empty = ", ".join(name for name, members in splits.items() if not members)
        if empty:
            texts = len({utterance.text for utterance in usable})
            left_out = (
                f"; {len(rejects)} recordings were left out, see {folder / 'rejects.jsonl'}"
                if rejects
                else ""
            )
            raise UserError(f"{texts} different texts are too few for {empty}; give one OUT.jsonl{left_out}")
    for name, utterances in splits.items():
        with durable_file(folder / name, "w") as file:
            file.writelines(manifest_line(u, folder) for u in utterances)
        if shards is not None:
            write_shards(utterances, folder, name.removesuffix(".jsonl"), shards)
    lines = [
        *(f"{folder / name}: {len(us)} utterances, {total_hours(us):.2f} h" for name, us in splits.items()),
        "",
        *_describe(usable, alphabet),
        "",
        *_describe_rejects(rejects, folder / "rejects.jsonl", output_frames),
    ]
    return "\n".join(lines)


def _check_no_earlier_split(folder: Path, shares: dict[str, float]) -> None:
    """Refuse to leave an earlier dev or test beside a new train, which may have its sentences.

    Raises:
        UserError: names the split's manifest.
    """
    for name, share in shares.items():
        path = folder / f"{name}.jsonl"
        if share == 0 and path.exists():
            raise UserError(
                f"--{name} 0: {path} is there already, and the new train.jsonl may have its sentences; "
                "delete it or choose another folder"
            )


def _split(utterances: list[Utterance], shares: dict[str, float]) -> dict[str, list[Utterance]]:
    """Split by text, so that no sentence is in two splits; the order is a function of the texts alone."""
    by_text: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_text.setdefault(utterance.text, []).append(utterance)
    total = sum(u.duration for u in utterances)
    wanted = {name: share * total for name, share in shares.items() if share > 0}
    splits: dict[str, list[Utterance]] = {name: [] for name in ("train.jsonl", *wanted)}
    for text in sorted(by_text, key=lambda text: hashlib.sha256(text.encode()).digest()):
        name = next((name for name, seconds in wanted.items() if seconds > 0), "train.jsonl")
        splits[name] += by_text[text]
        if name in wanted:
            wanted[name] -= sum(u.duration for u in by_text[text])
    return splits


def _write_rejects(path: Path, manifest: str | None, rejects: list[Reject]) -> None:
    """List the rejects; those of other manifests in the folder stay listed."""
    rows = []
    if manifest is not None and path.is_file():
        earlier = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        rows = [row for row in earlier if row.get("manifest") not in (None, manifest)]
    for utterance, reason in ((reject.utterance, reject.reason) for reject in rejects):
        about = {
            "audio_filepath": str(utterance.audio.absolute()),
            "text": utterance.written,
            "reason": reason,
        }
        rows.append(about if manifest is None else {"manifest": manifest, **about})
    with durable_file(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def _describe(usable: list[Utterance], alphabet: Alphabet) -> list[str]:
    letters = {letter for utterance in usable for letter in utterance.text}
    unused = "".join(letter for letter in alphabet.letters if letter not in letters)
    seconds = sorted(u.duration for u in usable)
    return [
        f"alphabet: {len(letters)} letters: {''.join(sorted(letters))!r}"
        + (f"; never used: {unused!r}" if unused else ""),
        f"durations: {seconds[0]:.2f} to {seconds[-1]:.2f} s, median {seconds[len(seconds) // 2]:.2f} s",
        *_histogram(seconds),
    ]


def _histogram(seconds: list[float]) -> list[str]:
    """A line for each of at most ten ranges of equal, round width."""
    width = next(w for w in (0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 600, 1e9) if seconds[-1] <= 10 * w)
    counts = Counter(int(s / width) for s in seconds)
    most = max(counts.values())
    return [
        f"{i * width:7g} to {(i + 1) * width:<5g} s {counts[i]:8d} {'#' * -(-_BAR * counts[i] // most)}"
        for i in range(min(counts), max(counts) + 1)
    ]


def _describe_rejects(rejects: list[Reject], path: Path, output_frames: Callable[[float], int]) -> list[str]:
    stride = 1000 * 100 / output_frames(100)
    reasons = [reject.reason for reject in rejects]
    kinds = Counter(next((_KINDS[k] for k in _KINDS if reason.startswith(k)), reason) for reason in reasons)
    return [
        f"CTC writes at most a letter every {stride:.0f} ms here: {kinds['too short for its text']} texts are too "
        "long for their audio",
        f"left out: {len(rejects)}" + (f", listed with reasons in {path}" if rejects else ""),
        *(f"{count:8d} {kind}" for kind, count in kinds.most_common()),
    ]
