"""Audio in, text out, with the recogniser of a run folder."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.utils.rnn import pad_sequence

from blocksparse_rnn.checkpoints import load_weights
from blocksparse_rnn.data.audio import load_audio
from blocksparse_rnn.data.manifest import Utterance, read_manifest
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.recogniser import Recogniser
from blocksparse_rnn.runs import RunFolder
from blocksparse_rnn.training import build_recogniser

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


@dataclass(frozen=True)
class Source:
    """A recording to transcribe, and what is said in it where that is known."""

    audio: Path
    text: str | None = None


def find_sources(paths: Iterable[Path]) -> list[Source]:
    """Recordings named by audio files, folders of them, and manifests (.jsonl).

    Raises:
        UserError: a path doesn't exist, or there is no audio at all.
    """
    paths = list(paths)
    sources: list[Source] = []
    for path in paths:
        if path.suffix == ".jsonl":
            sources += [Source(u.audio, u.text) for u in read_manifest(path)]
        elif path.is_dir():
            sources += [Source(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES]
        elif path.is_file():
            sources.append(Source(path))
        else:
            raise UserError(f"{path}: no such file or folder")
    if not sources:
        raise UserError(
            f"no audio in {', '.join(map(str, paths))}; give files or folders of {', '.join(AUDIO_SUFFIXES)}"
        )
    return sources


def corpus_split(run_path: str | Path, split: str) -> list[Utterance]:
    """Utterances of one split of the corpus that a run was trained on; those that have a file of their own."""
    from blocksparse_rnn.config import build

    utterances = build(RunFolder.existing(run_path).settings()["data"]).prepare()[split]
    files = [u for u in utterances if u.problem is None and u.place is None and u.offset is None]
    if not files:
        raise UserError(f"{run_path}: {split} has no files of single utterances; name audio files instead")
    return files


class Transcriber:
    """The best recogniser of a run, ready to listen.

    Args:
        run_path: a run folder.

    Raises:
        UserError: no run folder, or its checkpoint can't be read.
    """

    def __init__(self, run_path: str | Path) -> None:
        run = RunFolder.existing(run_path)
        self.recogniser: Recogniser = build_recogniser(run.settings()).eval()
        self.recogniser.load_state_dict(load_weights(run.best))

    @torch.inference_mode()
    def __call__(self, files: list[Path], batch: int = 16) -> Iterator[str]:
        """Texts of audio files of any sample rate and channel count, in order."""
        rate = self.recogniser.features.sample_rate
        shortest = self.recogniser.features.n_fft
        for start in range(0, len(files), batch):
            waves = [load_audio(file, rate) for file in files[start : start + batch]]
            # Less than one window says nothing; silence makes it whole.
            waves = [torch.nn.functional.pad(w, (0, max(0, shortest - len(w)))) for w in waves]
            yield from self.recogniser.transcribe(
                pad_sequence(waves, batch_first=True), [len(wave) for wave in waves]
            )
