"""One recording and its text, as every corpus gives it."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """One recording: its audio file, its length in seconds and what is said in it."""

    audio: Path
    duration: float
    """0 where nobody has measured it yet."""
    text: str
    offset: float | None = None
    """Second of the file at which it begins; None where it is the whole file."""
    weight: float = 1.0
    """How often it comes in an epoch of training, on average."""
    place: tuple[int, int] | None = None
    """First byte and number of bytes, where the folder of `audio` is a tar file."""
    original_text: str | None = None
    """The text as somebody wrote it, where it has been normalised."""
    problem: str | None = None
    """Why it can't be used, as far as its corpus found out."""

    @property
    def written(self) -> str:
        """The text as somebody wrote it, before it was normalised."""
        return self.text if self.original_text is None else self.original_text
