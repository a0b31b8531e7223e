"""Run folders with what a report reads."""

import json
from pathlib import Path

import yaml

from blocksparse_rnn.report.results import Row, read_runs, rows_of


def sparsifiers(block, target) -> dict[str, dict]:
    """The settings of each sparsifier, as far as a report reads them."""
    schedule = {"name": "paper", "_target_": "blocksparse_rnn.pruning.schedule.PaperSchedule"}
    pruning = {"block": block, "target_sparsity": target, "schedule": schedule}
    return {
        "none": {"name": "none"},
        "bp": {"name": "bp", "block_pruning": pruning},
        "glp": {"name": "glp", "block_pruning": pruning, "group_lasso": {"block": block, "lambda_g": 0.2}},
        "gl": {"name": "gl", "group_lasso": {"block": block, "lambda_g": 2.0}},
    }


def write_run(
    folder: Path,
    cer: float | None,
    width=440,
    sparsifier="none",
    block=4,
    seed=0,
    hours=1.5,
    target=0.9,
    result=None,
    **changes,
) -> Path:
    """A run folder; without a CER it is unfinished. `result` and `changes` change its result and settings."""
    path = folder / f"{width}-{sparsifier}-{block}-{seed}-{hours}-{target}"
    path.mkdir(parents=True)
    settings = {
        "model": {"cell": "rnn"},
        "width": width,
        "block": block,
        "seed": seed,
        "sparsifier": sparsifiers(block, target)[sparsifier],
        "optimizer": {"lr": 0.1},
        "scale": {"name": "mini", "row_width": {"w704": 176, "w1760": 440, "w2560": 640}},
        "trainer": {"max_epochs": 12, "max_steps": -1, "max_time": None},
        "data": {"hours": hours, "vocabulary": 300, "snr_db": [30.0, 40.0], "seed": 0, "folder": str(folder)},
    }
    (path / "config.yaml").write_text(yaml.safe_dump(settings | changes))
    if cer is None:
        (path / "status.json").write_text(json.dumps({"state": "failed"}))
        return path
    sparse = sparsifier != "none"
    measured = {
        "name": path.name,
        "identity": str(path),
        "cer": cer,
        "wer": 3 * cer,
        "sparsity/total": 0.85 if sparse else 0.0,
        "sparsity/prunable": 0.9 if sparse else 0.0,
        "sparsity/matrices": {"recurrent.0.weight_hh": 0.9, "fc.weight": 0.8} if sparse else {},
        "parameters": {"nonzero": 471_000 if sparse else 4_244_000},
        "device": "a processor",
        "threads": 1,
        "commit": "abc",
        "wall_seconds": 1800.0,
        "cpu_seconds": 900.0,
    }
    (path / "result.json").write_text(json.dumps(measured | (result or {})))
    return path


def rows(folder: Path) -> list[Row]:
    return rows_of(read_runs([folder])[0])
