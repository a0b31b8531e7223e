"""Error rates of a corpus: the sum of edits over the sum of reference lengths.

A mean over utterances would give short ones more weight, and an empty reference would make it infinite.
"""

from dataclasses import dataclass

from rapidfuzz.distance import Levenshtein


@dataclass
class ErrorCounts:
    """Edits and reference lengths in characters and words, summed over utterances."""

    char_edits: int = 0
    chars: int = 0
    word_edits: int = 0
    words: int = 0

    def add(self, reference: str, hypothesis: str) -> None:
        """Add one utterance. Spaces count as characters and separate words."""
        self.char_edits += Levenshtein.distance(reference, hypothesis)
        self.chars += len(reference)
        self.word_edits += Levenshtein.distance(reference.split(), hypothesis.split())
        self.words += len(reference.split())

    @property
    def cer(self) -> float:
        """Character error rate as a fraction; 0 / 0 is 0, and edits without a reference give infinity."""
        return _rate(self.char_edits, self.chars)

    @property
    def wer(self) -> float:
        """Word error rate as a fraction."""
        return _rate(self.word_edits, self.words)


def _rate(edits: int, length: int) -> float:
    if length == 0:
        return float("inf") if edits else 0.0
    return edits / length
