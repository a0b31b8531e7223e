"""Letters and their indices: the outputs of a recogniser."""

from blocksparse_rnn.errors import UserError


class Alphabet:
    """A fixed set of letters; the CTC blank comes after the last one.

    Args:
        letters: every character that can be written, once each.

    Raises:
        UserError: a letter occurs twice, or there is none.
    """

    def __init__(self, letters: str) -> None:
        if not letters or len(set(letters)) != len(letters):
            raise UserError(f"alphabet={letters!r}: give each letter once")
        self.letters = letters
        self.blank = len(letters)
        self._index = {letter: i for i, letter in enumerate(letters)}

    def __len__(self) -> int:
        """Number of outputs of a recogniser: the letters and the blank."""
        return len(self.letters) + 1

    def encode(self, text: str) -> list[int]:
        """Indices of the letters of `text`; raises KeyError for a letter outside the alphabet."""
        return [self._index[letter] for letter in text]

    def decode(self, indices: list[int]) -> str:
        """Text of `indices`, none of which may be the blank."""
        return "".join(self.letters[i] for i in indices)

    def unknown(self, text: str) -> set[str]:
        """Characters of `text` that the alphabet lacks."""
        return set(text) - self._index.keys()


def ctc_frames_needed(indices: list[int]) -> int:
    """Minimum of output frames in which CTC can write `indices`: one each, and a blank between equal neighbours.

    Source: Graves et al., "Connectionist Temporal Classification", ICML 2006, section 3.1.
    """
    return len(indices) + sum(a == b for a, b in zip(indices, indices[1:], strict=False))
