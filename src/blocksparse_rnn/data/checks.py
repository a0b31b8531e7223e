"""Checks that corpora share: of settings, and of each utterance, which is left out with a reason if it fails."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from blocksparse_rnn.data.utterance import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.speech.alphabet import Alphabet, ctc_frames_needed


def keep_apart(sources: Mapping[str, Iterable[Path]], advice: str) -> None:
    """Check that train shares no file with dev or test.

    Args:
        sources: manifests or shards of each split.
        advice: what to do about a shared file, for the error message.

    Raises:
        UserError: dev or test shares a file with train.
    """
    train = {path.resolve() for path in sources["train"]}
    for split in ("dev", "test"):
        both = train.intersection(path.resolve() for path in sources[split])
        if both:
            raise UserError(f"data.train and data.{split} both have {min(both)}; {advice}")


def range_problem(setting: str, values: Sequence[float], lowest: float, highest: float) -> str | None:
    """What is wrong with a setting that is a pair of the lowest and the highest value; None where nothing is."""
    if len(values) == 2 and lowest <= values[0] <= values[1] <= highest:
        return None
    shown = ", ".join(f"{value:g}" for value in values)
    return f"{setting}=[{shown}]: must be the lowest and the highest value, from {lowest:g} to {highest:g}"


@dataclass(frozen=True)
class Reject:
    """An utterance that is left out, and the reason."""

    utterance: Utterance
    reason: str


@runtime_checkable
class Filtering(Protocol):
    """A sequence of utterances that do not fit in memory, and that applies the check itself."""

    def keep_usable(self, check: Callable[[Utterance], Utterance | Reject]) -> list[Reject]:
        """Leave out the utterances that `check` rejects from now on, and return the rejects."""


def split_usable(
    utterances: Sequence[Utterance],
    alphabet: Alphabet,
    output_frames: Callable[[float], int],
    normalise: Callable[[str], str] | None = None,
) -> tuple[Sequence[Utterance], list[Reject]]:
    """Split utterances into those that CTC can learn from and rejects.

    Args:
        utterances: of a corpus.
        alphabet: the letters that texts may have.
        output_frames: frames of logits for a duration in seconds.
        normalise: text -> text, applied before the checks; None leaves texts as they are.
    """

    def check(utterance: Utterance) -> Utterance | Reject:
        if normalise is not None:
            utterance = replace(utterance, text=normalise(utterance.text), original_text=utterance.written)
        reason = _problem(utterance, alphabet, output_frames)
        return Reject(utterance, reason) if reason else utterance

    if isinstance(utterances, Filtering):
        return utterances, utterances.keep_usable(check)
    judged = [check(utterance) for utterance in utterances]
    usable = [verdict for verdict in judged if isinstance(verdict, Utterance)]
    return usable, [verdict for verdict in judged if isinstance(verdict, Reject)]


def _problem(utterance: Utterance, alphabet: Alphabet, output_frames: Callable[[float], int]) -> str | None:
    if utterance.problem:
        return utterance.problem
    if not utterance.text.strip():
        return "its text is empty"
    unknown = alphabet.unknown(utterance.text)
    if unknown:
        return f"its text has {''.join(sorted(unknown))!r}, which the alphabet lacks"
    frames = output_frames(utterance.duration)
    needed = ctc_frames_needed(alphabet.encode(utterance.text))
    if frames < needed:
        # The loss of such an utterance is infinite and its gradient NaN.
        return f"too short for its text: {frames} output frames, CTC needs {needed}"
    return None
