"""Write down what is said in audio files, with the recogniser of a run folder or of an exported file.

python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c speech.wav more.flac folder/
python src/transcribe.py rnn.safetensors folder/ --jsonl heard.jsonl
python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c --split test --limit 3
ffmpeg -loglevel error -i talk.mp3 -f s16le -ac 1 -ar 16000 - | python src/transcribe.py gru.safetensors --stream
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch
from torch import Tensor

from blocksparse_rnn.errors import PartlyFailed, UserError, cannot_write
from blocksparse_rnn.inference.transcriber import (
    LEAST_CHUNK,
    Heard,
    Source,
    Transcriber,
    corpus_split,
    existing_model,
    find_sources,
)

_READ = 1 << 15
"""Bytes taken from standard input at most at a time: about a second."""


def transcribe(
    *,
    model: str,
    audio: list[Path],
    split: str | None,
    limit: int | None,
    jsonl: Path | None,
    stream: bool,
    chunk: int | None,
    threads: int | None,
) -> None:
    """Print transcripts, and on standard error what went wrong and how long it took.

    Raises:
        UserError: arguments that don't go together, a model that can't be read, nothing to hear.
        PartlyFailed: at the end, where a recording couldn't be read to its end.
    """
    for name, value in {"--limit": limit, "--threads": threads}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if stream and (audio or split or limit or jsonl):
        raise UserError("--stream hears standard input; leave out files, --split, --limit and --jsonl")
    if threads is not None:
        torch.set_num_threads(threads)  # of features and convolutions, which are torch's
    if stream:
        if sys.stdin is None:
            raise UserError("--stream: standard input is closed; pipe raw audio into it, see --help")
        frames = LEAST_CHUNK if chunk is None else chunk
        transcribe_stream(Transcriber(model, threads), sys.stdin.buffer, frames)
        return
    if chunk is not None:
        raise UserError("--chunk: only with --stream")
    if not audio and not split:
        raise UserError("nothing to transcribe; give audio files, folders, manifests, or --split test")
    existing_model(model)
    sources = find_sources(audio) if audio else []
    if split:
        sources += map(Source.of, corpus_split(model, split))
    if jsonl is not None and jsonl.exists():
        for path in (Path(model), *audio, *(source.audio for source in sources)):
            if path.exists() and path.samefile(jsonl):
                raise UserError(f"--jsonl {jsonl}: would replace {path}, which is read; name another file")
    transcribe_files(Transcriber(model, threads), sources[:limit], jsonl)


def transcribe_files(transcriber: Transcriber, sources: list[Source], jsonl: Path | None) -> None:
    """One transcript after the other.

    Raises:
        UserError: OUT can't be written.
        PartlyFailed: at the end, where some files couldn't be read.
    """
    started, failed = time.perf_counter(), 0
    with _lines(jsonl) as lines:
        for heard in transcriber.transcribe(sources):
            failed += heard.problem is not None
            _print(heard, transcriber)
            if lines is not None and heard.problem is None:
                lines.write(_manifest_line(heard))
                lines.flush()
    _print_speed(
        transcriber, f"{len(sources) - failed} of {len(sources)} files", time.perf_counter() - started
    )
    if failed:
        raise PartlyFailed(f"{failed} of {len(sources)} files could not be read")


def transcribe_stream(transcriber: Transcriber, audio: BinaryIO, chunk: int) -> None:
    """Text as it is spoken: each piece on standard output as soon as it is known, a line's end at the end.

    Raises:
        UserError: this recogniser can't stream, the chunk is too small, nobody speaks.
        PartlyFailed: the input ends in the middle of a sample.
    """
    stream = transcriber.stream(chunk)
    if audio.isatty():
        raise UserError("--stream: standard input is a terminal; pipe raw audio into it, see --help")
    delay = f"text at most {transcriber.delay(chunk):.2f} s of audio behind"
    rate = transcriber.features.sample_rate
    print(f"hearing 16-bit samples, {rate} a second; {delay}", file=sys.stderr, flush=True)
    started, longest, rest = time.perf_counter(), 0.0, b""
    for data in iter(lambda: audio.read1(_READ), b""):  # type: ignore[attr-defined]
        data = rest + data
        data, rest = data[: len(data) // 2 * 2], data[len(data) // 2 * 2 :]
        began = time.perf_counter()
        print(stream.feed(_samples(data)), end="", flush=True)
        longest = max(longest, time.perf_counter() - began)
    print(stream.end(), flush=True)
    _print_speed(transcriber, f"{delay}, and {longest:.3f} s of computing", time.perf_counter() - started)
    if rest:
        raise PartlyFailed("standard input ended in the middle of a sample; its last byte was left out")


def _samples(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768)


def _print(heard: Heard, transcriber: Transcriber) -> None:
    name = heard.source
    if heard.problem is not None:
        print(f"error: {heard.problem}", file=sys.stderr, flush=True)
        return
    print(f"{name}\n  heard: {heard.text}", flush=True)
    if heard.source.text is not None:
        print(f"  said:  {heard.source.text}", flush=True)
    if not heard.text.strip():
        window = transcriber.features.n_fft / transcriber.features.sample_rate
        short = f"shorter than a window of {1000 * window:.0f} ms"
        reason = short if heard.seconds < window else "no speech in it"
        print(f"note: {name}: nothing heard, {reason}", file=sys.stderr, flush=True)


def _print_speed(transcriber: Transcriber, what: str, elapsed: float) -> None:
    parts = transcriber.seconds
    computing, audio = sum(parts.values()), transcriber.audio_seconds
    if not audio or not computing:
        print(what, file=sys.stderr)
        return
    shares = ", ".join(f"{name} {seconds / computing:.0%}" for name, seconds in parts.items())
    print(
        f"{what}; {audio:.1f} s of audio in {elapsed:.2f} s, of which {computing:.2f} s of computing: "
        f"real-time factor {computing / audio:.4f} ({shares})",
        file=sys.stderr,
    )


def _manifest_line(heard: Heard) -> str:
    row: dict[str, object] = {"audio_filepath": str(heard.source.audio.resolve())}
    row |= {"duration": round(heard.seconds, 3), "text": heard.text}
    if heard.source.offset is not None:
        row["offset"] = heard.source.offset
    if heard.source.text is not None:
        row["said"] = heard.source.text
    return json.dumps(row) + "\n"


@contextmanager
def _lines(path: Path | None) -> Iterator[IO[str] | None]:
    """A file that grows line by line, so that what was heard outlives an interruption."""
    if path is None:
        yield None
        return
    try:
        file = open(path, "w", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise cannot_write(path, error) from error
    with file:
        yield file


def main() -> None:
    """Read the arguments, print one transcript after the other, or one as it is spoken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run folder under outputs/, or a file that src/export.py has written")
    parser.add_argument("audio", nargs="*", type=Path, help="audio files, folders, manifests (.jsonl)")
    parser.add_argument(
        "--split", choices=("train", "dev", "test"), help="of the corpus the run was trained on"
    )
    parser.add_argument("--limit", type=int, help="transcribe at most so many")
    parser.add_argument("--jsonl", type=Path, metavar="OUT", help="write a manifest of what was heard")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="hear standard input as it comes: 16-bit little-endian samples, one channel, at the model's rate",
    )
    parser.add_argument(
        "--chunk", type=int, metavar="N", help="frames that a stream computes together (default 8, the least)"
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: as many as there are cores")
    transcribe(**vars(parser.parse_args()))
