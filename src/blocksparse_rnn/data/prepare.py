"""From recordings as people keep them to manifests that training can use, and a report of what is in them."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
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
    "lasts": "too long, or not as long as it is said to be",
    "ends at": "a part beyond the end of its file",
    "line ": "a line that can't be understood",
    "there is no ": "audio without text, or text without audio",
    "its text has": "a text with letters that the alphabet lacks",
}
"""How reasons begin, and what many of them are called together."""
_BAR = 40  # characters of the longest bar


@dataclass(frozen=True)
class Request:
    """What to prepare.

    Args:
        source: a folder or a table of recordings.
        out: a manifest to write (.jsonl), or a folder for train.jsonl, dev.jsonl and test.jsonl.
        layout: a name among `layouts.LAYOUTS`, or `auto`.
        longest: most seconds of an utterance; None stands for a minute.
        dev: share of the hours that become dev.jsonl, where `out` is a folder.
        test: share of the hours that become test.jsonl.
        workers: threads that inspect files; None takes all cores.
        shards: megabytes of a shard; None writes none beside the manifests.
    """

    source: Path
    out: Path
    layout: str = "auto"
    longest: float | None = None
    dev: float = 0.05
    test: float = 0.05
    workers: int | None = None
    shards: float | None = None


def prepare(
    request: Request,
    *,
    alphabet: Alphabet,
    normalise: Callable[[str], str] | None,
    output_frames: Callable[[float], int],
    corpora: Path,
) -> str:
    """Inspect recordings, write manifests and `rejects.jsonl`, and return a report.

    Args:
        request: what to prepare.
        alphabet: the letters that texts may have.
        normalise: text -> text; None leaves texts as they are.
        output_frames: frames of logits for a duration in seconds, which limit what CTC can write.
        corpora: the folder that keeps the results of inspecting audio files.

    Raises:
        UserError: nothing to read, nothing usable, or nowhere to write.
    """
    if not (0 <= request.dev < 1 and 0 <= request.test < 1 and request.dev + request.test < 1):
        raise UserError(
            f"--dev {request.dev:g} --test {request.test:g}: shares that leave something for train"
        )
    for name, value in (
        ("longest", request.longest),
        ("workers", request.workers),
        ("shards", request.shards),
    ):
        if value is not None and value <= 0:
            raise UserError(f"--{name} {value:g}: must be above 0")
    single = request.out.suffix == ".jsonl"
    if not single:
        _check_no_other_split(request)
    inspector = Inspector(corpora / MEMORY, request.workers, request.longest)
    found = read_layout(request.source, request.layout)
    folder = request.out.parent if single else request.out
    create_folder(folder)
    offered = inspector(found)
    accepted, rejects = split_usable(offered, alphabet, output_frames, normalise)
    usable = list(accepted)

    _write_rejects(folder / "rejects.jsonl", request.out.name if single else None, rejects)
    if not usable:
        raise UserError(
            f"{request.source}: none of {len(offered)} recordings can be used, see {folder / 'rejects.jsonl'}; "
            f"the first: {rejects[0].reason}"
        )
    if single:
        splits = {request.out.name: usable}
    else:
        left_out = (
            f"; {len(rejects)} recordings were left out, see {folder / 'rejects.jsonl'}" if rejects else ""
        )
        splits = _split(usable, request.dev, request.test, left_out)
    for name, utterances in splits.items():
        with durable_file(folder / name, "w") as file:
            file.writelines(manifest_line(u, folder) for u in utterances)
        if request.shards is not None:
            write_shards(utterances, folder, name.removesuffix(".jsonl"), request.shards)
    return "\n".join(
        [
            *(f"{folder / name}: {_amount(utterances)}" for name, utterances in splits.items()),
            "",
            *_describe(usable, alphabet),
            "",
            *_describe_rejects(rejects, folder / "rejects.jsonl", output_frames),
        ]
    )


def _check_no_other_split(request: Request) -> None:
    """Refuse a folder with a split that won't be written anew: its sentences may become train's.

    Raises:
        UserError: names the split's manifest.
    """
    for name, share in (("dev", request.dev), ("test", request.test)):
        path = request.out / f"{name}.jsonl"
        if share == 0 and path.exists():
            raise UserError(
                f"--{name} 0: {path} is there already, and its sentences may become train's; "
                "delete it or choose another folder"
            )


def _split(utterances: list[Utterance], dev: float, test: float, left_out: str) -> dict[str, list[Utterance]]:
    """Part by text, so that no sentence of dev or test is in train; the same recordings part the same way.

    Args:
        utterances: all that can be used.
        dev: share of the hours; 0 for no such split.
        test: likewise.
        left_out: what to add where the texts are too few.
    """
    by_text: dict[str, list[Utterance]] = {}
    for utterance in utterances:
        by_text.setdefault(utterance.text, []).append(utterance)
    total = sum(u.duration for u in utterances)
    shares = {"dev.jsonl": dev, "test.jsonl": test}
    wanted = {name: share * total for name, share in shares.items() if share > 0}
    splits: dict[str, list[Utterance]] = {name: [] for name in ("train.jsonl", *wanted)}
    for text in sorted(by_text, key=lambda text: hashlib.sha256(text.encode()).digest()):
        name = next((name for name, seconds in wanted.items() if seconds > 0), "train.jsonl")
        splits[name] += by_text[text]
        if name in wanted:
            wanted[name] -= sum(u.duration for u in by_text[text])
    empty = [name for name, members in splits.items() if not members]
    if empty:
        raise UserError(
            f"{len(by_text)} different texts are too few for {', '.join(empty)}; give one OUT.jsonl{left_out}"
        )
    return splits


def _write_rejects(path: Path, manifest: str | None, rejects: list[Reject]) -> None:
    """Name what was left out; what other manifests of the folder left out stays."""
    kept = []
    if manifest is not None and path.is_file():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        kept = [row for row in rows if row.get("manifest") not in (None, manifest)]
    rows = [
        {
            **({} if manifest is None else {"manifest": manifest}),
            "audio_filepath": str(r.utterance.audio.absolute()),
            "text": r.utterance.written,
            "reason": r.reason,
        }
        for r in rejects
    ]
    with durable_file(path, "w") as file:
        file.writelines(json.dumps(row) + "\n" for row in [*kept, *rows])


def _amount(utterances: list[Utterance]) -> str:
    return f"{len(utterances)} utterances, {total_hours(utterances):.2f} h"


def _describe(usable: list[Utterance], alphabet: Alphabet) -> list[str]:
    letters = Counter(letter for utterance in usable for letter in utterance.text)
    unused = [letter for letter in alphabet.letters if letter not in letters]
    seconds = sorted(u.duration for u in usable)
    return [
        f"alphabet: {len(letters)} letters: {''.join(sorted(letters))!r}"
        + (f"; never used: {''.join(unused)!r}" if unused else ""),
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
    short = sum(reject.reason.startswith("too short for its text") for reject in rejects)
    kinds = Counter(_kind(reject.reason) for reject in rejects)
    return [
        f"CTC writes at most a letter every {stride:.0f} ms here: {short} texts are too long for their audio",
        f"left out: {len(rejects)}" + (f", each named in {path}" if rejects else ""),
        *(f"{count:8d} {kind}" for kind, count in kinds.most_common()),
    ]


def _kind(reason: str) -> str:
    """A reason without the figures and names of its utterance."""
    for opening, kind in _KINDS.items():
        if reason.startswith(opening):
            return kind
    return reason
