"""Print the parameters of a model: shapes, counts, and which of them are prunable.

python src/summary.py model=rnn width=1760
python src/summary.py scale=mini model=gru width=192 --json
"""

import argparse
import json
from typing import Any

from blocksparse_rnn.config.build import build_shapes
from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.pruning.prunable import count_parameters, prunable_matrices


def summarise(settings: Settings) -> dict[str, Any]:
    """The parameters of the model of these settings.

    Returns:
        `total`, `prunable`, and by name: `parameters` (counts), `shapes`, `types` (of prunable ones).
    """
    model = build_shapes(settings)
    counts = count_parameters(model, settings.prunable)
    return {
        "total": counts.total,
        "prunable": counts.prunable,
        "parameters": counts.parameters,
        "shapes": {name: list(p.shape) for name, p in model.named_parameters()},
        "types": {m.name: m.type for m in prunable_matrices(model, settings.prunable)},
    }


def as_table(summary: dict[str, Any]) -> str:
    """The summary as a text table."""
    rows = [("parameter", "shape", "count", "pruned as")]
    for name, count in summary["parameters"].items():
        shape = " x ".join(map(str, summary["shapes"][name]))
        rows.append((name, shape, f"{count:,}", summary["types"].get(name, "")))
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        f"{row[0]:<{widths[0]}}  {row[1]:>{widths[1]}}  {row[2]:>{widths[2]}}  {row[3]}".rstrip()
        for row in rows
    ]
    total, prunable = summary["total"], summary["prunable"]
    lines.append(f"total {total:,} ({total / 1e6:.3f} M), prunable {prunable:,} ({prunable / total:.1%})")
    return "\n".join(lines)


def main() -> None:
    """Read the arguments, print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="settings, as for train.py: model=rnn width=1760")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    summary = summarise(compose_settings(arguments.overrides))
    print(json.dumps(summary, indent=2) if arguments.json else as_table(summary))
