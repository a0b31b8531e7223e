"""`data=shards`: corpora of any size as tar files on a disk or a mounted file server, in webdataset's format.

A sample is files of one name: `key.flac` (or .wav, .ogg, .mp3) and `key.json` with a `text`, or `key.txt`. What
is in a shard is found out once, and noted with the place of every sample in it; from then on the order of
batches needs the notes of a few shards at a time, and loading reads a sample's bytes from its place. So order,
split over ranks and workers, and resuming are as exact as for files, and memory stays as it is while hours grow.
"""

import functools
import glob
import hashlib
import io
import itertools
import json
import os
import random
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from tqdm import tqdm

from blocksparse_rnn.data.audio import AUDIO_SUFFIXES, read_samples
from blocksparse_rnn.data.checks import Reject, keep_apart
from blocksparse_rnn.data.inspection import LONGEST, inspect_sound, length_problem
from blocksparse_rnn.data.sampler import BucketBatchSampler
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import cores, durable_file, only_one

WINDOW = 16
"""Shards whose samples are mixed with one another, unless a setting says otherwise."""


class Shards:
    """A corpus in shards.

    Args:
        train: a folder of .tar files, or a pattern of their names such as /data/train-*.tar.
        dev: likewise; chooses the best checkpoint.
        test: likewise; gives the final error rate.
        window: shards whose samples are sorted and mixed together; None stands for 16. Each epoch mixes others.
        longest: most seconds of an utterance; None stands for a minute.
        folder: notes on what is in the shards are kept in here.
        workers: threads that inspect shards; None takes all cores.

    Raises:
        UserError: a value is out of range.
    """

    def __init__(
        self,
        *,
        train: str,
        dev: str,
        test: str,
        window: int | None,
        longest: float | None,
        folder: str,
        workers: int | None,
    ) -> None:
        for name, value in (("window", window), ("longest", longest), ("workers", workers)):
            if value is not None and value <= 0:
                raise UserError(f"data.{name}={value:g}: must be above 0, or null")
        self.sources = {"train": train, "dev": dev, "test": test}
        self.window = window or WINDOW
        self.longest = LONGEST if longest is None else longest
        self.notes = Path(folder) / "shards"
        self.workers = workers or cores()

    def prepare(self) -> dict[str, Sequence[Utterance]]:
        """Find the shards and inspect those that are new.

        Raises:
            UserError: there are none, one can't be read, or one of train is in dev or test too.
        """
        found = {split: _find(split, source) for split, source in self.sources.items()}
        keep_apart(found, "give patterns of names such as FOLDER/train-*.tar")
        return {
            split: ShardedUtterances(self._inspect(shards), self.window, self.longest)
            for split, shards in found.items()
        }

    def _inspect(self, shards: list[Path]) -> list["Shard"]:
        with only_one(self.notes / "lock", "inspecting the same shards"):
            known = [Shard(path, self.notes / f"{_stamp(path)}.jsonl") for path in shards]
            new = [shard for shard in known if not shard.notes.is_file()]
            with ThreadPoolExecutor(self.workers) as threads:
                done = threads.map(_take_notes, new)
                for _ in tqdm(done, desc="inspecting", total=len(new), unit="shard", disable=None):
                    pass
        return known


@dataclass(frozen=True)
class Shard:
    """A tar file, and the file with the notes on it."""

    path: Path
    notes: Path

    def utterances(self, longest: float) -> Iterator[Utterance]:
        """All samples of the shard, unusable ones with their problems."""
        with open(self.notes, encoding="utf-8") as rows:
            for row in rows:
                name, start, size, seconds, text, problem = json.loads(row)
                utterance = Utterance(
                    self.path / name, seconds, text, problem=problem, place=(start, size) if size else None
                )
                if problem is None and (problem := length_problem(utterance, seconds, longest)):
                    utterance = Utterance(self.path / name, seconds, text, problem=problem)
                yield utterance


class ShardedUtterances(Sequence[Utterance]):
    """The utterances of some shards, of which only a few shards' are in memory.

    Args:
        shards: in the order in which they count.
        window: shards that are mixed together.
        longest: most seconds of an utterance.
    """

    def __init__(self, shards: list[Shard], window: int, longest: float) -> None:
        self.shards, self.window, self.longest = shards, window, longest
        self._check: Callable[[Utterance], Utterance | Reject] | None = None
        self._ends = np.zeros(0, dtype=np.int64)  # of each shard, none before `keep_usable`
        self._cached = functools.lru_cache(maxsize=window + 2)(self._read)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_cached"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__ |= state
        self._cached = functools.lru_cache(maxsize=self.window + 2)(self._read)

    def keep_usable(self, check: Callable[[Utterance], Utterance | Reject]) -> list[Reject]:
        """Leave out what a check rejects, from now on; return the rejects."""
        self._check = check
        rejects: list[Reject] = []
        counts = []
        for shard in self.shards:
            judged = [check(utterance) for utterance in shard.utterances(self.longest)]
            bad = [verdict for verdict in judged if isinstance(verdict, Reject)]
            rejects += bad
            counts.append(len(judged) - len(bad))
        self._ends = np.cumsum(counts)
        return rejects

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._cached(number)[index - self.first(number)]

    def first(self, number: int) -> int:
        """Index of the first utterance of a shard."""
        return int(self._ends[number - 1]) if number else 0

    def durations(self, number: int) -> list[float]:
        """Seconds of each utterance of a shard."""
        return [utterance.duration for utterance in self._read(number)]

    def _read(self, number: int) -> list[Utterance]:
        assert self._check is not None
        judged = (self._check(utterance) for utterance in self.shards[number].utterances(self.longest))
        return [verdict for verdict in judged if not isinstance(verdict, Reject)]


class ShardBatchSampler(BucketBatchSampler):
    """Batches by duration within a window of shards; where one window holds them all, as for files.

    Each pass takes the shards in another order. What a window leaves over for less than a batch goes
    into the next, so that all passes have equally many batches.

    Args:
        utterances: of shards.
        batch: utterances of a global batch; the last one of a pass may hold fewer.
        epochs_per_pass: epochs that share the batches of a pass over all utterances.
        seed: seed of the order.
        rank: this process's number among `world`.
        world: processes that share a batch.
    """

    def __init__(
        self,
        utterances: ShardedUtterances,
        *,
        batch: int,
        epochs_per_pass: int = 1,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        super().__init__([], batch=batch, epochs_per_pass=epochs_per_pass, seed=seed, rank=rank, world=world)
        self.utterances = utterances

    def utterances_per_pass(self) -> int:
        return len(self.utterances)

    def seconds(self, index: int) -> float:
        return self.utterances[index].duration

    def pass_batches(self, number: int, *, shuffled: bool) -> Iterator[list[int]]:
        """All batches of a pass, one after the other; else the shortest of a window first."""
        noise = random.Random(f"{self.seed}-{number}")
        jitter = self.JITTER if number else 0.0
        windows = self._windows(number, shuffled)
        left: list[tuple[float, int]] = []
        for count, window in enumerate(windows, 1):
            durations = itertools.chain.from_iterable(
                enumerate(self.utterances.durations(shard), self.utterances.first(shard)) for shard in window
            )
            pool = sorted([*left, *((d * (1 + jitter * noise.random()), index) for index, d in durations)])
            whole = len(pool) if count == len(windows) else len(pool) // self.batch * self.batch
            left = pool[whole:]
            order = [index for _, index in pool[:whole]]
            batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
            if shuffled:
                noise.shuffle(batches)
            yield from batches

    def _windows(self, number: int, shuffled: bool) -> list[list[int]]:
        """Numbers of the shards that are mixed together in a pass, ascending within a window."""
        order = list(range(len(self.utterances.shards)))
        if shuffled:
            random.Random(f"{self.seed}-{number}-shards").shuffle(order)
        size = self.utterances.window
        return [sorted(order[i : i + size]) for i in range(0, len(order), size)]


def read_place(utterance: Utterance) -> IO[bytes]:
    """The bytes of a sample in a shard.

    Raises:
        UserError: the shard can't be read.
    """
    assert utterance.place is not None
    start, size = utterance.place
    shard = utterance.audio.parent
    try:
        with open(shard, "rb") as file:
            file.seek(start)
            data = file.read(size)
    except OSError as error:
        raise UserError(f"cannot read {shard}: {error.strerror}") from None
    if len(data) < size:
        raise UserError(f"{shard} has become shorter: {utterance.audio.name} is missing")
    source = io.BytesIO(data)
    source.name = str(utterance.audio)
    return source


def write_shards(utterances: Iterable[Utterance], folder: Path, name: str, megabytes: float) -> int:
    """Write shards NAME-000000.tar, ... of about so many megabytes; files go in as they are.

    Those of that name that an earlier corpus left beyond the last are removed.

    Returns:
        how many.

    Raises:
        UserError: webdataset is missing, or a file can't be read.
    """
    try:
        import webdataset
    except ImportError:
        raise UserError("writing shards needs webdataset; pip install 'blocksparse-rnn[shards]'") from None
    pattern = f"{folder}/{name}-".replace("%", "%%") + "%06d.tar"
    with webdataset.ShardWriter(pattern, maxsize=megabytes * 1e6, verbose=0, mtime=0) as writer:
        for number, utterance in enumerate(utterances):
            suffix, data = _audio_bytes(utterance)
            about = {"text": utterance.text, "duration": utterance.duration, "source": utterance.audio.name}
            writer.write({"__key__": f"{number:09d}", suffix: data, "json": json.dumps(about).encode()})
        shards = writer.shard
    # Sentences in an earlier corpus's shards may be in another split by now.
    written = {f"{name}-{number:06d}.tar" for number in range(shards)}
    for shard in folder.glob(f"{glob.escape(name)}-{'[0-9]' * 6}.tar"):
        if shard.name not in written:
            shard.unlink()
    return shards


def _audio_bytes(utterance: Utterance) -> tuple[str, bytes]:
    if utterance.offset is not None:
        wave_SC, rate = read_samples(utterance.audio, utterance.offset, utterance.duration)
        part = io.BytesIO()
        # FLAC has no floating point; what a file in it holds beyond full scale is cut off.
        soundfile.write(part, wave_SC.clip(-1, 1), rate, format="FLAC", subtype="PCM_16")
        return "flac", part.getvalue()
    try:
        return utterance.audio.suffix.lower().removeprefix("."), utterance.audio.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {utterance.audio}: {error.strerror}") from None


def _find(split: str, source: str) -> list[Path]:
    path = Path(source)
    root, pattern = (path, "*.tar") if path.is_dir() else (path.parent, path.name)
    shards = sorted(shard for shard in root.glob(pattern) if shard.is_file())
    if not shards:
        raise UserError(
            f"data.{split}={source}: no shards; give a folder of .tar files or a pattern of names"
        )
    return shards


def _stamp(path: Path) -> str:
    about = path.stat()
    name = f"{path.absolute()} {about.st_size} {about.st_mtime_ns}"
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:24]


def _take_notes(shard: Shard) -> None:
    """Inspect every sample of a shard and write down what it is and where."""
    with durable_file(shard.notes, "w") as notes:
        for row in _samples(shard.path):
            notes.write(json.dumps(row) + "\n")


def _samples(path: Path) -> Iterator[list[Any]]:
    """Rows of name, place, seconds, text and problem; a sample's files follow one another.

    Raises:
        UserError: the disk, not the shard, is to blame; nothing of that is to be remembered.
    """
    try:
        with tarfile.open(path, "r:") as archive:  # bytes of a compressed one have no place
            members = (member for member in archive if member.isfile())
            for key, group in itertools.groupby(members, _key):
                yield _sample(archive, key, list(group))
    except tarfile.TarError as error:
        problem = f"the shard breaks off or is no tar file (it must not be compressed): {error}"
        yield ["", 0, 0, 0, "", problem]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _key(member: tarfile.TarInfo) -> str:
    """What the files of a sample have in common: folder and name up to the first dot."""
    folder, _, name = member.name.rpartition("/")
    return f"{folder}:{name.partition('.')[0]}"


def _sample(archive: tarfile.TarFile, key: str, members: list[tarfile.TarInfo]) -> list[Any]:
    audio = next((m for m in members if Path(m.name).suffix.lower() in AUDIO_SUFFIXES), None)
    if audio is None:
        return [key, 0, 0, 0, "", f"there is no audio with it ({', '.join(AUDIO_SUFFIXES)})"]
    text, problem = _text(archive, members)
    file = archive.extractfile(audio)
    assert file is not None
    data = file.read()
    if len(data) < audio.size:
        raise tarfile.ReadError("unexpected end of data")
    finding = inspect_sound(io.BytesIO(data), len(data))
    name = audio.name.replace("/", ":")
    return [name, audio.offset_data, audio.size, finding.seconds, text, finding.problem or problem]


def _text(archive: tarfile.TarFile, members: list[tarfile.TarInfo]) -> tuple[str, str | None]:
    problem = "there is no .json or .txt with it"
    for member in members:
        suffix = Path(member.name).suffix.lower()
        if suffix not in (".json", ".txt"):
            continue
        file = archive.extractfile(member)
        assert file is not None
        try:
            content = file.read().decode("utf-8-sig")
            text = json.loads(content)["text"] if suffix == ".json" else " ".join(content.split())
            if not isinstance(text, str):
                raise TypeError
            return text, None
        except (ValueError, KeyError, TypeError):
            problem = f"{member.name} has no text in it"
    return "", problem
