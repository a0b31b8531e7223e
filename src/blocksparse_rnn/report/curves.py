"""What a run logged over its steps."""

import csv

from blocksparse_rnn.report.results import Run

Curve = tuple[list[int], list[float]]
"""Steps and values."""


def read_curves(run: Run) -> dict[str, Curve]:
    """Every metric of a run by name; none where its metrics.csv was not kept."""
    curves: dict[str, Curve] = {}
    path = run.path / "metrics.csv"
    if path.exists():
        with open(path, newline="", encoding="utf-8") as file:
            for line in csv.DictReader(file):
                steps, values = curves.setdefault(line["metric"], ([], []))
                steps.append(int(line["step"]))
                values.append(float(line["value"]))
    return curves
