"""What a sparsifier adds to a training step of a whole recogniser (scale=mini).

The step (forward, backward, clipping, AdamW) and the sparsifier's hooks are timed in turn in one
process; the mean over steps that hold one mask update in five, four times as many as a training has. Overhead =
mean time of the hooks / median time of the step.

python benchmarks/sparsifier_step.py [--threads 1] [--json results.json]
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from blocksparse_rnn.config.build import build_sparsifiers
from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.data.datamodule import Batch
from blocksparse_rnn.runs.provenance import cpu_name
from blocksparse_rnn.training.recogniser import Recogniser, build_recogniser

SECONDS, BATCH, FREQ = 4.0, 32, 5
LIMIT = 0.02


def random_batch(recogniser: Recogniser) -> Batch:
    samples = int(SECONDS * recogniser.features.sample_rate)
    targets = torch.randint(0, 26, (BATCH * 30,))
    return Batch(
        wave_BS=0.1 * torch.randn(BATCH, samples),
        samples=[samples] * BATCH,
        targets=targets,
        target_lengths=[30] * BATCH,
        texts=[""] * BATCH,
        files=[""] * BATCH,
    )


def measure(model: str, width: int, sparsifier: str, block: str, steps: int) -> dict[str, Any]:
    overrides = [f"model={model}", f"width={width}", f"sparsifier={sparsifier}", f"block={block}"]
    settings = compose_settings(["scale=mini", "target_sparsity=0.9", f"schedule.freq={FREQ}", *overrides])
    recogniser = build_recogniser(settings)
    recogniser.log = lambda *_, **__: None  # type: ignore[method-assign]
    assert recogniser.make_optimizer is not None
    made = recogniser.make_optimizer(recogniser.parameters(), 10 * steps, 1)
    optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
    # A trainer as the sparsifiers see it: every step lies within the schedule.
    trainer: Any = SimpleNamespace(
        num_training_batches=1,
        estimated_stepping_batches=10 * steps,
        global_step=FREQ,
        optimizers=[optimizer],
        lr_scheduler_configs=[SimpleNamespace(scheduler=scheduler)],
    )
    callbacks = build_sparsifiers(settings)
    batch = random_batch(recogniser)
    step_ms, hook_ms = [], []
    for hook in ("on_fit_start", "on_train_start"):
        for callback in callbacks:
            getattr(callback, hook)(trainer, recogniser)
    for _ in range(steps):
        start = time.perf_counter()
        optimizer.zero_grad()
        logits_BTV, frames = recogniser(batch.wave_BS, batch.samples)
        recogniser.ctc_loss(logits_BTV, frames, batch).backward()
        middle = time.perf_counter()
        for callback in callbacks:
            callback.on_before_optimizer_step(trainer, recogniser, optimizer)
        masked = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(recogniser.parameters(), 20.0)
        optimizer.step()
        scheduler.step()
        trainer.global_step += 1
        stepped = time.perf_counter()
        for callback in callbacks:
            callback.on_train_batch_end(trainer, recogniser, None, batch, 0)
        end = time.perf_counter()
        step_ms.append(1e3 * (middle - start + stepped - masked))
        hook_ms.append(1e3 * (masked - middle + end - stepped))
    step, hooks = statistics.median(step_ms[1:]), statistics.mean(hook_ms[1:])
    row = {"model": model, "width": width, "sparsifier": sparsifier, "block": block}
    return {**row, "step_ms": round(step, 1), "hooks_ms": round(hooks, 2), "overhead": round(hooks / step, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch (default: its own choice)")
    parser.add_argument("--steps", type=int, default=16, help="a multiple of 5 and one more")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, batch {BATCH}")
    print("model  width  sparsifier  block  step ms  hooks ms  overhead  limit")
    rows = []
    for model in ("rnn", "gru"):
        for width in (256, 512):
            for sparsifier, block in (("bp", "1"), ("bp", "4"), ("glp", "4"), ("glp", "16")):
                row = measure(model, width, sparsifier, block, arguments.steps)
                rows.append({**row, "limit": LIMIT})
                print(
                    f"{model:5}  {width:5}  {sparsifier:10}  {block:>5}  {row['step_ms']:7}  "
                    f"{row['hooks_ms']:8}  {row['overhead']:8.2%}  {LIMIT:.0%}",
                    flush=True,
                )
    if arguments.json:
        machine = {"cpu": cpu_name(), "threads": torch.get_num_threads(), "torch": torch.__version__}
        arguments.json.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
