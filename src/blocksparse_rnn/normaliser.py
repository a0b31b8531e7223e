"""Texts as people write them -> texts as they are spoken, in the letters of an alphabet."""

import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from blocksparse_rnn.errors import UserError

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07", "'"))
_SPOKEN = set("%‰&@#§*/\\†‡")
"""Punctuation to Unicode, but read aloud: never dropped, so that a text with one of them is noticed."""


class Normaliser:
    """Brings a text to what is said in it: case, Unicode forms, digits, symbols, punctuation, spaces.

    What the alphabet lacks stays where it is, so that the text is found unusable and named; only
    punctuation becomes a space, and where accents are folded, marks on letters go.

    Args:
        language: of the words that numbers become, as num2words calls it, or null: digits stay.
        decimal: what parts off decimals, a point or a comma; the other one groups thousands.
        lower: make letters small.
        accents: `keep` them, or `fold` letters to their base: é to e.
        keep: characters that count as letters though they are punctuation or marks, such as ' or ä.
        replace: what is said for a symbol, such as & for and; done first.

    Raises:
        UserError: num2words is missing, or doesn't know the language.
    """

    def __init__(
        self,
        *,
        language: str | None,
        decimal: Literal[".", ","],
        lower: bool,
        accents: Literal["keep", "fold"],
        keep: str,
        replace: dict[str, str],
    ) -> None:
        self.lower, self.fold, self.keep, self.replace = lower, accents == "fold", set(keep), replace
        self.speak_number = None if language is None else _number_speaker(language, decimal)
        point, comma = re.escape(decimal), re.escape(",.".replace(decimal, ""))
        ordinal = "(?:st|nd|rd|th)?" if language == "en" else ""
        self.number = re.compile(
            rf"\d+(?:[{comma}]\d{{3}})+(?!\d)(?:{point}\d+)?|\d+(?:{point}\d+)?{ordinal}"
        )

    def __call__(self, text: str) -> str:
        """The text, normalised; doing it twice changes nothing more."""
        text = unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).translate(_APOSTROPHES)
        if self.lower:
            text = text.lower()
        for symbol, words in self.replace.items():
            text = text.replace(symbol, f" {words} ")
        if self.speak_number is not None:
            text = self.number.sub(self._speak, text)
        text = "".join(map(self._letter, unicodedata.normalize("NFC", text)))
        return " ".join(word for word in text.split() if word.strip("'"))  # an apostrophe alone says nothing

    def _speak(self, match: re.Match[str]) -> str:
        assert self.speak_number is not None
        words = self.speak_number(match[0])
        return f" {words.lower() if self.lower else words} "

    def _letter(self, letter: str) -> str:
        """What becomes of one character: itself, its base letter, a space, or nothing."""
        if letter in self.keep or letter.isspace():
            return letter
        category = unicodedata.category(letter)
        if self.fold and category[0] == "L":
            bare = "".join(c for c in unicodedata.normalize("NFD", letter) if unicodedata.category(c) != "Mn")
            return _UNDIVIDED.get(bare, bare)
        if category[0] == "P" and letter not in _SPOKEN:
            return " "
        invisible = category == "Cf" or (self.fold and category == "Mn")
        return "" if invisible else letter


_UNDIVIDED = {"æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ß": "ss", "\u0131": "i"}
"""Letters that Unicode doesn't take apart, and what is written for them where accents are folded."""


def _number_speaker(language: str, decimal: str) -> Callable[[str], str]:
    try:
        from num2words import CONVERTER_CLASSES, num2words
    except ImportError:
        raise UserError(
            "text.language: writing numbers as words needs num2words; pip install 'blocksparse-rnn[text]', "
            "or text.language=null to leave digits as they are"
        ) from None
    if language not in CONVERTER_CLASSES:
        raise UserError(f"text.language={language}: num2words knows {', '.join(sorted(CONVERTER_CLASSES))}")

    def speak(number: str) -> str:
        digits = re.sub(rf"[^\d{decimal}]", "", number).replace(decimal, ".")
        to = "ordinal" if number[-1].isalpha() else "cardinal"
        try:
            return str(num2words(Decimal(digits) if "." in digits else int(digits), lang=language, to=to))
        except (OverflowError, NotImplementedError):
            return number  # nobody says such a number; its digits will be noticed

    return speak
