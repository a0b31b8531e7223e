"""`data=synth`: speech with no download, spoken by eSpeak NG; the same settings give the same bytes.

An utterance depends on the settings, its split and its index alone, so any number of workers makes
the same corpus. A corpus is built once, in a temporary folder that takes its final name when it is
complete, and checked on every later start.

S samples.
"""

import contextlib
import dataclasses
import difflib
import fcntl
import hashlib
import io
import itertools
import json
import math
import os
import pickle
import queue
import random
import shutil
import subprocess
import sys
import zlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import IO, Any, NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray
from tqdm import tqdm

from blocksparse_rnn.data.espeak import ACCENTS, MEN, WOMEN, Espeak
from blocksparse_rnn.data.manifest import Utterance, manifest_line, read_manifest
from blocksparse_rnn.data.sentences import Grammar
from blocksparse_rnn.errors import UserError, cannot_write
from blocksparse_rnn.files import durable_file, flush_folder

SAMPLE_RATE = 16000
SPLITS = ("train", "dev", "test")

# Part of a corpus's hash; raise it when the same settings begin to give other sentences or samples.
_FORMAT = 1
_MAX_HOURS = 1000
_MAX_HELD_OUT_HOURS = 0.5
_MIN_VOICES = 6  # a woman and a man for each split
_SPEECH_DB = (-30.0, -20.0)  # loudness of the speech before noise, relative to full scale
_SILENCE = (0.05, 0.3)  # seconds before and after the speech
_PEAK = 0.95
_NOISE_SLOPES = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # power falls as 1 / frequency ** slope
_CHUNK = 8  # utterances a worker makes at a time


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings that a corpus depends on; ranges are (lowest, highest)."""

    hours: float
    vocabulary: int
    accents: tuple[str, ...]
    voices: int
    snr_db: tuple[float, ...]
    rate_wpm: tuple[int, ...]
    pitch: tuple[int, ...]
    seed: int

    @property
    def name(self) -> str:
        """Name of the corpus folder: readable, and unique to the settings."""
        settings = json.dumps({"format": _FORMAT, **dataclasses.asdict(self)}, sort_keys=True)
        return f"synth-{self.hours:g}h-{self.vocabulary}w-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    def seconds(self, split: str) -> float:
        """Wanted length of a split: dev and test are a tenth of train, half an hour at most."""
        hours = self.hours if split == "train" else min(self.hours / 10, _MAX_HELD_OUT_HOURS)
        return 3600 * hours


class Spoken(NamedTuple):
    """An utterance on its way from a worker to the disk."""

    text: str
    samples: int
    flac: bytes


class SynthSpeech:
    """A corpus spoken by eSpeak NG: random sentences, voices, rates, pitches and noise.

    Voices and sentences of train, dev and test are disjoint.

    Args:
        folder: corpora lie here, one folder each.
        hours: length of train; dev and test are a tenth of it, half an hour each at most.
        vocabulary: number of different words that can occur.
        accents: names among `espeak.ACCENTS`; every voice speaks with all of them.
        voices: number of voices, over all splits together.
        snr_db: lowest and highest ratio of speech to noise, in dB.
        rate_wpm: lowest and highest speaking rate, in eSpeak's words per minute.
        pitch: lowest and highest pitch on eSpeak's scale of 0 to 99, where 50 is a voice's own.
        seed: of the corpus; training has its own.
        workers: processes that speak; None takes all cores.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self,
        *,
        folder: str,
        hours: float,
        vocabulary: int,
        accents: list[str],
        voices: int,
        snr_db: list[float],
        rate_wpm: list[int],
        pitch: list[int],
        seed: int,
        workers: int | None,
    ) -> None:
        self.recipe = Recipe(
            hours=float(hours),
            vocabulary=vocabulary,
            accents=tuple(accents),
            voices=voices,
            snr_db=tuple(map(float, snr_db)),
            rate_wpm=tuple(rate_wpm),
            pitch=tuple(pitch),
            seed=seed,
        )
        problems = [*_problems(self.recipe)]
        if workers is not None and workers < 1:
            problems.append(f"data.workers={workers}: must be at least 1, or null for all cores")
        if problems:
            raise UserError("; ".join(problems))
        self.workers = workers or _cores()
        self.folder = Path(folder) / self.recipe.name

    def prepare(self) -> dict[str, list[Utterance]]:
        """Build the corpus, unless it is there, and check every file of it.

        Raises:
            UserError: eSpeak NG is missing, the disk is full or not writable, a worker died, or a file
                of the corpus is missing or damaged.
        """
        if not self.folder.is_dir():
            with _lock(self.folder):
                # Whoever held the lock before us may have built it.
                if not self.folder.is_dir():
                    self._build()
        _check(self.folder)
        return {split: read_manifest(self.folder / f"{split}.jsonl") for split in SPLITS}

    def _build(self) -> None:
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        try:
            if partial.exists():  # of a build that was killed
                shutil.rmtree(partial)
            partial.mkdir()
            texts = self._speak(partial)
            self._describe(partial, texts)
            os.replace(partial, self.folder)
            flush_folder(self.folder.parent)
        except OSError as error:
            raise cannot_write(error.filename or partial, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _speak(self, folder: Path) -> dict[str, list[str]]:
        """Write audio and manifests of all splits; return what is said in each."""
        total_hours = sum(self.recipe.seconds(split) for split in SPLITS) / 3600
        with (
            ThreadPoolExecutor(self.workers) as threads,
            _Workers(self.recipe, self.workers) as workers,
            tqdm(
                desc="speaking",
                total=total_hours,
                bar_format="{desc} {percentage:3.0f}% {bar} {n:.2f} of {total:.2f} h [{elapsed}<{remaining}]",
                disable=None,  # no bar where there is no terminal
            ) as bar,
        ):
            return {
                split: self._write_split(split, folder, _in_order(workers, threads, split), bar)
                for split in SPLITS
            }

    def _write_split(
        self, split: str, folder: Path, spoken: Generator[Spoken, None, None], bar: tqdm
    ) -> list[str]:
        """Write utterances until the split is long enough; whatever the workers made beyond is dropped."""
        texts: list[str] = []
        samples, wanted = 0, self.recipe.seconds(split) * SAMPLE_RATE
        least = 1 if split == "train" else 2
        audio = folder / "audio" / split
        with durable_file(folder / f"{split}.jsonl", "w") as manifest, contextlib.closing(spoken):
            audio.mkdir(parents=True)
            while samples < wanted or len(texts) < least:
                text, length, flac = next(spoken)
                path = audio / f"{len(texts):06d}.flac"
                path.write_bytes(flac)
                utterance = Utterance(path, length / SAMPLE_RATE, text)
                manifest.write(manifest_line(utterance, folder, size=len(flac), crc32=zlib.crc32(flac)))
                texts.append(text)
                samples += length
                bar.update(length / SAMPLE_RATE / 3600)
        return texts

    def _describe(self, folder: Path, texts: dict[str, list[str]]) -> None:
        manifests = {f"{split}.jsonl": (folder / f"{split}.jsonl").read_bytes() for split in SPLITS}
        about = {
            "settings": {"format": _FORMAT, **dataclasses.asdict(self.recipe)},
            "espeakng_loader": version("espeakng-loader"),
            "utterances": {split: len(said) for split, said in texts.items()},
            "variants": split_variants(self.recipe.voices),
            "unseen_test_trigrams": round(unseen_trigrams(texts["test"], texts["train"]), 4),
            "manifests": {
                name: {"size": len(data), "crc32": zlib.crc32(data)} for name, data in manifests.items()
            },
        }
        with durable_file(folder / "corpus.json", "w") as file:
            file.write(json.dumps(about, indent=2) + "\n")


def _problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with the settings, a line each."""
    if not 0 < recipe.hours <= _MAX_HOURS:
        yield f"data.hours={recipe.hours:g}: must be above 0 and at most {_MAX_HOURS}"
    try:
        Grammar(recipe.vocabulary)
    except UserError as error:
        yield str(error)
    if not recipe.accents:
        yield f"data.accents=[]: name at least one of {', '.join(ACCENTS)}"
    for accent in recipe.accents:
        if accent not in ACCENTS:
            nearest = difflib.get_close_matches(accent, ACCENTS, n=1, cutoff=0)[0]
            yield (
                f"data.accents={accent}: there is no such accent, did you mean {nearest}? "
                f"There are {', '.join(ACCENTS)}"
            )
    if not _MIN_VOICES <= recipe.voices <= len(WOMEN + MEN):
        yield f"data.voices={recipe.voices}: must be from {_MIN_VOICES} to {len(WOMEN + MEN)}"
    yield from _range_problems("snr_db", recipe.snr_db, -20, 100)
    yield from _range_problems("rate_wpm", recipe.rate_wpm, 80, 450)
    yield from _range_problems("pitch", recipe.pitch, 0, 99)
    if recipe.seed < 0:
        yield f"data.seed={recipe.seed}: must not be negative"


def _range_problems(name: str, values: tuple[float, ...], lowest: int, highest: int) -> Iterator[str]:
    shown = f"data.{name}=[{', '.join(f'{value:g}' for value in values)}]"
    if len(values) != 2:
        yield f"{shown}: must be two numbers, the lowest and the highest"
    elif not all(lowest <= value <= highest for value in values):
        yield f"{shown}: both must be from {lowest} to {highest}"
    elif values[0] > values[1]:
        yield f"{shown}: the first must not exceed the second"


def split_variants(voices: int) -> dict[str, list[str]]:
    """Share the first `voices` variants out: an eighth, at least two, each for dev and test.

    Every split has women and men.
    """
    women = WOMEN[: voices // 2]
    men = MEN[: voices - len(women)]
    held_out = max(2, voices // 8)
    w = held_out // 2
    m = held_out - w
    return {
        "train": women[2 * w :] + men[2 * m :],
        "dev": women[w : 2 * w] + men[m : 2 * m],
        "test": women[:w] + men[:m],
    }


def sentence_split(sentence: str) -> str:
    """The split that a sentence belongs to, by its hash: none is ever in two of them."""
    return {0: "dev", 1: "test"}.get(zlib.crc32(sentence.encode()) % 10, "train")


def draw_sentence(grammar: Grammar, split: str, rng: random.Random) -> str:
    """Draw a sentence that belongs to `split`."""
    while True:
        sentence = grammar.sentence(rng)
        if sentence_split(sentence) == split:
            return sentence


def unseen_trigrams(sentences: Iterable[str], seen: Iterable[str]) -> float:
    """Share of the word trigrams of `sentences` that no sentence of `seen` has."""
    known = {trigram for sentence in seen for trigram in _trigrams(sentence)}
    unseen = [trigram not in known for sentence in sentences for trigram in _trigrams(sentence)]
    return sum(unseen) / len(unseen)


def _trigrams(sentence: str) -> Iterator[tuple[str, str, str]]:
    words = sentence.split()
    return zip(words, words[1:], words[2:], strict=False)


class Speaker:
    """Makes utterances, each from its split and index alone."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.grammar = Grammar(recipe.vocabulary)
        self.variants = split_variants(recipe.voices)
        self.espeak = Espeak()

    def chunk(self, split: str, start: int) -> list[Spoken]:
        """Make the `_CHUNK` utterances from `start` on."""
        return [self.utterance(split, index) for index in range(start, start + _CHUNK)]

    def utterance(self, split: str, index: int) -> Spoken:
        """Make one utterance."""
        rng = random.Random(f"{self.recipe.seed}/{split}/{index}")
        text = draw_sentence(self.grammar, split, rng)
        voice = f"{rng.choice(self.recipe.accents)}+{rng.choice(self.variants[split])}"
        rate_wpm, pitch = rng.randint(*self.recipe.rate_wpm), rng.randint(*self.recipe.pitch)
        speech_S = resample(*self.espeak.say(text, voice, rate_wpm, pitch))
        wave_S = recorded(speech_S, rng.uniform(*self.recipe.snr_db), rng)
        return Spoken(text, len(wave_S), _flac(wave_S))


def recorded(speech_S: NDArray[np.floating], snr_db: float, rng: random.Random) -> NDArray[np.float32]:
    """Speech as if through a microphone: random loudness, silence around it, noise all over.

    The noise lies `snr_db` below the speech, in mean power over the speech without the silence.
    """
    gain = 10 ** (rng.uniform(*_SPEECH_DB) / 20) / _rms(speech_S)
    before, after = (round(rng.uniform(*_SILENCE) * SAMPLE_RATE) for _ in range(2))
    wave_S = np.pad(gain * speech_S, (before, after))
    noise_S = noise(len(wave_S), rng.choice(list(_NOISE_SLOPES)), rng.getrandbits(64))
    wave_S += noise_S * gain * _rms(speech_S) * 10 ** (-snr_db / 20)
    return wave_S * min(1.0, _PEAK / np.abs(wave_S).max())


def noise(length: int, colour: str, seed: int) -> NDArray[np.floating]:
    """White, pink or brown noise of shape (length,) with a mean power of 1."""
    padded = -(-length // 1024) * 1024  # the Fourier transform of an awkward length is slow
    rng = np.random.default_rng(seed)
    real, imaginary = rng.standard_normal((2, padded // 2 + 1), dtype=np.float32)
    # Level below 50 Hz: most of brown noise would be too low to be heard.
    frequency = np.maximum(np.fft.rfftfreq(padded, 1 / SAMPLE_RATE), 50)
    falling = (frequency ** (-_NOISE_SLOPES[colour] / 2)).astype(np.float32)
    wave_S = np.fft.irfft((real + 1j * imaginary) * falling, padded)[:length]
    return wave_S / _rms(wave_S)


def resample(samples_S: NDArray[np.int16], rate: int) -> NDArray[np.floating]:
    """Resample by cutting the spectrum off; as fast here as polyphase filters, and needs numpy alone."""
    common = math.gcd(rate, SAMPLE_RATE)
    down, up = rate // common, SAMPLE_RATE // common
    blocks = -(-len(samples_S) // (16 * down)) * 16
    spectrum = np.fft.rfft(samples_S.astype(np.float32) / 32768, blocks * down)
    wave_S = np.fft.irfft(spectrum[: blocks * up // 2 + 1], blocks * up) * (up / down)
    return wave_S[: len(samples_S) * up // down]


def _rms(wave_S: NDArray[np.floating]) -> float:
    return float(np.sqrt(np.mean(wave_S**2)))


def _flac(wave_S: NDArray[np.floating]) -> bytes:
    file = io.BytesIO()
    samples_S = np.round(32767 * wave_S).astype(np.int16)
    soundfile.write(file, samples_S, SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return file.getvalue()


class _Workers:
    """Processes that run `serve`, each asked by one thread at a time.

    Plain programs on pipes rather than `multiprocessing`: that would import the main script, and with
    it torch, in each of them. They read until their standard input closes, so they end when we do,
    even if we are killed.
    """

    _program = "import sys; sys.path[:] = sys.argv[1:]; from blocksparse_rnn.data.synth import serve; serve()"

    def __init__(self, recipe: Recipe, count: int) -> None:
        self.recipe = recipe
        self.count = count
        self.processes: list[subprocess.Popen[bytes]] = []
        self.idle: queue.SimpleQueue[subprocess.Popen[bytes]] = queue.SimpleQueue()

    def __enter__(self) -> "_Workers":
        # Numerical libraries would start a thread per core in every one of them.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        try:
            for _ in range(self.count):
                process = subprocess.Popen(
                    [sys.executable, "-c", self._program, *sys.path],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    env=environment,
                    process_group=0,  # Ctrl-C reaches us alone, and we end them
                )
                self.processes.append(process)
                self.idle.put(process)
        except OSError as error:
            self._end()
            raise UserError(
                f"cannot start {self.count} processes ({error.strerror}); set data.workers lower"
            ) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def speak(self, split: str, start: int) -> list[Spoken]:
        """Have the next idle process make a chunk of utterances."""
        process = self.idle.get()
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            pickle.dump((self.recipe, split, start), process.stdin)
            process.stdin.flush()
            reply = pickle.load(process.stdout)
        except (EOFError, OSError, pickle.UnpicklingError):
            raise UserError(
                "a process that speaks the corpus died, perhaps killed for lack of memory; "
                f"start again with fewer than data.workers={self.count}"
            ) from None
        finally:
            self.idle.put(process)
        if isinstance(reply, UserError):
            raise reply
        return reply


def serve() -> None:
    """The whole of a worker process: chunks of utterances, as asked for on standard input, until it closes."""
    speaker: Speaker | None = None
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            recipe, split, start = pickle.load(sys.stdin.buffer)
            reply: list[Spoken] | UserError
            try:
                speaker = speaker or Speaker(recipe)
                reply = speaker.chunk(split, start)
            except UserError as error:
                reply = error
            pickle.dump(reply, sys.stdout.buffer)
            sys.stdout.buffer.flush()


def _in_order(workers: _Workers, threads: ThreadPoolExecutor, split: str) -> Generator[Spoken, None, None]:
    """Utterances 0, 1, 2, ... without end, a bounded number of chunks ahead."""
    ahead: deque[Future[list[Spoken]]] = deque()
    try:
        for start in itertools.count(0, _CHUNK):
            ahead.append(threads.submit(workers.speak, split, start))
            if len(ahead) == 2 * workers.count:
                yield from ahead.popleft().result()
    finally:
        for chunk in ahead:
            chunk.cancel()


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a corpus; the system drops it when the process ends, however it ends."""
    path = folder.with_name(f".{folder.name}.lock")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        file: IO[Any] = open(path, "a")  # noqa: SIM115
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another process is building {folder}; waiting for it", file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise cannot_write(path, error) from error
        yield


def _check(folder: Path) -> None:
    """Compare every file of a corpus with the size and checksum noted when it was built."""
    about = folder / "corpus.json"
    try:
        manifests = json.loads(about.read_bytes())["manifests"]
        expected = [(folder / name, note["size"], note["crc32"]) for name, note in manifests.items()]
    except FileNotFoundError:
        raise _unusable(about, "is missing", folder) from None
    except (OSError, ValueError, LookupError, TypeError):
        raise _unusable(about, "is damaged", folder) from None
    with ThreadPoolExecutor() as threads:
        _compare(expected, folder, threads)
        for manifest, *_ in expected:
            rows = map(json.loads, manifest.read_text(encoding="utf-8").splitlines())
            audio = [(folder / row["audio_filepath"], row["size"], row["crc32"]) for row in rows]
            _compare(audio, folder, threads)


def _compare(expected: list[tuple[Path, int, int]], folder: Path, threads: ThreadPoolExecutor) -> None:
    for (path, _, _), problem in zip(expected, threads.map(_file_problem, expected), strict=True):
        if problem:
            raise _unusable(path, problem, folder)


def _file_problem(expected: tuple[Path, int, int]) -> str | None:
    path, size, crc32 = expected
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if len(data) == size and zlib.crc32(data) == crc32 else "is damaged"


def _unusable(path: Path, problem: str, folder: Path) -> UserError:
    return UserError(f"{path} {problem}; delete {folder} to have the corpus rebuilt")


def _cores() -> int:
    """Cores that we may use, which is fewer than the machine has in many a batch job."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
