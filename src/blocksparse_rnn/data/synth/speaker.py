"""One utterance of synthetic speech: sentence, voice, loudness, silence and noise, all drawn from its index.

Shapes: S samples.
"""

import dataclasses
import hashlib
import io
import json
import math
import random
import string
import zlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import soundfile
from numpy.typing import NDArray

from blocksparse_rnn.data.synth.espeak import MEN, WOMEN, Espeak
from blocksparse_rnn.data.synth.sentences import Grammar

SAMPLE_RATE = 16000

# Part of the name of a corpus; raise it when the same settings give other sentences or samples.
FORMAT = 1
_MAX_HELD_OUT_HOURS = 0.5
_SPEECH_DB = (-30.0, -20.0)  # loudness of the speech before noise, relative to full scale
_SILENCE = (0.05, 0.3)  # seconds before and after the speech
_PEAK = 0.95
_NOISE_SLOPES = {"white": 0.0, "pink": 1.0, "brown": 2.0}  # power falls as 1 / frequency ** slope


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All settings that determine a corpus; ranges are (lowest, highest)."""

    hours: float
    vocabulary: int
    accents: tuple[str, ...]
    voices: int
    snr_db: tuple[float, ...]
    rate_wpm: tuple[int, ...]
    pitch: tuple[int, ...]
    seed: int
    held_out: float | None = None
    typos: float | None = None

    @property
    def name(self) -> str:
        """Name of the corpus folder: readable, and unique to the settings."""
        # Without settings that are None, so that a new setting leaves the names of existing corpora unchanged.
        given = {key: value for key, value in dataclasses.asdict(self).items() if value is not None}
        settings = json.dumps({"format": FORMAT, **given}, sort_keys=True)
        return f"synth-{self.hours:g}h-{self.vocabulary}w-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"

    def seconds(self, split: str) -> float:
        """Wanted duration of a split."""
        if split == "train":
            return 3600 * self.hours
        hours = self.hours / 10 if self.held_out is None else self.hours * self.held_out
        return 3600 * min(hours, _MAX_HELD_OUT_HOURS)


class Spoken(NamedTuple):
    """An utterance as a worker returns it."""

    text: str
    samples: int
    flac: bytes


def split_variants(voices: int) -> dict[str, list[str]]:
    """Divide the first `voices` variants: an eighth, at least two, each for dev and test, the rest for train.

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
    """The split of a sentence, a function of its text, so that no sentence is in two splits."""
    return {0: "dev", 1: "test"}.get(zlib.crc32(sentence.encode()) % 10, "train")


def draw_sentence(grammar: Grammar, split: str, rng: random.Random) -> str:
    """Draw a sentence that belongs to `split`."""
    while True:
        sentence = grammar.sentence(rng)
        if sentence_split(sentence) == split:
            return sentence


def rng_of(recipe: Recipe, split: str, index: int) -> random.Random:
    """Random numbers of one utterance; the first draw its sentence."""
    return random.Random(f"{recipe.seed}/{split}/{index}")


def unseen_trigrams(sentences: Iterable[str], seen: Iterable[str]) -> float:
    """Share of the word trigrams of `sentences` that do not occur in `seen`."""
    known = {trigram for sentence in seen for trigram in _trigrams(sentence)}
    unseen = [trigram not in known for sentence in sentences for trigram in _trigrams(sentence)]
    return sum(unseen) / len(unseen)


def _trigrams(sentence: str) -> Iterator[tuple[str, str, str]]:
    words = sentence.split()
    return zip(words, words[1:], words[2:], strict=False)


class Speaker:
    """Makes utterances, each a function of its split and index."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.grammar = Grammar(recipe.vocabulary)
        self.variants = split_variants(recipe.voices)
        self.espeak = Espeak()

    def utterance(self, split: str, index: int) -> Spoken:
        """Make one utterance."""
        rng = rng_of(self.recipe, split, index)
        text = draw_sentence(self.grammar, split, rng)
        voice = f"{rng.choice(self.recipe.accents)}+{rng.choice(self.variants[split])}"
        rate_wpm, pitch = rng.randint(*self.recipe.rate_wpm), rng.randint(*self.recipe.pitch)
        speech_S = resample(*self.espeak.say(text, voice, rate_wpm, pitch))
        wave_S = recorded(speech_S, rng.uniform(*self.recipe.snr_db), rng)
        return Spoken(text, len(wave_S), _flac(wave_S))


def with_label_noise(text: str, share: float, rng: random.Random) -> str:
    """Replace each letter by another one with probability `share`; spaces stay."""
    letters = string.ascii_lowercase
    return "".join(
        rng.choice(letters.replace(letter, "")) if letter in letters and rng.random() < share else letter
        for letter in text
    )


def recorded(speech_S: NDArray[np.floating], snr_db: float, rng: random.Random) -> NDArray[np.float32]:
    """Speech as from a microphone: at a random loudness, with silence before and after, and noise throughout.

    The mean power of the noise is `snr_db` below that of the speech without the silence.
    """
    gain = 10 ** (rng.uniform(*_SPEECH_DB) / 20) / _rms(speech_S)
    before, after = (round(rng.uniform(*_SILENCE) * SAMPLE_RATE) for _ in range(2))
    wave_S = np.pad(gain * speech_S, (before, after))
    noise_S = noise(len(wave_S), rng.choice(list(_NOISE_SLOPES)), rng.getrandbits(64))
    wave_S += noise_S * gain * _rms(speech_S) * 10 ** (-snr_db / 20)
    return wave_S * min(1.0, _PEAK / np.abs(wave_S).max())


def noise(length: int, colour: str, seed: int) -> NDArray[np.floating]:
    """White, pink or brown noise of shape (length,) with a mean power of 1."""
    padded = -(-length // 1024) * 1024  # lengths with large prime factors make the Fourier transform slow
    rng = np.random.default_rng(seed)
    real, imaginary = rng.standard_normal((2, padded // 2 + 1), dtype=np.float32)
    # Flat below 50 Hz: otherwise most of brown noise would be inaudibly low.
    frequency = np.maximum(np.fft.rfftfreq(padded, 1 / SAMPLE_RATE), 50)
    falling = (frequency ** (-_NOISE_SLOPES[colour] / 2)).astype(np.float32)
    wave_S = np.fft.irfft((real + 1j * imaginary) * falling, padded)[:length]
    return wave_S / _rms(wave_S)


def resample(samples_S: NDArray[np.int16], rate: int) -> NDArray[np.floating]:
    """Resample by truncating the spectrum; as fast here as polyphase filters, and needs only numpy."""
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
