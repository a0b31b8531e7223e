"""Ways in which a recording can be unusable, or only unusual, and the reason given for each."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

RATE = 16000


def sing(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    """A tone of 440 Hz with a little noise."""
    t = np.arange(int(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * 440 * t) + np.random.default_rng(0).normal(0, 0.01, len(t))


def _truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def _not_a_number(path: Path) -> None:
    wave, rate = soundfile.read(path)
    wave[len(wave) // 2] = np.nan
    soundfile.write(path, wave, rate, format="WAV", subtype="FLOAT")


def _two_hours(path: Path) -> None:
    noise = np.random.default_rng(0).integers(-9, 9, 7200 * 1000, dtype=np.int16)
    soundfile.write(path, noise, 1000, subtype="PCM_U8")


def _stereo(path: Path) -> None:
    wave, rate = soundfile.read(path)
    places = np.arange(int(len(wave) * 44100 / rate)) * rate / 44100
    channel = np.interp(places, np.arange(len(wave)), wave)
    soundfile.write(path, np.stack([channel, channel], 1), 44100)


def _rewritten(**form: str) -> Callable[[Path], None]:
    return lambda path: soundfile.write(path, *soundfile.read(path), **form)


WAYS: dict[str, tuple[Callable[[Path], object], str | None]] = {
    # what is done to a .wav beside its .txt, and how the reason begins; None: it can be used
    "truncated": (_truncated, "truncated: "),
    "zero bytes": (lambda wav: wav.write_bytes(b""), "the file is empty (0 bytes)"),
    "wrong extension": (_rewritten(format="FLAC"), None),
    "text renamed to wav": (lambda wav: shutil.copy(wav.with_suffix(".txt"), wav), "not readable as audio: "),
    "NaN samples": (_not_a_number, "has samples that are not finite numbers"),
    "3 ms": (lambda wav: soundfile.write(wav, np.full(48, 0.1), RATE), "too short for its text: 0 output"),
    "2 h": (_two_hours, "lasts 7200.00 s, longer than the 60 s"),
    "stereo 44.1 kHz": (_stereo, None),
    "8-bit": (_rewritten(subtype="PCM_U8"), None),
    "missing": (lambda wav: wav.unlink(), "there is no audio of that name beside it"),
    "empty text": (lambda wav: wav.with_suffix(".txt").write_text(" \n"), "its text is empty"),
    "text too long for CTC": (
        lambda wav: wav.with_suffix(".txt").write_text("abcd" * 100),
        "too short for its text: ",
    ),
}
