"""Written texts -> texts as they are spoken, in the letters of an alphabet."""

import functools
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from blocksparse_rnn.errors import UserError

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07", "'"))
_SPOKEN = set("%‰&@#§*/\\†‡")
"""Punctuation in Unicode, but read aloud: never dropped, so that a text with one of them becomes a reject."""
_POWERS = re.compile("[⁰¹²³⁴-⁹]+")
_QUOTED = re.compile(
    r"(?<![^\W_])'(?=\S)((?:[^']|(?<=[^\W_])'(?=[^\W_])|(?<=\s)'+(?=\s))*?)(?<=\S)'(?![^\W_])"
)
"""From a quote at the start of a word to one at the end of a word; apostrophes within words are no quotes."""


class Normalizer:
    """Normalises case, Unicode forms, numbers, symbols, punctuation and spaces.

    Punctuation, pairs of single quotes included, becomes a space. With `fold`, letters lose their accents. All
    other characters outside the alphabet stay, so that the text becomes a reject.

    Args:
        language: in which num2words writes numbers as words; None keeps digits.
        decimal: the decimal separator, a point or a comma; the other one groups thousands.
        lower: convert to lower case.
        accents: `keep` them, or `fold` letters to their base: é to e.
        keep: characters to keep though they are punctuation or have marks, such as ' or ä.
        replace: symbols and their words, such as & and "and"; replaced first.

    Raises:
        UserError: num2words is missing, or lacks the language.
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
        ordinal = r"(?:(?:st|nd|rd|th)s?(?![^\W_]))?" if language == "en" else ""
        grouped, plain = rf"\d+(?:{comma}\d{{3}})+(?!\d)(?:{point}\d+)?", rf"\d+(?:{point}\d+)?"
        self.number = re.compile(rf"(?:(?<!\S)[-\u2212])?(?:\d+(?:\^\d+)+|(?:{grouped}|{plain}){ordinal})")

    def __call__(self, text: str) -> str:
        """The normalised text; normalising it again does not change it."""
        text = _POWERS.sub(r"^\g<0>", text.translate(_APOSTROPHES))  # NFKC would make them plain digits
        text = unicodedata.normalize("NFKC", text).translate(_APOSTROPHES)
        if self.lower:
            text = text.lower()
        for symbol, words in self.replace.items():
            text = text.replace(symbol, f" {words} ")
        if self.speak_number is not None:
            text = self.number.sub(self._speak, text)
        while (bare := _QUOTED.sub(r" \1 ", text)) != text:  # quotes within quotes
            text = bare
        text = "".join(map(self._letter, unicodedata.normalize("NFC", text)))
        return " ".join(word for word in text.split() if word.strip("'"))  # no lone apostrophes

    def _speak(self, match: re.Match[str]) -> str:
        assert self.speak_number is not None
        words = self.speak_number(match[0])
        if words is None:
            # The number stays and makes a reject; joined by ^, so that a second pass does not read its parts.
            return re.sub("[.,]", "^", match[0])
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
"""Letters that Unicode does not decompose -> what `fold` makes of them."""


def _number_speaker(language: str, decimal: str) -> Callable[[str], str | None]:
    """A function from a number to its words, or to None where it has none."""
    try:
        from num2words import CONVERTER_CLASSES, num2words
    except ImportError:
        raise UserError(
            "text.language: writing numbers as words needs num2words; pip install 'blocksparse-rnn[text]', "
            "or set text.language=null to keep digits"
        ) from None
    if language not in CONVERTER_CLASSES:
        raise UserError(f"text.language={language}: num2words knows {', '.join(sorted(CONVERTER_CLASSES))}")

    converter = CONVERTER_CLASSES[language]
    # Decimals digit by digit, where the language reads them so: num2words drops trailing zeros.
    minus, point = (_word(getattr(converter, name, None)) for name in ("negword", "pointword"))

    def say(number: int | Decimal, to: str = "cardinal") -> str:
        return " ".join(str(num2words(number, lang=language, to=to)).split())

    def by_digits(whole: str, decimals: str) -> str:
        return " ".join([say(int(whole)), str(point), *(say(int(digit)) for digit in decimals)])

    @functools.cache
    def reads_digits() -> bool:
        return point is not None and by_digits("1", "25") == say(Decimal("1.25"))

    def cardinal(digits: str) -> str:
        whole, _, decimals = digits.partition(".")
        if not decimals:
            return say(int(digits))
        return by_digits(whole, decimals) if reads_digits() else say(Decimal(digits))

    def speak(number: str) -> str | None:
        digits = re.sub(rf"[^\d{decimal}]", "", number).replace(decimal, ".")
        negative, ordinal = number[0] in "-\u2212", number[-1].isalpha()
        try:
            if "^" in number or (ordinal and "." in digits):
                return None
            if ordinal:
                words = say(int(digits), "ordinal") + number[-1] * (number[-1] == "s")
            elif negative and minus is None:
                return say(-Decimal(digits))
            else:
                words = cardinal(digits)
        except Exception:  # its languages raise various errors for unsupported numbers
            return None
        return f"{minus} {words}" if negative else words

    return speak


def _word(given: object) -> str | None:
    """The word of num2words for a sign; None where the language does not have exactly one."""
    return given.strip() if isinstance(given, str) and given.strip().isalpha() else None
