"""Which audio files can be used: each is decoded once, in parallel, and the findings are kept on disk."""

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
"""Name of the file, in the folder of corpora, that keeps the findings."""
LONGEST = 60.0
"""Default maximum duration of an utterance in seconds; the longest of a batch sets the memory it takes."""
TOLERANCE = 0.1
"""Seconds by which a stated duration may be off; many are rounded."""

_BLOCK = 1 << 16  # frames decoded at a time, so that a file of hours fits in memory
_UNKNOWN_LENGTH = 0x7FFFF000  # written by programs that stream and cannot go back to the header
_SYSTEM_ERROR = 2  # libsndfile's code for errors of the system, not of the file
_WAV_LENGTHS = re.compile(r"data : (\d+) \(should be (\d+)\)")


@dataclass(frozen=True)
class Finding:
    """Length of a file in seconds, and why it cannot be used, if so."""

    seconds: float
    problem: str | None = None
    temporary: bool = False
    """Whether the problem may be gone next time, such as a missing mount or too many open files."""


def inspect_file(path: Path) -> Finding:
    """Decode a file from beginning to end."""
    try:
        return inspect_sound(path, path.stat().st_size)
    except FileNotFoundError:
        return Finding(0, "the file is missing")
    except OSError as error:
        return Finding(0, f"the file can't be read: {error.strerror or error}", temporary=True)
    except ValueError as error:  # such as a NUL in its name
        return Finding(0, f"the file can't be read: {error}")


def inspect_sound(source: Path | IO[bytes], size: int) -> Finding:
    """Decode a file, or the bytes of one, from beginning to end."""
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
        return Finding(0, f"not readable as audio: {reason}", temporary=error.code == _SYSTEM_ERROR)


def _decode(file: soundfile.SoundFile) -> tuple[int, float]:
    """Number of decoded frames, and their peak magnitude, which is NaN where a sample is."""
    frames, peak = 0, 0.0
    while len(block_SC := file.read(_BLOCK, dtype="float32", always_2d=True)):
        frames += len(block_SC)
        peak = float(np.maximum(peak, np.abs(block_SC).max()))  # keeps NaN
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
    """Inspects files in threads; a finding is kept while size and modification time of the file stay the same.

    Args:
        memory: file that keeps the findings.
        workers: threads; None uses all cores.
        longest: maximum duration of an utterance in seconds; None means `LONGEST`.

    Raises:
        UserError: `workers` or `longest` isn't above 0.
    """

    def __init__(self, memory: Path, workers: int | None, longest: float | None) -> None:
        if longest is not None and not longest > 0:
            raise UserError(f"data.longest={longest:g}: must be above 0 seconds, or null for a minute")
        if workers is not None and workers < 1:
            raise UserError(f"data.workers={workers}: must be at least 1, or null for all cores")
        self.memory = memory
        self.workers = workers or cores()
        self.longest = LONGEST if longest is None else longest

    def __call__(self, utterances: Iterable[Utterance]) -> list[Utterance]:
        """The same utterances with measured durations, and with `problem` set where one cannot be used.

        Raises:
            UserError: the findings cannot be written.
        """
        utterances = list(utterances)
        files = dict.fromkeys(u.audio for u in utterances if u.problem is None)
        findings = self._findings(files)
        return [u if u.problem else self._judge(u, findings[u.audio]) for u in utterances]

    def _findings(self, files: Iterable[Path]) -> dict[Path, Finding]:
        # Several jobs of a sweep start at once; one of them does the work.
        with only_one(self.memory.with_suffix(".lock"), "inspecting the same audio files"):
            stamps = {path: stamp(path) for path in files}
            known = self._recall({*stamps.values()})
            found = {path: known[key] for path, key in stamps.items() if key in known}
            new = [path for path in stamps if path not in found]
            try:
                # Appended one by one, so that a long inspection that is stopped resumes.
                with open(self.memory, "a", encoding="utf-8") as memory:
                    for path, finding in self._inspect(new):
                        if not finding.temporary:
                            row = [*stamps[path], finding.seconds, finding.problem]
                            memory.write(json.dumps(row) + "\n")
                        found[path] = finding
            except OSError as error:
                raise cannot_write(self.memory, error) from error
        return found

    def _inspect(self, files: list[Path]) -> Iterator[tuple[Path, Finding]]:
        # No bar without a terminal, nor for a few files.
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
        known = {}
        try:
            with open(self.memory, encoding="utf-8") as rows:
                for row in rows:
                    try:
                        name, size, time, seconds, problem = json.loads(row)
                    except ValueError:
                        continue  # half a line, from an inspection that was killed
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


def stamp(path: Path) -> tuple[str, int, int]:
    """Path, size and modification time of a file: while they stay the same, what was found in it holds."""
    try:
        about = path.stat()
    except (OSError, ValueError):
        return str(path.absolute()), -1, -1
    return str(path.absolute()), about.st_size, about.st_mtime_ns


def length_problem(utterance: Utterance, seconds: float, longest: float) -> str | None:
    """Check the stated offset and duration against the length of the file in seconds."""
    duration = utterance.duration or seconds - (utterance.offset or 0)
    if utterance.offset is not None:
        end = utterance.offset + duration
        if end > seconds + TOLERANCE:
            return f"ends at {end:.2f} s (offset and duration), but the file has only {seconds:.2f} s"
    elif abs(duration - seconds) > TOLERANCE:
        advice = "; truncated?" if duration > seconds else "; for a part of a file, give an offset"
        return f"lasts {seconds:.2f} s, but its duration says {duration:.2f} s{advice}"
    if min(duration, seconds) > longest:
        return f"lasts {duration:.2f} s, longer than the {longest:g} s allowed"
    return None
