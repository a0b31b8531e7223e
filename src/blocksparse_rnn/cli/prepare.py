"""Make manifests from your recordings: every file is decoded once, and each one left out is listed with its reason.

python src/prepare.py recordings/ corpus/ --dev 0.05 --test 0.05    # train.jsonl, dev.jsonl and test.jsonl
python src/prepare.py recordings/ train.jsonl                       # one manifest; audio with .txt files beside it
python src/prepare.py LibriSpeech/dev-clean dev.jsonl               # also LJSpeech and Common Voice folders
python src/prepare.py cv/de/train.tsv train.jsonl text=german       # settings, as for train.py
python src/prepare.py recordings/ corpus/ --shards 500              # also tar files for data=shards
python src/prepare.py table.csv train.jsonl scale=mini --longest 30 # a table with columns file and text
"""

import argparse
from pathlib import Path

from blocksparse_rnn.config.build import build_shapes
from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.data.layouts import LAYOUTS
from blocksparse_rnn.data.prepare import prepare
from blocksparse_rnn.speech.alphabet import Alphabet


def main() -> None:
    """Read the arguments, prepare, print the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="a folder, .csv, .tsv or .jsonl")
    parser.add_argument("out", type=Path, help="a manifest (.jsonl), or a folder for one of each split")
    parser.add_argument(
        "overrides", nargs="*", help="settings, as for train.py; text=english if none is given"
    )
    parser.add_argument("--layout", choices=("auto", *LAYOUTS), default="auto", help="of the source (auto)")
    parser.add_argument("--longest", type=float, help="maximum duration of an utterance in seconds (60)")
    parser.add_argument("--dev", type=float, default=0.05, help="share of the hours for dev.jsonl (0.05)")
    parser.add_argument("--test", type=float, default=0.05, help="share of the hours for test.jsonl (0.05)")
    parser.add_argument("--workers", type=int, help="threads that read files (all cores)")
    parser.add_argument("--shards", type=float, metavar="MB", help="also write shards of about this size")
    arguments = vars(parser.parse_intermixed_args())
    overrides = arguments.pop("overrides")
    if not any(override.startswith("text=") for override in overrides):
        overrides.append("text=english")
    settings = compose_settings(overrides)
    features, model = settings.features.build(), build_shapes(settings)

    def output_frames(seconds: float) -> int:
        return model.frames(features.frames(round(seconds * features.sample_rate)))  # type: ignore[operator]

    report = prepare(
        **arguments,
        alphabet=Alphabet(settings.alphabet),
        normalise=settings.text.build() if settings.text else None,
        output_frames=output_frames,
        corpora=Path(settings.corpora),
    )
    print(report)
