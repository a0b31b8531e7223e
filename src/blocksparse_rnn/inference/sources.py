"""What to transcribe: audio files, folders of them, manifests, and a split of a run's corpus."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from blocksparse_rnn.data.audio import AUDIO_SUFFIXES
from blocksparse_rnn.data.manifest import Utterance, read_manifest
from blocksparse_rnn.errors import UserError


@dataclass(frozen=True)
class Source:
    """An audio file, or a part of one, and its reference transcript if there is one."""

    audio: Path
    reference: str | None = None
    offset: float | None = None
    """Second at which the part begins; None for the whole file."""
    duration: float | None = None
    """Seconds of the part; None to the file's end."""

    @classmethod
    def of(cls, utterance: Utterance) -> "Source":
        """The source of a corpus's utterance."""
        duration = None if utterance.offset is None else utterance.duration
        return cls(utterance.audio, utterance.text, utterance.offset, duration)

    def __str__(self) -> str:
        return str(self.audio) if self.offset is None else f"{self.audio} from {self.offset:g} s"


def find_sources(paths: Iterable[Path]) -> list[Source]:
    """All audio that these files, folders and manifests (.jsonl) name.

    Raises:
        UserError: a path doesn't exist, or there is no audio at all.
    """
    paths = list(paths)
    sources: list[Source] = []
    for path in paths:
        if path.suffix == ".jsonl":
            sources += map(Source.of, read_manifest(path))
        elif path.is_dir():
            sources += [Source(p) for p in sorted(path.rglob("*")) if p.suffix.lower() in AUDIO_SUFFIXES]
        elif path.is_file():
            sources.append(Source(path))
        elif path.exists():
            raise UserError(f"{path}: neither a file nor a folder; save its audio as a file, or use --stream")
        else:
            raise UserError(f"{path}: no such file or folder")
    if not sources:
        raise UserError(
            f"no audio in {', '.join(map(str, paths))}; give files or folders of {', '.join(AUDIO_SUFFIXES)}"
        )
    return sources


def corpus_split(run_path: str | Path, split: str) -> list[Utterance]:
    """The utterances of a run's corpus, of one split, that are files of their own.

    Raises:
        UserError: no run folder, or no utterance of the split is a file of its own.
    """
    if Path(run_path).is_file():
        raise UserError(f"{run_path}: an exported file has no corpus; give its run folder, or audio files")
    # Imported here: an exported file is transcribed without Lightning and Hydra.
    from blocksparse_rnn.config.schema import read_settings
    from blocksparse_rnn.runs.folder import RunFolder

    utterances = read_settings(RunFolder.existing(run_path)).data.build().prepare()[split]
    files = [u for u in utterances if u.problem is None and u.place is None and u.offset is None]
    if not files:
        raise UserError(f"{run_path}: {split} has no files of single utterances; give audio files instead")
    return files
