"""Texts as people write them -> texts as they are spoken, in the letters of an alphabet."""

import functools
import re
import unicodedata
from collections.abc import Callable
from decimal import Decimal
from typing import Literal

from blocksparse_rnn.errors import UserError

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\u00b4\u0060\uff07", "'"))
_SPOKEN = set("%‰&@#§*/\\†‡")
"""Punctuation to Unicode, but read aloud: never dropped, so that a text with one of them is noticed."""
_POWERS = re.compile("[⁰¹²³⁴-⁹]+")
_QUOTED = re.compile(
    r"(?<![^\W_])'(?=\S)((?:[^']|(?<=[^\W_])'(?=[^\W_])|(?<=\s)'+(?=\s))*?)(?<=\S)'(?![^\W_])"
)
"""From a quote where a word begins to one where a word ends; an apostrophe within a word is none, nor one alone."""


class Normalizer:
    """Brings a text to what is said in it: case, Unicode forms, digits, symbols, punctuation, spaces.

    What the alphabet lacks stays where it is, so that the text is found unusable and named; only
    punctuation becomes a space, a pair of single quotes too, and where accents are folded, marks on letters go.

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
        ordinal = r"(?:(?:st|nd|rd|th)s?(?![^\W_]))?" if language == "en" else ""
        grouped, plain = rf"\d+(?:{comma}\d{{3}})+(?!\d)(?:{point}\d+)?", rf"\d+(?:{point}\d+)?"
        self.number = re.compile(rf"(?:(?<!\S)[-\u2212])?(?:\d+(?:\^\d+)+|(?:{grouped}|{plain}){ordinal})")

    def __call__(self, text: str) -> str:
        """The text, normalised; doing it twice changes nothing more."""
        text = _POWERS.sub(r"^\g<0>", text.translate(_APOSTROPHES))  # to NFKC, digits like others
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
        return " ".join(word for word in text.split() if word.strip("'"))  # an apostrophe alone says nothing

    def _speak(self, match: re.Match[str]) -> str:
        assert self.speak_number is not None
        words = self.speak_number(match[0])
        if words is None:
            # Its digits stay, and will be noticed; in one piece, lest the next time each of them be said.
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
"""Letters that Unicode doesn't take apart, and what is written for them where accents are folded."""


def _number_speaker(language: str, decimal: str) -> Callable[[str], str | None]:
    """What says a number in words, or None where nobody says it."""
    try:
        from num2words import CONVERTER_CLASSES, num2words
    except ImportError:
        raise UserError(
            "text.language: writing numbers as words needs num2words; pip install 'blocksparse-rnn[text]', "
            "or text.language=null to leave digits as they are"
        ) from None
    if language not in CONVERTER_CLASSES:
        raise UserError(f"text.language={language}: num2words knows {', '.join(sorted(CONVERTER_CLASSES))}")

    converter = CONVERTER_CLASSES[language]
    # Where a language reads decimals digit by digit, we do: num2words forgets zeros at their end.
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
        except Exception:  # its languages fail in ways of their own at what they can't say
            return None
        return f"{minus} {words}" if negative else words

    return speak


def _word(given: object) -> str | None:
    """What num2words has for a sign: not all of its languages have one word."""
    return given.strip() if isinstance(given, str) and given.strip().isalpha() else None
