"""From logits to text by beam search, with a language model and a list of words (flashlight's decoder).

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

    With a language model of words, or a lexicon, only their words are written. With one of letters, in
    which | is the space, any word may be.

    Args:
        lm: a language model as KenLM reads it (.arpa, or its binary form); None for none.
        lexicon: a file of words, one a line; None takes the words of the language model, if it has any.
        alpha: weight of the language model.
        beta: added for each word.
        beam: hypotheses that are kept after each frame.
        threshold: hypotheses that are worse than the best by more are dropped.

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
        """Flashlight's decoder, and whether it writes words of a list."""
        space = "|" if "|" not in alphabet.letters else "<space>"
        tokens = [space if letter == " " else letter for letter in alphabet.letters] + [BLANK]
        words = self._words()
        if words is not None and " " not in alphabet.letters:
            raise UserError("decoder.lexicon: the alphabet has no space to part words; decoder.lexicon=null")
        with tempfile.TemporaryDirectory() as folder:
            lexicon = None if words is None else _spell(words, alphabet, space, Path(folder))
            try:
                decoder = _library()(
                    lexicon=lexicon,
                    tokens=tokens if space in tokens else [*tokens, space],
                    lm=self.lm,
                    lm_weight=self.alpha,
                    # A search without words counts them by the spaces between.
                    word_score=self.beta,
                    sil_score=0.0 if words is not None else self.beta,
                    beam_size=self.beam,
                    beam_threshold=self.threshold,
                    blank_token=BLANK,
                    sil_token=space,
                )
            except (RuntimeError, UnicodeDecodeError) as error:  # KenLM may quote what isn't UTF-8
                reason = " ".join(str(error).split())
                raise UserError(f"decoder.lm={self.lm}: KenLM can't read it: {reason}") from None
        return decoder, words is not None

    def _words(self) -> list[str] | None:
        """Words that may be written; None for any."""
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
    """Words of a language model in ARPA's format.

    Raises:
        UserError: it isn't.
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
            f"decoder.lm={path}: no words can be read from it, it isn't in ARPA's format; decoder.lexicon "
            "must name a file of words"
        ) from None


def _spell(words: Iterable[str], alphabet: Alphabet, space: str, folder: Path) -> str:
    """A lexicon as flashlight reads it: a word, its letters, and the space behind it."""
    words = list(dict.fromkeys(words))
    spelt = [word for word in words if not alphabet.unknown(word)]
    if len(spelt) < len(words):
        unknown = next(word for word in words if alphabet.unknown(word))
        print(
            f"decoder: {len(words) - len(spelt)} of {len(words)} words have letters that the alphabet lacks "
            f"and are never written, such as {unknown!r}"
        )
    if not spelt:
        raise UserError("decoder: none of the words can be written in the letters of the alphabet")
    path = folder / "lexicon.txt"
    path.write_text("".join(f"{word}\t{' '.join(word)} {space}\n" for word in spelt), encoding="utf-8")
    return str(path)


def _space_frame(alphabet: Alphabet) -> Tensor:
    """A frame that can only be a space: it ends the last word, which has none behind it."""
    frame_1V = torch.full((1, len(alphabet)), -1e4)
    frame_1V[0, alphabet.letters.index(" ")] = 0
    return frame_1V


def _library() -> Any:
    try:
        import kenlm  # noqa: F401
        from torchaudio.models.decoder import ctc_decoder
    except (ImportError, RuntimeError):
        raise UserError(
            "decoder=beam needs flashlight-text and kenlm; pip install 'blocksparse-rnn[decode]', or "
            "decoder=greedy"
        ) from None
    return ctc_decoder
