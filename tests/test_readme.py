"""The figures of README.md are those of committed result files."""

import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NOISE = ROOT / "results" / "noise"


def test_the_table_of_trained_recognisers_is_that_of_results_noise():
    results = {path.parent.name: json.loads(path.read_text()) for path in NOISE.glob("*/result.json")}
    bench = json.loads((NOISE / "speed" / "bench.json").read_text())["rows"]
    dense = next(result for result in results.values() if result["sparsifier"] == "none")
    rows = re.findall(r"^\| (rnn 440[^|]*)" + r"\| ([^|]+) " * 6 + r"\|$", README, re.MULTILINE)
    assert len(rows) == len(results) + 1  # the last one is int8
    for name, *cells in rows:
        block = re.search(r"(\d+)x\d+", name)
        result = next(r for r in results.values() if r["block"] == (int(block[1]) if block else None))
        kind = ("blocksparse", "int8" if "int8" in name else "fp32") if block else ("torch dense", "fp32")
        of_kind = {row["model"]: row for row in bench if (row["backend"], row["dtype"]) == kind}
        run = of_kind[result["name"]]
        # All times are of one comparison: a dense model takes as long whatever its weights are.
        time = next(row for name, row in of_kind.items() if "-bp-" in name)
        cer = run["cer"]
        expected = [
            f"{100 * result['sparsity/total']:.1f} %",
            f"{result['parameters']['nonzero'] / 1e6:.2f} M",
            f"{100 * cer:.2f} %",
            f"{100 * (cer / dense['cer'] - 1):+.1f} %" if block else "-",
            f"{run['file_bytes'] / 1e6:.1f} MB",
            f"{time['real_time_factor']:.4f}",
        ]
        assert cells == expected, name


def test_it_is_short():
    words = re.sub(r"```.*?```", "", README, flags=re.DOTALL).split()
    assert len(words) <= 1000
