"""The data of a run: the utterances that its recogniser can use, batched and augmented."""

from collections.abc import Sequence
from typing import Any

from omegaconf import OmegaConf

from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.data.augment import Augmenter
from blocksparse_rnn.data.checks import Reject, split_usable
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.inspection import LONGEST
from blocksparse_rnn.data.manifest import Utterance
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import CONF
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.training.recogniser import Recogniser


def load_data(settings: Settings, recogniser: Recogniser, run: RunFolder) -> SpeechData:
    """Batches of the usable utterances of all splits; the others are listed in the run's rejects.jsonl.

    Raises:
        UserError: the corpus can't be read, or more utterances are unusable than `max_rejects` allows.
    """
    splits = settings.data.build().prepare()
    rate = recogniser.features.sample_rate
    normalise = settings.text.build() if settings.text else None

    def output_frames(seconds: float) -> int:
        return recogniser.output_frames(round(seconds * rate))

    usable: dict[str, Sequence[Utterance]] = {}
    rejected: list[dict[str, Any]] = []
    for name, utterances in splits.items():
        usable[name], rejects = split_usable(utterances, recogniser.alphabet, output_frames, normalise)
        rejected += [
            {"split": name, "audio_filepath": str(r.utterance.audio), "reason": r.reason} for r in rejects
        ]
        offered = len(usable[name]) + len(rejects)
        if not offered:
            raise UserError(f"{name}: {getattr(settings.data, name, 'the corpus')} has no utterances")
        if not usable[name] or len(rejects) / offered > settings.max_rejects:
            advice = "" if normalise else _advice(rejects, recogniser.alphabet)
            raise UserError(
                f"data: {len(rejects)} of the {offered} utterances of {name} can't be used, more than "
                f"max_rejects={settings.max_rejects} allows; the first: {rejects[0].reason}{advice}"
            )
    if rejected:
        run.write_rejects(rejected)
        print(f"data: {len(rejected)} utterances left out, see {run.path / 'rejects.jsonl'}")
    return SpeechData(
        usable,
        recogniser.alphabet,
        sample_rate=rate,
        batch=settings.batch,
        epochs_per_pass=settings.epochs_per_pass or 1,
        seed=settings.seed,
        workers=settings.workers,
        augment=_make_augmenter(settings, recogniser),
        report=run.add_reject,
    )


def _make_augmenter(settings: Settings, recogniser: Recogniser) -> Augmenter | None:
    nodes = settings.augment.nodes() if settings.augment else []
    if not nodes:
        return None
    return Augmenter(
        [node.build() for node in nodes],
        seed=settings.seed,
        fewest_samples=recogniser.fewest_samples(LONGEST),
        alphabet=recogniser.alphabet,
    )


def _advice(rejects: list[Reject], alphabet: Alphabet) -> str:
    """Advice to set the option of `text` whose alphabet has the missing letters of most rejected texts."""
    unknown = [
        {letter for letter in alphabet.unknown(reject.utterance.text.lower()) if letter.isalpha()}
        for reject in rejects
        if "which the alphabet lacks" in reject.reason
    ]
    have: dict[str, int] = {}
    for path in sorted((CONF / "text").glob("*.yaml")):
        node = OmegaConf.load(path)
        if node.text is not None:
            have[f"text={path.stem}"] = sum(letters <= set(node.alphabet) for letters in unknown)
    names = [name for name, texts in have.items() if texts and texts == max(have.values())]
    if not names:
        return ""
    return f"; {' or '.join(names)} writes numbers out, makes letters small and drops punctuation"
