"""Whole recognisers, features to text, one utterance on one core: dense in torch beside the exported file."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml
from torch import Tensor, nn

from blocksparse_rnn.bench.measure import medians
from blocksparse_rnn.bench.products import Row
from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.inference.export import export_run, load_run
from blocksparse_rnn.inference.sources import corpus_split
from blocksparse_rnn.inference.transcriber import Transcriber
from blocksparse_rnn.models.deepspeech2 import DeepSpeech2
from blocksparse_rnn.pruning.blocks import as_grid
from blocksparse_rnn.pruning.prunable import count_zeros, prunable_matrices
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runtime.bsr import DTYPES
from blocksparse_rnn.speech.metrics import ErrorCounts
from blocksparse_rnn.training.recogniser import Recogniser
from blocksparse_rnn.training.train import build_recogniser

PAPER_SCALE = (("gru", 2560), ("rnn", 1760), ("rnn", 2560))
"""Cell and width of the models whose blocks are drawn at random, at the paper's scale."""
SPARSITY = 0.9
SECONDS = 5.0
"""Of the utterance."""
_LARGEST_ERROR = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.25}
"""Of logits, as a share of the largest: what a number format does to a whole network, not a bug."""
_PARTS = ("features", "convolutions", "recurrent", "fully connected")


class Candidate(NamedTuple):
    """A recogniser that takes part."""

    backend: str
    dtype: str
    path: Path
    hear: Callable[[Tensor], str]
    seconds: dict[str, float]
    """Spent so far in each part, kept up to date."""


def time_random_models(
    cell: str, width: int, blocks: list[int], seconds: float, threads: int
) -> Iterator[Row]:
    """Rows of a model at the paper's scale with random weights, a share of the blocks being zero."""
    for block in blocks:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / f"{cell}-{width}"
            write_random_run(run, [f"model={cell}", f"width={width}"], block)
            yield from _rows(run, f"{cell} {width}", seconds, threads, errors=False)


def time_trained_run(path: Path, seconds: float, threads: int) -> Iterator[Row]:
    """Rows of a trained run, error rates on its test split among them."""
    yield from _rows(path, path.name, seconds, threads, errors=True)


def write_random_run(path: Path, overrides: list[str], block: int, sparsity: float = SPARSITY) -> None:
    """A run folder as a training with block pruning would leave it, but for what it has learnt."""
    names = ["sparsifier=bp", f"block={block}", f"target_sparsity={sparsity}", "seed=0"]
    settings = compose_settings([*overrides, *names])
    torch.manual_seed(0)
    recogniser = build_recogniser(settings)
    for matrix in prunable_matrices(recogniser.model, settings["prunable"]):
        rows, columns = matrix.weight.shape
        kept_RC = torch.rand(rows // block, columns // block) >= sparsity
        as_grid(matrix.weight.data, (block, block)).mul_(kept_RC[:, None, :, None])
        matrix.weight.data /= (1 - sparsity) ** 0.5
    run = RunFolder(path)
    run.checkpoints.mkdir(parents=True)
    (run.path / "config.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    torch.save({"state_dict": recogniser.state_dict()}, run.best)


def _rows(run: Path, name: str, seconds: float, threads: int, errors: bool) -> Iterator[Row]:
    settings, recogniser = load_run(run)
    zeros = count_zeros(recogniser.model, settings["prunable"])
    block = settings["block"] if settings["sparsifier"]["name"] != "none" else None
    rate = recogniser.features.sample_rate
    wave_S = 0.1 * torch.randn(round(SECONDS * rate), generator=torch.Generator().manual_seed(0))
    said = [(load_audio(u.audio, rate), u.text) for u in corpus_split(run, "test")] if errors else []
    with tempfile.TemporaryDirectory() as folder:
        candidates = [_dense(run, recogniser)]
        for dtype in DTYPES:
            file = Path(folder) / f"{dtype}.safetensors"
            export_run(run, file, dtype)
            candidates.append(_exported(file, dtype, threads))
            _check(recogniser, candidates[-1], wave_S, threads)
        spent, times = _time(candidates, wave_S, seconds)
        dense = times[0]
        for candidate, taken, parts in zip(candidates, times, spent, strict=True):
            yield {
                "op": "model",
                "model": name,
                "block": block,
                "batch": 1,
                "sparsity": round(zeros.prunable, 4),
                "sparsity/total": round(zeros.total, 4),
                "backend": candidate.backend,
                "dtype": candidate.dtype,
                "seconds_of_audio": SECONDS,
                "microseconds": round(1e6 * taken, 1),
                "real_time_factor": round(taken / SECONDS, 5),
                "ratio_to_dense": round(dense / taken, 2),
                "shares": {part: round(parts[part] / sum(parts.values()), 4) for part in _PARTS},
                "file_bytes": candidate.path.stat().st_size,
                "memory_bytes": _memory(candidate, run, threads),
                "cer": _cer(candidate, said) if errors else None,
            }


def _time(
    candidates: list[Candidate], wave_S: Tensor, seconds: float
) -> tuple[list[dict[str, float]], list[float]]:
    """Seconds in each part, over all calls, and the median seconds of a call."""
    before = [dict(c.seconds) for c in candidates]
    rivals = {f"{c.backend} {c.dtype}": (lambda c=c: c.hear(wave_S)) for c in candidates}
    times = medians(rivals, seconds, least=2)
    spent = [
        {part: c.seconds[part] - b[part] for part in _PARTS} for c, b in zip(candidates, before, strict=True)
    ]
    return spent, [times[name] / 1e6 for name in rivals]


def _dense(run: Path, recogniser: Recogniser) -> Candidate:
    """The trained recogniser itself, its parts timed as they are called."""
    model, seconds = recogniser.model, dict.fromkeys(_PARTS, 0.0)
    assert isinstance(model, DeepSpeech2)
    parts: dict[str, list[nn.Module]] = {
        "features": [recogniser.features],
        "convolutions": [model.front],
        "recurrent": [*model.recurrent],
        "fully connected": [model.fc, model.output],
    }
    for part, modules in parts.items():
        for module in modules:
            _count_seconds(module, part, seconds)

    @torch.inference_mode()
    def hear(wave_S: Tensor) -> str:
        return recogniser.transcribe(wave_S[None], [len(wave_S)])[0]

    return Candidate("torch dense", "fp32", RunFolder(run).best, hear, seconds)


def _count_seconds(module: nn.Module, part: str, seconds: dict[str, float]) -> None:
    def start(*_: Any) -> None:
        seconds[part] -= time.perf_counter()

    def stop(*_: Any) -> None:
        seconds[part] += time.perf_counter()

    module.register_forward_pre_hook(start)
    module.register_forward_hook(stop)


class _Seconds(dict):
    """A transcriber's seconds, as they are when asked for."""

    def __init__(self, transcriber: Transcriber) -> None:
        super().__init__(dict.fromkeys(_PARTS, 0.0))
        self.transcriber = transcriber

    def __getitem__(self, part: str) -> float:
        return self.transcriber.seconds[part]


def _exported(file: Path, dtype: str, threads: int) -> Candidate:
    transcriber = Transcriber(file, threads)
    return Candidate(
        "blocksparse", dtype, file, lambda wave_S: transcriber.hear([wave_S])[0], _Seconds(transcriber)
    )


def _check(recogniser: Recogniser, candidate: Candidate, wave_S: Tensor, threads: int) -> None:
    transcriber = Transcriber(candidate.path, threads)
    with torch.inference_mode():
        expected_TV = recogniser(wave_S[None], [len(wave_S)])[0][0]
        found_TV = transcriber.network([transcriber._features(wave_S)], threads)[0]
    error = float((found_TV - expected_TV).abs().max() / expected_TV.abs().max())
    if not error <= _LARGEST_ERROR[candidate.dtype]:
        raise UserError(f"bench: {candidate.path.name}: logits are off by {error:.1%} of the largest")


def _memory(candidate: Candidate, run: Path, threads: int) -> int:
    """Peak memory of a process that loads it and hears one utterance, above that before it loads it."""
    path = run if candidate.backend == "torch dense" else candidate.path
    command = [sys.executable, "-m", "blocksparse_rnn.bench.memory", candidate.backend, str(path)]
    done = subprocess.run([*command, str(SECONDS), str(threads)], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"bench: {candidate.backend}: {(done.stderr.splitlines() or ['it ended'])[-1]}")
    return json.loads(done.stdout)


def _cer(candidate: Candidate, said: list[tuple[Tensor, str]]) -> float:
    counts = ErrorCounts()
    for wave_S, text in said:
        counts.add(text, candidate.hear(wave_S))
    return round(counts.cer, 5)
