"""Which audio files can be used: every file decoded once, in parallel, and what was found remembered."""

import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import numpy as np
import soundfile
from tqdm import tqdm

from blocksparse_rnn.data.audio import NO_LENGTH, lacks_length, open_audio
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError, cannot_write
from blocksparse_rnn.files import cores, only_one

MEMORY = "inspected.jsonl"
"""Name of the file in the folder of corpora that remembers what was found."""
LONGEST = 60.0
"""Seconds of an utterance, unless a setting says otherwise: memory grows with the longest of a batch."""
TOLERANCE = 0.1
"""Seconds by which a manifest may misstate a duration; many round."""

_BLOCK = 1 << 16  # frames decoded at a time, so that a file of hours takes no memory
_UNKNOWN_LENGTH = 0x7FFFF000  # written by programs that stream and can't go back to the header
_SYSTEM_ERROR = 2  # libsndfile's number of what the system, not the file, is to blame for
_WAV_LENGTHS = re.compile(r"data : (\d+) \(should be (\d+)\)")


@dataclass(frozen=True)
class Finding:
    """What is in a file: its length in seconds, and why it can't be used, if so."""

    seconds: float
    problem: str | None = None
    passes: bool = False
    """Whether the problem may be gone the next time: a mount that is away, too many open files."""


def inspect_file(path: Path) -> Finding:
    """Decode a file from end to end."""
    try:
        return inspect_sound(path, path.stat().st_size)
    except FileNotFoundError:
        return Finding(0, "the file is missing")
    except OSError as error:
        return Finding(0, f"the file can't be read: {error.strerror or error}", passes=True)
    except ValueError as error:  # no name of a file has a NUL in it
        return Finding(0, f"the file can't be read: {error}")


def inspect_sound(source: Path | IO[bytes], size: int) -> Finding:
    """Decode a file, or the bytes of one, from end to end."""
    if size == 0:
        return Finding(0, "the file is empty (0 bytes)")
    try:
        with open_audio(source) as file:
            if lacks_length(file):
                return Finding(0, NO_LENGTH)
            frames, peak = _decode(file)
            return Finding(frames / file.samplerate, _sound_problem(file, frames, peak))
    except soundfile.LibsndfileError as error:
        reason = error.error_string.removeprefix("Error : ")
        return Finding(0, f"not readable as audio: {reason}", passes=error.code == _SYSTEM_ERROR)


def _decode(file: soundfile.SoundFile) -> tuple[int, float]:
    """Frames that are really there, and their largest magnitude; not a number where a sample isn't."""
    frames, peak = 0, 0.0
    while len(block_SC := file.read(_BLOCK, dtype="float32", always_2d=True)):
        frames += len(block_SC)
        peak = float(np.maximum(peak, np.abs(block_SC).max()))  # keeps what is not a number
    return frames, peak


def _sound_problem(file: soundfile.SoundFile, frames: int, peak: float) -> str | None:
    log, seconds = file.extra_info, frames / file.samplerate
    cut = _WAV_LENGTHS.search(log)
    if cut and int(cut[2]) < int(cut[1]) < _UNKNOWN_LENGTH:
        share = int(cut[2]) / int(cut[1])
        return f"truncated: {seconds:.2f} s are there, {share:.0%} of what its header says"
    if frames < file.frames - TOLERANCE * file.samplerate:
        return f"truncated: {seconds:.2f} of {file.frames / file.samplerate:.2f} s can be decoded"
    if "lacks an end-of-stream bit" in log:
        return f"truncated: its stream breaks off after {seconds:.2f} s"
    if not np.isfinite(peak):
        return "has samples that are not finite numbers (NaN or infinite)"
    if peak == 0:
        return "holds nothing but digital silence"
    return None


class Inspector:
    """Inspects files in threads and remembers what it found as long as size and time of a file stay.

    Args:
        memory: file in which findings are kept, in the folder of corpora; None keeps none.
        workers: threads; None takes all cores.
        longest: most seconds of an utterance; None stands for `LONGEST`.

    Raises:
        UserError: `workers` or `longest` isn't above 0.
    """

    def __init__(self, memory: Path | None, workers: int | None, longest: float | None) -> None:
        if longest is not None and not longest > 0:
            raise UserError(f"data.longest={longest:g}: must be above 0 seconds, or null for a minute")
        if workers is not None and workers < 1:
            raise UserError(f"data.workers={workers}: must be at least 1, or null for all cores")
        self.memory = memory
        self.workers = workers or cores()
        self.longest = LONGEST if longest is None else longest

    def __call__(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """The same utterances, with their real durations, and `problem` set where one can't be used.

        Raises:
            UserError: the memory can't be written.
        """
        utterances = list(utterances)
        files = dict.fromkeys(u.audio for u in utterances if u.problem is None)
        findings = self._findings(files)
        return [u if u.problem else self._judge(u, findings[u.audio]) for u in utterances]

    def _findings(self, files: Iterable[Path]) -> dict[Path, Finding]:
        if self.memory is None:
            return dict(self._inspect(list(files)))
        # Several jobs of a sweep start at once; one of them does the work.
        with only_one(self.memory.with_suffix(".lock"), "inspecting the same audio files"):
            stamps = {path: _stamp(path) for path in files}
            known = self._recall({*stamps.values()})
            found = {path: known[stamp] for path, stamp in stamps.items() if stamp in known}
            new = [path for path in stamps if path not in found]
            try:
                # Appended to one by one, so that a long inspection that is stopped goes on later.
                with open(self.memory, "a", encoding="utf-8") as memory:
                    for path, finding in self._inspect(new):
                        if not finding.passes:
                            row = [*stamps[path], finding.seconds, finding.problem]
                            memory.write(json.dumps(row) + "\n")
                        found[path] = finding
            except OSError as error:
                raise cannot_write(self.memory, error) from error
        return found

    def _inspect(self, files: list[Path]) -> Iterator[tuple[Path, Finding]]:
        # No bar where there is no terminal, nor for what takes no time.
        quiet = True if len(files) < 100 else None
        with ThreadPoolExecutor(self.workers) as threads:
            findings = tqdm(
                threads.map(inspect_file, files),
                desc="inspecting",
                total=len(files),
                unit="file",
                disable=quiet,
            )
            yield from zip(files, findings, strict=True)

    def _recall(self, wanted: set[tuple[str, int, int]]) -> dict[tuple[str, int, int], Finding]:
        assert self.memory is not None
        known = {}
        try:
            with open(self.memory, encoding="utf-8") as rows:
                for row in rows:
                    try:
                        name, size, time, seconds, problem = json.loads(row)
                    except ValueError:
                        continue  # half written when an earlier inspection was killed
                    if (name, size, time) in wanted:
                        known[name, size, time] = Finding(seconds, problem)
        except FileNotFoundError:
            pass
        return known

    def _judge(self, utterance: Utterance, finding: Finding) -> Utterance:
        problem = finding.problem or length_problem(utterance, finding.seconds, self.longest)
        if problem:
            return replace(utterance, problem=problem)
        rest = finding.seconds - (utterance.offset or 0)
        return utterance if 0 < utterance.duration <= rest else replace(utterance, duration=rest)


def _stamp(path: Path) -> tuple[str, int, int]:
    try:
        about = path.stat()
    except (OSError, ValueError):
        return str(path.absolute()), -1, -1
    return str(path.absolute()), about.st_size, about.st_mtime_ns


def length_problem(utterance: Utterance, seconds: float, longest: float) -> str | None:
    """Hold what a manifest says of a length against the file."""
    duration = utterance.duration or seconds - (utterance.offset or 0)
    if utterance.offset is not None:
        end = utterance.offset + duration
        if end > seconds + TOLERANCE:
            return f"ends at {end:.2f} s (offset and duration), but the file has only {seconds:.2f} s"
    elif abs(duration - seconds) > TOLERANCE:
        advice = "; truncated?" if duration > seconds else "; an offset would name a part of it"
        return f"lasts {seconds:.2f} s, but its duration says {duration:.2f} s{advice}"
    if min(duration, seconds) > longest:
        return f"lasts {duration:.2f} s, longer than the {longest:g} s that are allowed"
    return None
