"""What a run logged over its steps."""

import csv

from blocksparse_rnn.report.results import Run

Curve = tuple[list[int], list[float]]
"""Steps and values."""


def read_curves(run: Run) -> dict[str, Curve]:
    """Every metric of a run by name; none where its metrics.csv was not kept. Rows cut by a crash are left out."""
    curves: dict[str, Curve] = {}
    path = run.path / "metrics.csv"
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                try:
                    step, value, _ = int(line["step"]), float(line["value"]), float(line["seconds"])
                except (KeyError, TypeError, ValueError):
                    continue
                steps, values = curves.setdefault(line["metric"], ([], []))
                steps.append(step)
                values.append(value)
    return curves
