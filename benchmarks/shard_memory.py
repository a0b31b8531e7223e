"""Peak RSS of an epoch over shards and over a manifest, with 1, 4 and 16 times the hours.

Each size has its own process, which runs through the loader of training. The corpus is synthetic speech, repeated for
the larger sizes.

python benchmarks/shard_memory.py [--hours 0.25] [--json results.json]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.data.checks import split_usable
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.manifest import Manifests, Utterance, manifest_line, total_hours
from blocksparse_rnn.data.shards import Shards, write_shards
from blocksparse_rnn.runs.provenance import cpu_name
from blocksparse_rnn.speech.alphabet import Alphabet

TIMES = (1, 4, 16)
WINDOW = 4


def epoch(kind: str, folder: Path) -> None:
    """Run one epoch through the loader and print the peak RSS of this process in MB."""
    torch.set_num_threads(1)
    names = {"train": "train", "dev": "rest", "test": "rest"}
    settings: dict[str, Any] = {"longest": None, "folder": str(folder), "workers": 1}
    ending = "-*.tar" if kind == "shards" else ".jsonl"
    settings |= {split: f"{folder}/{name}{ending}" for split, name in names.items()}
    corpus = Shards(**settings, window=WINDOW) if kind == "shards" else Manifests(**settings)
    alphabet = Alphabet("abcdefghijklmnopqrstuvwxyz '")
    utterances = corpus.prepare()["train"]
    utterances, _ = split_usable(utterances, alphabet, lambda seconds: int(seconds * 25))
    data = SpeechData(
        dict.fromkeys(names, utterances), alphabet, sample_rate=16000, batch=8, seed=0, workers=0
    )
    loader = data.train_dataloader()
    loader.batch_sampler.sampler.set_epoch(1)  # type: ignore[union-attr]
    count = sum(len(batch.texts) for batch in loader)
    print(
        json.dumps(
            {"utterances": count, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        )
    )


def grow(utterances: list[Utterance], times: int, folder: Path) -> None:
    """Write the utterances `times` times, in shards of constant size and in a manifest."""
    many = [replace(u) for _ in range(times) for u in utterances]
    for name, members in (("train", many), ("rest", many[:1])):
        write_shards(members, folder, name, 3)
        (folder / f"{name}.jsonl").write_text("".join(manifest_line(u, folder) for u in members))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.25, help="of the smallest corpus")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--epoch", nargs=2, metavar=("KIND", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.epoch:
        epoch(arguments.epoch[0], Path(arguments.epoch[1]))
        return
    settings = compose_settings(["scale=mini", f"data.hours={arguments.hours}"])
    utterances = settings.data.build().prepare()["train"]
    rows = []
    for times in TIMES:
        with tempfile.TemporaryDirectory() as folder:
            grow(utterances, times, Path(folder))
            shards = len(list(Path(folder).glob("train-*.tar")))
            for kind in ("shards", "manifest"):
                command = [sys.executable, __file__, "--epoch", kind, folder]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                about = json.loads(done.stdout.splitlines()[-1])
                hours = times * total_hours(utterances)
                rows.append(
                    {"kind": kind, "times": times, "hours": round(hours, 3), "shards": shards, **about}
                )
                print(
                    f"{kind:9} {times:3}x {hours:7.2f} h {about['utterances']:6} utterances {about['peak_mb']:8.1f} MB"
                )
    if arguments.json:
        about = {"machine": cpu_name(), "seed": 0, "window": WINDOW, "rows": rows}
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
