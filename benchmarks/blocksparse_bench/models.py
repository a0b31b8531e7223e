"""Whole recognisers, features to text, one utterance on one core: dense in torch beside the exported file."""

import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from blocksparse_bench.machine import medians
from blocksparse_bench.products import Row
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
from blocksparse_rnn.training.recogniser import Recogniser, build_recogniser

PAPER_SCALE = (("gru", 2560), ("rnn", 1760), ("rnn", 2560))
"""Cell and width of the models with random weights and blocks, at the paper's scale."""
SPARSITY = 0.9
SECONDS = 5.0
"""Of the utterance."""
_LARGEST_ERROR = {"fp32": 1e-3, "bf16": 0.1, "int8": 0.25}
"""Of logits, as a share of the largest: the rounding of the format through a whole network."""
_PARTS = ("features", "convolutions", "recurrent", "fully connected")


class Candidate(NamedTuple):
    """A recogniser that takes part."""

    backend: str
    dtype: str
    path: Path
    transcribe: Callable[[Tensor], str]
    seconds: Callable[[], dict[str, float]]
    """Part -> seconds spent in it so far."""


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
    """Rows of a trained run, with error rates on its test split."""
    yield from _rows(path, path.name, seconds, threads, errors=True)


def write_random_run(path: Path, overrides: list[str], block: int, sparsity: float = SPARSITY) -> None:
    """A run folder like that of a training with block pruning, with random weights."""
    names = ["sparsifier=bp", f"block={block}", f"target_sparsity={sparsity}", "seed=0"]
    settings = compose_settings([*overrides, *names])
    torch.manual_seed(0)
    recogniser = build_recogniser(settings)
    for matrix in prunable_matrices(recogniser.model, settings.prunable):
        rows, columns = matrix.weight.shape
        kept_RC = torch.rand(rows // block, columns // block) >= sparsity
        as_grid(matrix.weight.data, (block, block)).mul_(kept_RC[:, None, :, None])
        matrix.weight.data /= (1 - sparsity) ** 0.5
    run = RunFolder(path)
    run.create(settings)
    torch.save({"state_dict": recogniser.state_dict()}, run.best)


def _rows(run: Path, name: str, seconds: float, threads: int, errors: bool) -> Iterator[Row]:
    settings, recogniser = load_run(run)
    zeros = count_zeros(recogniser.model, settings.prunable)
    block = settings.block if settings.sparsifier.name != "none" else None
    rate = recogniser.features.sample_rate
    wave_S = 0.1 * torch.randn(round(SECONDS * rate), generator=torch.Generator().manual_seed(0))
    speech = [(load_audio(u.audio, rate), u.text) for u in corpus_split(run, "test")] if errors else []
    with tempfile.TemporaryDirectory() as folder:
        candidates = [_dense(run, recogniser)]
        for dtype in DTYPES:
            file = Path(folder) / f"{dtype}.safetensors"
            export_run(run, file, dtype)
            candidates.append(_exported(recogniser, file, dtype, wave_S, threads))
        before = [c.seconds() for c in candidates]
        times = medians(
            {c.dtype + c.backend: partial(c.transcribe, wave_S) for c in candidates}, seconds, least=2
        )
        after = [c.seconds() for c in candidates]
        dense = times[candidates[0].dtype + candidates[0].backend]
        for candidate, taken, start, end in zip(candidates, times.values(), before, after, strict=True):
            spent = {part: end[part] - start[part] for part in _PARTS}
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
                "microseconds": round(taken, 1),
                "real_time_factor": round(taken / 1e6 / SECONDS, 5),
                "ratio_to_dense": round(dense / taken, 2),
                "shares": {part: round(spent[part] / sum(spent.values()), 4) for part in _PARTS},
                "file_bytes": candidate.path.stat().st_size,
                "memory_bytes": _memory(candidate, run, threads),
                "cer": _cer(candidate, speech) if errors else None,
            }


def _dense(run: Path, recogniser: Recogniser) -> Candidate:
    """The trained recogniser itself; hooks time its parts."""
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
    def transcribe(wave_S: Tensor) -> str:
        return recogniser.transcribe(wave_S[None], [len(wave_S)])[0]

    return Candidate("torch dense", "fp32", RunFolder(run).best, transcribe, seconds.copy)


def _count_seconds(module: nn.Module, part: str, seconds: dict[str, float]) -> None:
    def start(*_: Any) -> None:
        seconds[part] -= time.perf_counter()

    def stop(*_: Any) -> None:
        seconds[part] += time.perf_counter()

    module.register_forward_pre_hook(start)
    module.register_forward_hook(stop)


def _exported(recogniser: Recogniser, file: Path, dtype: str, wave_S: Tensor, threads: int) -> Candidate:
    """An exported file, its logits held against the dense recogniser's."""
    transcriber = Transcriber(file, threads)
    with torch.inference_mode():
        expected_TV = recogniser(wave_S[None], [len(wave_S)])[0][0]
        found_TV = transcriber.network([transcriber._features(wave_S)], threads)[0]
    error = float((found_TV - expected_TV).abs().max() / expected_TV.abs().max())
    if not error <= _LARGEST_ERROR[dtype]:
        raise UserError(f"bench: {file.name}: logits are off by {error:.1%} of the largest")
    return Candidate(
        "blocksparse",
        dtype,
        file,
        lambda wave_S: transcriber.transcribe_waves([wave_S])[0],
        lambda: dict(transcriber.seconds),
    )


def _memory(candidate: Candidate, run: Path, threads: int) -> int:
    """Bytes by which loading it and transcribing one utterance raise the peak RSS of a new process."""
    path = run if candidate.backend == "torch dense" else candidate.path
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(_growth, candidate.backend, path, threads).result()


def _growth(backend: str, path: Path, threads: int) -> int:
    torch.set_num_threads(threads)
    before = _peak_rss()
    with torch.inference_mode():
        if backend == "torch dense":
            recogniser = load_run(path)[1]
            samples = round(SECONDS * recogniser.features.sample_rate)
            recogniser.transcribe(torch.randn(1, samples), [samples])
        else:
            transcriber = Transcriber(path, threads)
            transcriber.transcribe_waves([torch.randn(round(SECONDS * transcriber.features.sample_rate))])
    return _peak_rss() - before


def _peak_rss() -> int:
    """In bytes, of this process; `getrusage` may give the parent's."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def _cer(candidate: Candidate, speech: list[tuple[Tensor, str]]) -> float:
    counts = ErrorCounts()
    for wave_S, text in speech:
        counts.add(text, candidate.transcribe(wave_S))
    return round(counts.cer, 5)
