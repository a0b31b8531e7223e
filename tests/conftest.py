"""Fixtures of all tests: a corpus of tones that a recogniser learns in seconds, and settings of a short training."""

import os
import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

if not torch.cuda.is_available():
    # Without a GPU its kernels are interpreted. Triton reads this when it is imported, by whomever.
    os.environ["TRITON_INTERPRET"] = "1"

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.data.manifest import Utterance, manifest_line
from blocksparse_rnn.training.checkpoints import Checkpoints

RATE = 16000


def write_tones(folder: Path, name: str, count: int, seed: int) -> Path:
    """A manifest of texts in which every letter is a tone of its own."""
    rng, noise = random.Random(seed), np.random.default_rng(seed)
    lines = []
    for i in range(count):
        text = "".join(rng.choice("abcd ") for _ in range(rng.randint(4, 9))).strip() or "a"
        wave = noise.normal(0, 0.001, int(RATE * 0.16 * (len(text) + 1)))
        for k, letter in enumerate(text):
            t = np.arange(int(RATE * 0.1)) / RATE
            start = int(RATE * 0.16 * k) + 800
            tone = np.sin(2 * np.pi * (500 + 700 * "abcd ".index(letter)) * t)
            wave[start : start + len(tone)] += 0.3 * tone
        path = folder / f"{name}-{i}.flac"
        soundfile.write(path, wave, RATE)
        lines.append(manifest_line(Utterance(path, len(wave) / RATE, text), folder))
    manifest = folder / f"{name}.jsonl"
    manifest.write_text("".join(lines))
    return manifest


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tones")
    return {
        s: write_tones(folder, s, n, k) for k, (s, n) in enumerate([("train", 40), ("dev", 6), ("test", 6)])
    }


@pytest.fixture
def tone_settings(tones: dict[str, Path], tmp_path: Path):
    """Settings of a training on tones that takes a second or two; takes overrides."""

    def make(*overrides: str) -> Settings:
        data = [f"data.{split}={path}" for split, path in tones.items()]
        base = ["scale=mini", "model=gru", "width=16", "data=manifest", "logger=csv", "workers=0", "batch=8"]
        run = [f"outputs={tmp_path / 'outputs'}", "trainer.max_epochs=3", "trainer.accelerator=cpu"]
        return compose_settings([*base, *run, *data, *overrides])

    return make


class PowerCut(Exception):
    """Ends a training as a power cut would: nothing is saved on the way out."""


@pytest.fixture
def power_cut(monkeypatch: pytest.MonkeyPatch):
    """Within `power_cut(after)` a training saves its checkpoint at that step and breaks off at the next."""

    @contextmanager
    def cut(after: int):
        on_batch_end = Checkpoints.on_train_batch_end

        def end(self, trainer, *rest):
            on_batch_end(self, trainer, *rest)
            if trainer.global_step == after:
                self._save_last(trainer)
            if trainer.global_step == after + 1:
                raise PowerCut

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "on_train_batch_end", end)
            with pytest.raises(PowerCut):
                yield

    return cut
