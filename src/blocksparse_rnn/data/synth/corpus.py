"""`data=synth`: synthetic speech by eSpeak NG, without a download; the same settings give the same bytes.

An utterance is a function of the settings, its split and its index alone, so any number of workers
makes the same corpus. A corpus is built once, in a temporary folder that is renamed when it is complete,
and verified on every later start.
"""

import contextlib
import dataclasses
import difflib
import json
import math
import os
import random
import shutil
import zlib
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from blocksparse_rnn.data.checks import range_problem
from blocksparse_rnn.data.manifest import Utterance, manifest_line, read_manifest
from blocksparse_rnn.data.synth.espeak import ACCENTS, MEN, WOMEN
from blocksparse_rnn.data.synth.sentences import Grammar
from blocksparse_rnn.data.synth.speaker import (
    FORMAT,
    SAMPLE_RATE,
    Recipe,
    Spoken,
    draw_sentence,
    rng_of,
    split_variants,
    unseen_trigrams,
    with_label_noise,
)
from blocksparse_rnn.data.synth.workers import SpeakerWorkers, in_order
from blocksparse_rnn.errors import UserError, cannot_write
from blocksparse_rnn.files import cores, durable_file, flush_folder, only_one

SPLITS = ("train", "dev", "test")

_MAX_HOURS = 1000
_LEAST_UNSEEN = 0.2
_SECONDS_PER_SENTENCE = 3.9  # on average
_MAX_TYPOS = 0.5  # beyond it words can hardly be told apart
_MIN_VOICES = 6  # a woman and a man for each split


class SynthSpeech:
    """A corpus synthesised by eSpeak NG: random sentences, voices, rates, pitches and noise.

    Voices and sentences of train, dev and test are disjoint.

    Args:
        folder: of all corpora; each has a folder of its own in it.
        hours: duration of train.
        vocabulary: number of different words.
        accents: names among `espeak.ACCENTS`; every voice speaks with all of them.
        voices: number of voices of all splits together.
        snr_db: lowest and highest signal-to-noise ratio in dB.
        rate_wpm: lowest and highest speaking rate, in eSpeak's words per minute.
        pitch: lowest and highest pitch on eSpeak's scale of 0 to 99, where 50 is a voice's own.
        seed: of the corpus; training has its own.
        workers: processes that synthesise; None uses all cores.
        held_out: duration of dev and of test as a share of train's, at most half an hour each; None means a tenth.
        typos: label noise, the share of wrong letters in the reference transcripts of every split; None means 0.

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
        held_out: float | None = None,
        typos: float | None = None,
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
            held_out=None if held_out is None else float(held_out),
            typos=None if typos is None else float(typos),
        )
        problems = [*_problems(self.recipe)]
        if workers is not None and workers < 1:
            problems.append(f"data.workers={workers}: must be at least 1, or null for all cores")
        if problems:
            raise UserError("; ".join(problems))
        self.workers = workers or cores()
        self.folder = Path(folder) / self.recipe.name

    def prepare(self) -> dict[str, list[Utterance]]:
        """Build the corpus unless it exists, and verify every file of it.

        Raises:
            UserError: eSpeak NG is missing, the disk is full or not writable, a worker died, or a file
                of the corpus is missing or damaged.
        """
        if not self.folder.is_dir():
            with only_one(self.folder.with_name(f".{self.folder.name}.lock"), f"building {self.folder}"):
                # The process that held the lock before this one may have built it.
                if not self.folder.is_dir():
                    self._build()
        _check(self.folder)
        return {split: read_manifest(self.folder / f"{split}.jsonl") for split in SPLITS}

    def _build(self) -> None:
        _check_novelty(self.recipe)
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
        """Write audio and manifests of all splits; return the sentences of each."""
        total_hours = sum(self.recipe.seconds(split) for split in SPLITS) / 3600
        with (
            ThreadPoolExecutor(self.workers) as threads,
            contextlib.closing(SpeakerWorkers(self.recipe, self.workers)) as workers,
            tqdm(
                desc="synthesising",
                total=total_hours,
                bar_format="{desc} {percentage:3.0f}% {bar} {n:.2f} of {total:.2f} h [{elapsed}<{remaining}]",
                disable=None,  # no bar where there is no terminal
            ) as bar,
        ):
            return {
                split: self._write_split(split, folder, in_order(workers, threads, split), bar)
                for split in SPLITS
            }

    def _write_split(
        self, split: str, folder: Path, spoken: Generator[Spoken, None, None], bar: tqdm
    ) -> list[str]:
        """Write utterances until the split is long enough; further ones of the workers are dropped."""
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
                utterance = Utterance(path, length / SAMPLE_RATE, self._written(text, split, len(texts)))
                manifest.write(manifest_line(utterance, folder, size=len(flac), crc32=zlib.crc32(flac)))
                texts.append(text)
                samples += length
                bar.update(length / SAMPLE_RATE / 3600)
        return texts

    def _written(self, sentence: str, split: str, index: int) -> str:
        """The reference transcript of a sentence, with label noise if the settings have it."""
        if self.recipe.typos is None:
            return sentence
        # Its own random numbers, so that the audio is the same as without label noise.
        rng = random.Random(f"{self.recipe.seed}/{split}/{index}/typos")
        return with_label_noise(sentence, self.recipe.typos, rng)

    def _describe(self, folder: Path, texts: dict[str, list[str]]) -> None:
        manifests = {f"{split}.jsonl": (folder / f"{split}.jsonl").read_bytes() for split in SPLITS}
        about = {
            "settings": {"format": FORMAT, **dataclasses.asdict(self.recipe)},
            "espeakng_loader": version("espeakng-loader"),
            "utterances": {split: len(sentences) for split, sentences in texts.items()},
            "variants": split_variants(self.recipe.voices),
            "unseen_test_trigrams": round(unseen_trigrams(texts["test"], texts["train"]), 4),
            "manifests": {
                name: {"size": len(data), "crc32": zlib.crc32(data)} for name, data in manifests.items()
            },
        }
        with durable_file(folder / "corpus.json", "w") as file:
            file.write(json.dumps(about, indent=2) + "\n")


def _problems(recipe: Recipe) -> Iterator[str]:
    """Everything that is wrong with the settings."""
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
    ranges = {"snr_db": (-20, 100), "rate_wpm": (80, 450), "pitch": (0, 99)}
    for name, (lowest, highest) in ranges.items():
        if problem := range_problem(f"data.{name}", getattr(recipe, name), lowest, highest):
            yield problem
    if recipe.held_out is not None and not 0 < recipe.held_out <= 1:
        yield f"data.held_out={recipe.held_out:g}: must be above 0 and at most 1, or null for a tenth"
    if recipe.typos is not None and not 0 < recipe.typos <= _MAX_TYPOS:
        yield f"data.typos={recipe.typos:g}: must be above 0 and at most {_MAX_TYPOS:g}, or null for none"
    if recipe.seed < 0:
        yield f"data.seed={recipe.seed}: must not be negative"


def _check_novelty(recipe: Recipe) -> None:
    """Draw about as many sentences as the corpus will have, and refuse a vocabulary that is too small for them.

    Raises:
        UserError: most word trigrams of test would occur in train, so test would not measure generalisation.
    """
    grammar = Grammar(recipe.vocabulary)
    texts = {
        split: [
            draw_sentence(grammar, split, rng_of(recipe, split, index))
            for index in range(math.ceil(recipe.seconds(split) / _SECONDS_PER_SENTENCE))
        ]
        for split in ("train", "test")
    }
    share = unseen_trigrams(texts["test"], texts["train"])
    if share < _LEAST_UNSEEN:
        raise UserError(
            f"data.vocabulary={recipe.vocabulary}: too small for data.hours={recipe.hours:g}, only {share:.0%} of "
            f"the test's word trigrams would be new (at least {_LEAST_UNSEEN:.0%}); raise data.vocabulary or "
            "lower data.hours"
        )


def _check(folder: Path) -> None:
    """Compare every file of a corpus with the size and checksum noted when it was built.

    Raises:
        UserError: a file is missing, unreadable or damaged.
    """

    def check(name: str, size: int, crc32: int) -> None:
        try:
            data = (folder / name).read_bytes()
        except FileNotFoundError:
            raise unusable(name, "is missing") from None
        except OSError as error:
            raise unusable(name, f"cannot be read ({error.strerror})") from None
        if len(data) != size or zlib.crc32(data) != crc32:
            raise unusable(name, "is damaged")

    def unusable(name: str, problem: str) -> UserError:
        return UserError(f"{folder / name} {problem}; delete {folder} to have the corpus rebuilt")

    try:
        notes = json.loads((folder / "corpus.json").read_bytes())["manifests"]
        manifests = [(name, note["size"], note["crc32"]) for name, note in notes.items()]
    except FileNotFoundError:
        raise unusable("corpus.json", "is missing") from None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise unusable("corpus.json", "is damaged") from None
    with ThreadPoolExecutor() as threads:
        for name, size, crc32 in manifests:
            check(name, size, crc32)
            rows = map(json.loads, (folder / name).read_text(encoding="utf-8").splitlines())
            list(threads.map(lambda row: check(row["audio_filepath"], row["size"], row["crc32"]), rows))
