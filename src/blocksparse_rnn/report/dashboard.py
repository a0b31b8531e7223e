"""dashboard.html: one page with a table of runs, scatter plot, curves, settings of two runs and masks; works offline."""

import base64
import json
import math
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from blocksparse_rnn.files import durable_file
from blocksparse_rnn.report.results import Run, read_curves

_CURVES = ("val/cer", "val/loss", "train/loss", "sparsity/prunable", "sparsity/pruned", "sparsity/total")
_POINTS = 200  # of a curve, at most
_TEMPLATE = "dashboard.html"
_PICTURE = "masks.png"
_MASKS = "<!--MASKS-->\n"


def write_dashboard(runs: list[Run], path: Path) -> None:
    """Write the page.

    Raises:
        UserError: no permission, no space.
    """
    template = (files(__package__) / _TEMPLATE).read_text(encoding="utf-8")
    # Only "<" could end a script element: escaped, no text of a run becomes markup.
    entries = _without_nan([_entry(run) for run in runs])
    data = json.dumps(entries, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    page, end = template.replace("/*PLOTLY*/", plotly).replace("/*RUNS*/", data).split(_MASKS)
    with durable_file(path, "w") as file:
        file.write(page)
        # Nearly all of the page's bytes: after everything that draws the page, and decoded on demand.
        for i, (run, entry) in enumerate(zip(runs, entries, strict=True)):
            if entry["masks"]:
                picture = base64.b64encode((run.path / _PICTURE).read_bytes()).decode("ascii")
                file.write(f'<script type="text/plain" id="masks-{i}">{picture}</script>\n')
        file.write(end)


def _entry(run: Run) -> dict[str, Any]:
    """What the page shows of a run."""
    result = run.result
    cell, width = run.model
    return {
        "name": result["name"],
        "group": run.group,
        "model": f"{cell} {width}",
        "algorithm": run.algorithm,
        "block": run.block,
        "seed": run.settings["seed"],
        "sweep": result.get("sweep"),
        "cer": result["cer"],
        "wer": result["wer"],
        "sparsity": result["sparsity/total"],
        "prunable": result["sparsity/prunable"],
        "nonzero": result["parameters"]["nonzero"],
        "seconds": result.get("wall_seconds"),
        "settings": dict(_flat(run.settings)),
        "curves": {} if run.reevaluated else _curves(run),
        "masks": (run.path / _PICTURE).exists(),
    }


def _without_nan(value: Any) -> Any:
    """NaN and infinities, which JSON lacks, as null: a gap in a curve."""
    if isinstance(value, dict):
        return {key: _without_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_without_nan(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Settings by dotted name, as text."""
    pairs = []
    for key, value in settings.items():
        if isinstance(value, dict) and value:
            pairs += _flat(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", json.dumps(value)))
    return pairs


def _curves(run: Run) -> dict[str, list[list[float]]]:
    """Metric -> [steps, values], thinned evenly and rounded to four digits."""
    found = {metric: curve for metric, curve in read_curves(run).items() if metric in _CURVES}
    return {
        metric: [_thinned(steps), [float(f"{value:.4g}") for value in _thinned(values)]]
        for metric, (steps, values) in found.items()
    }


def _thinned(values: Sequence[float]) -> list[float]:
    if len(values) <= _POINTS:
        return list(values)
    return [values[round(i * (len(values) - 1) / (_POINTS - 1))] for i in range(_POINTS)]
