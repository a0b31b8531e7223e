"""Is data loaded as fast as training uses it? Frames of 10 ms per second of both.

Loading is measured in the training process and with 2 workers, with and without augmentation, from files and from
shards. Training is measured at mini scale on one core of this CPU, and estimated at paper scale on one GPU: operations
of a step over those of the GPU per second. Times are CPU times of the busiest process, so that other load on the
machine does not change them; each process needs a core.

python benchmarks/input_speed.py [--hours 0.25] [--json results.json]
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from blocksparse_rnn.config.build import build_shapes
from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.data.augment import Augmenter
from blocksparse_rnn.data.checks import split_usable
from blocksparse_rnn.data.datamodule import SpeechData
from blocksparse_rnn.data.shards import Shards, write_shards
from blocksparse_rnn.pruning.prunable import count_parameters
from blocksparse_rnn.runs.provenance import cpu_name
from blocksparse_rnn.speech.alphabet import Alphabet
from blocksparse_rnn.training.recogniser import build_recogniser

HOP = 0.01  # seconds
GPU_FLOPS = 989e12  # dense bf16 of an H100 SXM, as its data sheet says
GPU_SHARE = 0.4  # of that, an upper bound for recurrent networks
MINI = [("rnn", 176), ("rnn", 640), ("gru", 640)]
PAPER = [("gru", 2560), ("rnn", 1760)]


def loading(data: SpeechData) -> float:
    """Frames per second of loading an epoch, by the CPU time of the busiest process."""
    loader = data.train_dataloader()
    frames, started, others = 0.0, time.process_time(), children_seconds()
    batches = iter(loader)
    for batch in batches:
        frames += sum(batch.samples) / data.datasets["train"].sample_rate / HOP
    busiest = time.process_time() - started
    if data.workers:
        batches._shutdown_workers()  # type: ignore[attr-defined]  # the time of a process is known once it has ended
        busiest = max(busiest, (children_seconds() - others) / data.workers)
    return frames / busiest


def children_seconds() -> float:
    """CPU time of all finished child processes."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def need_here(settings: Settings, data: SpeechData, steps: int = 6) -> float:
    """Frames per second of training on this CPU: forward, backward and update."""
    recogniser = build_recogniser(settings)
    optimizer = torch.optim.AdamW(recogniser.parameters(), lr=1e-4)
    batches = [batch for batch, _ in zip(data.train_dataloader(), range(steps + 1), strict=False)]
    frames, started = 0.0, 0.0
    for number, batch in enumerate(batches):
        if number == 1:  # the first one warms up
            started = time.process_time()
        logits_BTV, lengths = recogniser(batch.wave_BS, batch.samples)
        recogniser.ctc_loss(logits_BTV, lengths, batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        frames += sum(batch.samples) / recogniser.features.sample_rate / HOP if number else 0
    return frames / (time.process_time() - started)


def need_on_gpu(settings: Settings) -> dict:
    """Frames per second that a GPU can train at most: 6 operations for each weight in matrices and frame."""
    model: Any = build_shapes(settings)
    features = settings.features.build()
    stride = features.frames(160_000) / model.frames(features.frames(160_000))
    weights = count_parameters(model, settings.prunable).prunable
    # Without the convolutions, whose operations would only lower the bound.
    flops = 6 * weights / stride
    return {
        "weights": weights,
        "time_stride": round(stride, 2),
        "flops_per_frame": flops,
        "frames_per_second": GPU_FLOPS * GPU_SHARE / flops,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=0.25, help="of synthetic speech")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    common = ["scale=mini", f"data.hours={arguments.hours}"]
    settings = compose_settings([*common, "augment=standard"])
    utterances = settings.data.build().prepare()
    alphabet, rate = Alphabet(settings.alphabet), settings.features.sample_rate
    recogniser = build_recogniser(settings)
    augment = Augmenter(
        [node.build() for node in settings.augment.nodes()] if settings.augment else [],
        seed=0,
        fewest_samples=recogniser.fewest_samples(60),
        alphabet=alphabet,
    )

    def data(splits: dict, workers: int, augmenter: Augmenter | None = None) -> SpeechData:
        return SpeechData(
            splits, alphabet, sample_rate=rate, batch=32, seed=0, workers=workers, augment=augmenter
        )

    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for split, members in utterances.items():
            write_shards(members, Path(folder), split, 5)
        places = {split: f"{folder}/{split}-*.tar" for split in utterances}
        shards = Shards(**places, window=None, longest=None, folder=folder, workers=None).prepare()
        for split in shards.values():
            split_usable(split, alphabet, lambda seconds: recogniser.output_frames(round(seconds * rate)))
        for source, splits in (("files", utterances), ("shards", shards)):
            for workers in (0, 2):
                for augmenter in (None, augment):
                    speed = loading(data(splits, workers, augmenter))
                    rows.append(
                        {
                            "loading": source,
                            "workers": workers,
                            "augment": augmenter is not None,
                            "frames_per_second": speed,
                        }
                    )
                    extra = "augmented" if augmenter else ""
                    print(f"loading {source:6} {workers} workers {extra:9} {speed:12,.0f} frames/s")
    for model, width in MINI:
        mini = compose_settings([*common, f"model={model}", f"width={width}"])
        speed = need_here(mini, data(utterances, 0))
        rows.append({"training": f"{model} {width}", "frames_per_second": speed})
        print(f"training {model} {width} on one thread {speed:12,.0f} frames/s")
    for model, width in PAPER:
        need = need_on_gpu(compose_settings([f"model={model}", f"width={width}"]))
        rows.append({"training": f"{model} {width} on a GPU, estimated", **need})
        print(f"training {model} {width} on one GPU, at most {need['frames_per_second']:12,.0f} frames/s")
    if arguments.json:
        about = {
            "machine": cpu_name(),
            "threads": 1,
            "seed": 0,
            "hours": arguments.hours,
            "gpu_flops": GPU_FLOPS,
            "gpu_share": GPU_SHARE,
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(about, indent=2) + "\n")


if __name__ == "__main__":
    main()
