"""From logits to text by beam search, with a language model and a lexicon (flashlight's decoder).

Shapes: B batch, T frames, V alphabet with blank.
"""

import itertools
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.speech.greedy import GreedyDecoder

BLANK = "<blank>"


class BeamDecoder:
    """Maximises log P(text | audio) + alpha log10 P(text) + beta words (Hannun et al., "Deep Speech", 2014).

    With a word-level language model, or a lexicon, hypotheses consist of their words. With a
    letter-level language model, in which | is the space, any word can occur.

    Args:
        lm: a language model for KenLM (.arpa or binary); None for none.
        lexicon: a file with a word a line; None uses the words of a word-level language model.
        alpha: weight of the language model.
        beta: bonus for each word.
        beam: hypotheses kept after each frame.
        threshold: hypotheses whose score is lower than the best by more than this are dropped.

    Raises:
        UserError: a file is missing, or flashlight-text or kenlm is. Files are read at the first call.
    """

    def __init__(
        self, *, lm: str | None, lexicon: str | None, alpha: float, beta: float, beam: int, threshold: float
    ) -> None:
        for name, path in (("lm", lm), ("lexicon", lexicon)):
            if path is not None and not Path(path).is_file():
                raise UserError(f"decoder.{name}={path}: no such file")
        if beam < 1 or threshold <= 0:
            raise UserError(f"decoder.beam={beam} decoder.threshold={threshold:g}: both must be above 0")
        _library()
        self.lm, self.lexicon = lm, lexicon
        self.alpha, self.beta = alpha, beta
        self.beam, self.threshold = beam, threshold
        self._decoders: dict[str, tuple[Any, bool]] = {}
        self._greedy = GreedyDecoder()

    def __call__(self, logits_BTV: Tensor, lengths: list[int], alphabet: Alphabet) -> list[str]:
        """Decode a padded batch.

        Args:
            logits_BTV: scores, padded at the end.
            lengths: valid frames of each utterance.
            alphabet: letters and blank of the V scores.
        """
        if alphabet.letters not in self._decoders:  # a language model takes time to load
            self._decoders[alphabet.letters] = self._make(alphabet)
        decoder, of_words = self._decoders[alphabet.letters]
        log_probs_BTV = logits_BTV.float().log_softmax(dim=-1).cpu()
        texts = []
        for log_probs_TV, length in zip(log_probs_BTV, lengths, strict=True):
            valid_TV = log_probs_TV[:length]
            if of_words:
                valid_TV = torch.cat([valid_TV, _space_frame(alphabet)])
            best = decoder(valid_TV.unsqueeze(0).contiguous())[0][:1]
            if not best:  # no path through the lexicon survived
                texts += self._greedy(log_probs_TV.unsqueeze(0), [length], alphabet)
            elif of_words:
                texts.append(" ".join(best[0].words))
            else:
                texts.append(" ".join(alphabet.decode(best[0].tokens.tolist()).split()))
        return texts

    def _make(self, alphabet: Alphabet) -> tuple[Any, bool]:
        """Flashlight's decoder, and whether it has a lexicon."""
        space = "|" if "|" not in alphabet.letters else "<space>"
        tokens = [space if letter == " " else letter for letter in alphabet.letters] + [BLANK]
        words = self._words()
        if words is not None and " " not in alphabet.letters:
            raise UserError(
                "decoder.lexicon: the alphabet has no space to separate words; set decoder.lexicon=null"
            )
        with tempfile.TemporaryDirectory() as folder:
            lexicon = None if words is None else _spell(words, alphabet, space, Path(folder))
            try:
                decoder = _library()(
                    lexicon=lexicon,
                    tokens=tokens if space in tokens else [*tokens, space],
                    lm=self.lm,
                    lm_weight=self.alpha,
                    # Without a lexicon words are counted by their spaces.
                    word_score=self.beta,
                    sil_score=0.0 if words is not None else self.beta,
                    beam_size=self.beam,
                    beam_threshold=self.threshold,
                    blank_token=BLANK,
                    sil_token=space,
                )
            except (RuntimeError, UnicodeDecodeError) as error:  # KenLM may quote bytes that are not UTF-8
                reason = " ".join(str(error).split())
                raise UserError(f"decoder.lm={self.lm}: KenLM cannot read it: {reason}") from None
        return decoder, words is not None

    def _words(self) -> list[str] | None:
        """The words of hypotheses; None for any."""
        if self.lexicon is not None:
            try:
                lines = Path(self.lexicon).read_text(encoding="utf-8").split("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"decoder.lexicon={self.lexicon}: {error}") from None
            return [line.split()[0] for line in lines if line.strip()]
        if self.lm is None:
            return None
        words = [word for word in arpa_words(Path(self.lm)) if not word.startswith("<")]
        return words if any(len(word) > 1 for word in words) else None


def arpa_words(path: Path) -> Iterator[str]:
    """Words of a language model in ARPA format.

    Raises:
        UserError: the file has another format.
    """
    try:
        with open(path, encoding="utf-8") as file:
            lines = itertools.dropwhile(lambda line: line.strip() != "\\1-grams:", file)
            if next(lines, None) is None:
                raise ValueError
            for line in itertools.takewhile(lambda line: not line.startswith("\\"), lines):
                if line.strip():
                    yield line.split()[1]
    except (ValueError, IndexError):  # UnicodeDecodeError is a ValueError
        raise UserError(
            f"decoder.lm={path}: is not in ARPA format, so its words cannot be read; set decoder.lexicon to "
            "a file of words"
        ) from None


def _spell(words: Iterable[str], alphabet: Alphabet, space: str, folder: Path) -> str:
    """A lexicon in flashlight's format: a word, its letters, and the space after it."""
    words = list(dict.fromkeys(words))
    spelt = [word for word in words if not alphabet.unknown(word)]
    if len(spelt) < len(words):
        unknown = next(word for word in words if alphabet.unknown(word))
        print(
            f"decoder: left out {len(words) - len(spelt)} of {len(words)} words, which have letters outside "
            f"the alphabet, such as {unknown!r}"
        )
    if not spelt:
        raise UserError("decoder: every word of the lexicon has letters outside the alphabet")
    path = folder / "lexicon.txt"
    path.write_text("".join(f"{word}\t{' '.join(word)} {space}\n" for word in spelt), encoding="utf-8")
    return str(path)


def _space_frame(alphabet: Alphabet) -> Tensor:
    """A frame that can only be a space, which ends the last word."""
    frame_1V = torch.full((1, len(alphabet)), -1e4)
    frame_1V[0, alphabet.letters.index(" ")] = 0
    return frame_1V


def _library() -> Any:
    try:
        import kenlm  # noqa: F401
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError):
        raise UserError(
            "decoder=beam: needs flashlight-text and kenlm; pip install 'blocksparse-rnn[decode]', or set "
            "decoder=greedy"
        ) from None
    return ctc_decoder
