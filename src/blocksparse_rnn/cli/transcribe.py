"""Transcribe audio files, or a stream, with the recogniser of a run folder or of an exported file.

python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c speech.wav more.flac folder/
python src/transcribe.py rnn.safetensors folder/ --jsonl transcripts.jsonl
python src/transcribe.py outputs/rnn-176-dense-s0-1a2b3c --split test --limit 3
ffmpeg -loglevel error -i talk.mp3 -f s16le -ac 1 -ar 16000 - | python src/transcribe.py gru.safetensors --stream
"""

import argparse
import contextlib
import json
import sys
import time
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch
from torch import Tensor

from blocksparse_rnn.errors import PartlyFailed, UserError, cannot_write
from blocksparse_rnn.inference.sources import Source, corpus_split, find_sources
from blocksparse_rnn.inference.stream import LEAST_CHUNK
from blocksparse_rnn.inference.transcriber import Transcriber, Transcript, existing_model

_READ = 1 << 15
"""Most bytes read from standard input at a time: about a second of audio."""


def main() -> None:
    """Read the arguments, print transcripts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run folder under outputs/, or a file that src/export.py has written")
    parser.add_argument("audio", nargs="*", type=Path, help="audio files, folders, manifests (.jsonl)")
    parser.add_argument(
        "--split", choices=("train", "dev", "test"), help="transcribe this split of the run's corpus"
    )
    parser.add_argument("--limit", type=int, metavar="N", help="transcribe the first N files only")
    parser.add_argument("--jsonl", type=Path, metavar="OUT", help="write the transcripts as a manifest")
    parser.add_argument(
        "--stream",
        action="store_true",
        help="read standard input: 16-bit little-endian samples, one channel, at the model's sample rate",
    )
    parser.add_argument(
        "--chunk",
        type=int,
        metavar="N",
        help=f"frames of logits that --stream computes together (default and least: {LEAST_CHUNK})",
    )
    parser.add_argument("--threads", type=int, metavar="N", help="default: the number of cores")
    transcribe(**vars(parser.parse_args()))


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
    """Print transcripts; errors, notes and the real-time factor go to standard error.

    Raises:
        UserError: arguments contradict each other, the model can't be read, or there is no audio.
        PartlyFailed: at the end, where some audio couldn't be read.
    """
    for name, value in {"--limit": limit, "--threads": threads}.items():
        if value is not None and value < 1:
            raise UserError(f"{name} {value}: must be at least 1")
    if threads is not None:
        torch.set_num_threads(threads)  # features and convolutions run in torch
    if stream:
        if audio or split or limit or jsonl:
            raise UserError("--stream reads standard input; leave out files, --split, --limit and --jsonl")
        if sys.stdin is None:
            raise UserError("--stream: standard input is closed; pipe raw audio into it, see --help")
        frames = LEAST_CHUNK if chunk is None else chunk
        transcribe_stream(Transcriber(model, threads), sys.stdin.buffer, frames)
        return
    if chunk is not None:
        raise UserError(f"--chunk {chunk}: only with --stream; leave it out")
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
    """Print the transcripts of all sources, and write them as a manifest.

    Raises:
        UserError: OUT can't be written.
        PartlyFailed: at the end, where some files couldn't be read.
    """
    started, failed, seconds = time.perf_counter(), 0, 0.0
    with contextlib.nullcontext() if jsonl is None else _open(jsonl) as manifest:
        for transcript in transcriber.transcribe(sources):
            seconds += transcript.seconds
            if transcript.problem is not None:
                failed += 1
                print(f"error: {transcript.problem}", file=sys.stderr, flush=True)
                continue
            _print(transcript, transcriber)
            if manifest is not None:
                manifest.write(_manifest_line(transcript))
                manifest.flush()  # an interrupted command keeps what is done
    done = f"{len(sources) - failed} of {len(sources)} files"
    _print_speed(transcriber, done, seconds, time.perf_counter() - started)
    if failed:
        raise PartlyFailed(f"{failed} of {len(sources)} files could not be read")


def _open(path: Path) -> IO[str]:
    try:
        return open(path, "w", encoding="utf-8")
    except OSError as error:
        raise cannot_write(path, error) from error


def _print(transcript: Transcript, transcriber: Transcriber) -> None:
    source = transcript.source
    print(f"{source}\n  hyp: {transcript.text}", flush=True)
    if source.reference is not None:
        print(f"  ref: {source.reference}", flush=True)
    if not transcript.text.strip():
        window = transcriber.features.n_fft / transcriber.features.sample_rate
        short = f"the audio is shorter than a window of {1000 * window:.0f} ms"
        reason = short if transcript.seconds < window else "no speech found"
        print(f"note: {source}: empty transcript, {reason}", file=sys.stderr, flush=True)


def _manifest_line(transcript: Transcript) -> str:
    source = transcript.source
    row: dict[str, object] = {"audio_filepath": str(source.audio.resolve())}
    row |= {"duration": round(transcript.seconds, 3), "text": transcript.text}
    if source.offset is not None:
        row["offset"] = source.offset
    if source.reference is not None:
        row["reference"] = source.reference
    return json.dumps(row) + "\n"


def transcribe_stream(transcriber: Transcriber, audio: BinaryIO, chunk: int) -> None:
    """Print text as soon as it is known, and a newline at the end.

    Raises:
        UserError: this recogniser can't stream, the chunk is too small, the input is a terminal.
        PartlyFailed: the input ends within a sample.
    """
    stream = transcriber.stream(chunk)
    if audio.isatty():
        raise UserError("--stream: standard input is a terminal; pipe raw audio into it, see --help")
    rate = transcriber.features.sample_rate
    delay = f"text at most {transcriber.delay(chunk):.2f} s of audio behind"
    print(f"reading 16-bit samples at {rate} Hz; {delay}", file=sys.stderr, flush=True)
    started, longest, samples, rest = time.perf_counter(), 0.0, 0, b""
    for data in iter(lambda: audio.read1(_READ), b""):  # type: ignore[attr-defined]
        data = rest + data
        data, rest = data[: len(data) // 2 * 2], data[len(data) // 2 * 2 :]
        began = time.perf_counter()
        print(stream.feed(_samples(data)), end="", flush=True)
        longest = max(longest, time.perf_counter() - began)
        samples += len(data) // 2
    print(stream.end(), flush=True)
    behind = f"{delay}, and {longest:.3f} s of computing"
    _print_speed(transcriber, behind, samples / rate, time.perf_counter() - started)
    if rest:
        raise PartlyFailed("standard input ended within a sample; its last byte was left out")


def _samples(data: bytes) -> Tensor:
    return torch.from_numpy(np.frombuffer(data, "<i2").astype(np.float32) / 32768)


def _print_speed(transcriber: Transcriber, what: str, seconds: float, elapsed: float) -> None:
    parts = transcriber.seconds
    computing = sum(parts.values())
    if seconds and computing:
        shares = ", ".join(f"{name} {spent / computing:.0%}" for name, spent in parts.items())
        what += (
            f"; {seconds:.1f} s of audio in {elapsed:.2f} s, of which {computing:.2f} s of computing: "
            f"real-time factor {computing / seconds:.4f} ({shares})"
        )
    print(what, file=sys.stderr)
