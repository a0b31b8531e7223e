"""One recording and its text, the same for every corpus."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """One recording: its audio file, its duration in seconds and its reference transcript."""

    audio: Path
    duration: float
    """0 where it is not known yet."""
    text: str
    offset: float | None = None
    """Start within the file, in seconds; None for the whole file."""
    weight: float = 1.0
    """How often it occurs in a pass over the training data, on average."""
    place: tuple[int, int] | None = None
    """First byte and number of bytes, where `audio` is inside a tar file."""
    original_text: str | None = None
    """The text before it was normalised, if it was."""
    problem: str | None = None
    """Why it cannot be used, if its corpus found a reason."""

    @property
    def written(self) -> str:
        """The text before it was normalised."""
        return self.text if self.original_text is None else self.original_text
