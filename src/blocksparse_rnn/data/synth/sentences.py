"""English sentences from the grammar in grammar.txt, over a vocabulary of a given size.

`Grammar(300).sentence(rng)` gives sentences such as "the quiet farmer carried seven lanterns past the
station". No word is in two categories of the grammar, so the vocabulary is the sum of their sizes.
"""

import random
from pathlib import Path

from blocksparse_rnn.errors import UserError

MIN_VOCABULARY = 100
MIN_WORDS, MAX_WORDS = 3, 14


def _read_grammar() -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Words of each category, and alternatives of each rule, in the order of the file."""
    words: dict[str, list[str]] = {}
    rules: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("grammar.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith(" "):
            name = line
        elif name.isupper():
            rules.setdefault(name, []).append(line.strip())
        else:
            words.setdefault(name, []).extend(line.split())
    return words, rules


WORDS, RULES = _read_grammar()
MAX_VOCABULARY = sum(map(len, WORDS.values()))


class Grammar:
    """Sentences over exactly `vocabulary` different words.

    Each category keeps its first words, in proportion to its size, at least one.

    Raises:
        UserError: `vocabulary` is below `MIN_VOCABULARY` or above `MAX_VOCABULARY`.
    """

    def __init__(self, vocabulary: int) -> None:
        if not MIN_VOCABULARY <= vocabulary <= MAX_VOCABULARY:
            raise UserError(
                f"data.vocabulary={vocabulary}: must be from {MIN_VOCABULARY} to {MAX_VOCABULARY} words"
            )
        self.words = {category: WORDS[category][:size] for category, size in _shares(vocabulary).items()}

    def sentence(self, rng: random.Random) -> str:
        """Draw a sentence: lower case, no punctuation, `MIN_WORDS` to `MAX_WORDS` words."""
        while True:
            words = self._expand("SENTENCE", rng)
            if MIN_WORDS <= len(words) <= MAX_WORDS:
                return " ".join(words)

    def _expand(self, symbol: str, rng: random.Random) -> list[str]:
        if symbol in self.words:
            return [rng.choice(self.words[symbol])]
        return [word for part in rng.choice(RULES[symbol]).split() for word in self._expand(part, rng)]


def _shares(vocabulary: int) -> dict[str, int]:
    """Words of each category: one, plus a share of the rest, rounded by largest remainders."""
    spare = {category: len(words) - 1 for category, words in WORDS.items()}
    left = vocabulary - len(WORDS)
    exact = {category: left * extra / sum(spare.values()) for category, extra in spare.items()}
    sizes = {category: 1 + int(share) for category, share in exact.items()}
    by_remainder = sorted(WORDS, key=lambda category: exact[category] % 1, reverse=True)
    for category in by_remainder[: vocabulary - sum(sizes.values())]:
        sizes[category] += 1
    return sizes
