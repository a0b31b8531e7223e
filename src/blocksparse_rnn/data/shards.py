"""`data=shards`: corpora of any size as tar files on a disk or a mounted file server, in webdataset's format.

A sample is files of one name: `key.flac` (or .wav, .ogg, .mp3) and `key.json` with a `text`, or `key.txt`. A shard
is read once, and an index with the position and duration of every sample is written. The order of batches needs the
indices of a few shards at a time, and loading reads a sample's bytes from its position. So order, sharing among ranks
and workers, and resuming are as exact as for files, and memory does not grow with the hours.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

import numpy as np
import soundfile
from tqdm import tqdm

from blocksparse_rnn.data.audio import AUDIO_SUFFIXES, read_samples
from blocksparse_rnn.data.checks import Reject, keep_apart
from blocksparse_rnn.data.inspection import LONGEST, inspect_sound, length_problem, stamp
from blocksparse_rnn.data.sampler import BucketBatchSampler
from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import cores, durable_file, only_one

WINDOW = 16
"""Default number of shards whose samples are sorted and shuffled together."""


class Shards:
    """A corpus of three splits in shards.

    Args:
        train: a folder of .tar files, or a pattern of their names such as /data/train-*.tar.
        dev: likewise; chooses the best checkpoint.
        test: likewise; gives the final error rate.
        window: shards whose samples are sorted and shuffled together, drawn anew in each pass; None means 16.
        longest: maximum duration of an utterance in seconds; None means a minute.
        folder: keeps the indices of the shards.
        workers: threads that inspect shards; None uses all cores.

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
        self.folder = Path(folder) / "shards"
        self.workers = workers or cores()

    def prepare(self) -> dict[str, Sequence[Utterance]]:
        """Find the shards and inspect those that are new.

        Raises:
            UserError: there are none, one cannot be read, or dev or test shares one with train.
        """
        found = {split: _find(split, source) for split, source in self.sources.items()}
        keep_apart(found, "give patterns of names, such as FOLDER/train-*.tar")
        return {
            split: ShardedUtterances(self._inspect(shards), self.window, self.longest)
            for split, shards in found.items()
        }

    def _inspect(self, shards: list[Path]) -> list["Shard"]:
        with only_one(self.folder / "lock", "inspecting the same shards"):
            known = [Shard(path, self.folder / f"{_name(path)}.jsonl") for path in shards]
            new = [shard for shard in known if not shard.index.is_file()]
            with ThreadPoolExecutor(self.workers) as threads:
                done = threads.map(_write_index, new)
                for _ in tqdm(done, desc="inspecting", total=len(new), unit="shard", disable=None):
                    pass
        return known


@dataclass(frozen=True)
class Shard:
    """A tar file, and the file with its index: a row of name, position, seconds, text and problem for each sample."""

    path: Path
    index: Path

    def utterances(self, longest: float) -> Iterator[Utterance]:
        """All samples of the shard, unusable ones with their problems."""
        with open(self.index, encoding="utf-8") as rows:
            for row in rows:
                name, start, size, seconds, text, problem = json.loads(row)
                found = Utterance(self.path / name, seconds, text, place=(start, size) if size else None)
                yield replace(found, problem=problem or length_problem(found, seconds, longest))


class ShardedUtterances(Sequence[Utterance]):
    """The utterances of several shards, with those of a few shards in memory at a time.

    Args:
        shards: in the order of their indices.
        window: shards that are shuffled together.
        longest: maximum duration of an utterance in seconds.
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
        """Leave out the utterances that `check` rejects from now on, and return the rejects."""
        self._check = check
        rejects: list[Reject] = []
        counts = []
        for shard in self.shards:
            judged = [check(utterance) for utterance in shard.utterances(self.longest)]
            rejects += (verdict for verdict in judged if isinstance(verdict, Reject))
            counts.append(sum(isinstance(verdict, Utterance) for verdict in judged))
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
    """Batches by duration within a window of shards; with a single window, the batches of files.

    Each pass takes the shards in another order. Utterances left over at the end of a window, too few for
    a batch, go into the next, so that all passes have the same number of batches.

    Args:
        utterances: of shards.
        order: the other arguments of `BucketBatchSampler`, without weights.
    """

    def __init__(self, utterances: ShardedUtterances, **order: Any) -> None:
        super().__init__([], **order)
        self.utterances = utterances

    def utterances_per_pass(self) -> int:
        return len(self.utterances)

    def seconds(self, index: int) -> float:
        return self.utterances[index].duration

    def pass_batches(self, number: int, *, shuffled: bool) -> Iterator[list[int]]:
        """All batches of a pass, shuffled within each window, or the shortest of a window first."""
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
        """Numbers of the shards of each window, ascending within it."""
        order = list(range(len(self.utterances.shards)))
        if shuffled:
            random.Random(f"{self.seed}-{number}-shards").shuffle(order)
        size = self.utterances.window
        return [sorted(order[i : i + size]) for i in range(0, len(order), size)]


def read_place(utterance: Utterance) -> IO[bytes]:
    """The bytes of a sample in a shard.

    Raises:
        UserError: the shard cannot be read.
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
    """Write shards NAME-000000.tar, ... of about this size; audio files are copied unchanged.

    Shards of that name with higher numbers, from an earlier call, are deleted.

    Returns:
        the number of shards.

    Raises:
        UserError: webdataset is missing, or a file cannot be read.
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
    # Sentences in shards of an earlier call may be in another split now.
    written = {f"{name}-{number:06d}.tar" for number in range(shards)}
    for shard in folder.glob(f"{glob.escape(name)}-{'[0-9]' * 6}.tar"):
        if shard.name not in written:
            shard.unlink()
    return shards


def _audio_bytes(utterance: Utterance) -> tuple[str, bytes]:
    if utterance.offset is not None:
        wave_SC, rate = read_samples(utterance.audio, utterance.offset, utterance.duration)
        part = io.BytesIO()
        # FLAC holds integers only: values beyond full scale are clipped.
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


def _name(path: Path) -> str:
    """Name of a shard's index, another one once the shard has changed."""
    return hashlib.sha256(os.fsencode(" ".join(map(str, stamp(path))))).hexdigest()[:24]


def _write_index(shard: Shard) -> None:
    with durable_file(shard.index, "w") as index:
        index.writelines(json.dumps(row) + "\n" for row in _samples(shard.path))


def _samples(path: Path) -> Iterator[list[Any]]:
    """Inspect every sample, whose files follow one another, and give its row of the index.

    Raises:
        UserError: the disk failed, not the shard; such an error must not get into the index.
    """
    try:
        with tarfile.open(path, "r:") as archive:  # in a compressed one, samples have no position
            members = (member for member in archive if member.isfile())
            for key, group in itertools.groupby(members, _key):
                yield _sample(archive, key, list(group))
    except tarfile.TarError as error:
        problem = f"the shard breaks off or is no tar file (it must not be compressed): {error}"
        yield ["", 0, 0, 0, "", problem]
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None


def _key(member: tarfile.TarInfo) -> str:
    """The key of a sample, common to its files: folder and name up to the first dot."""
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
