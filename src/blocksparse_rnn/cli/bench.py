"""Benchmark the block-sparse runtime beside torch, other libraries, and the limits of this machine.

python src/bench.py --quick                                  # a minute: one matrix, the fewest blocks and batches
python src/bench.py --out results/runtime                    # all of it: bench.json, bench.md, speed.png
python src/bench.py --only layers --threads 2
python src/bench.py --only models --run outputs/RUN          # this trained recogniser; without --run the paper's sizes
"""

import argparse
from pathlib import Path

from blocksparse_rnn.bench.run import PARTS, compile_runtime, run_benchmarks


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few blocks and batches, for a look")
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every rival (default 1)")
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        dest="runs",
        action="append",
        default=[],
        help="a trained run, instead of models of the paper's sizes; may be given several times",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, a list")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json, bench.md and speed.png")
    parser.add_argument(
        "--compile", action="store_true", help="only compile the runtime, ahead of its first use"
    )
    arguments = vars(parser.parse_args())
    if arguments.pop("compile"):
        compile_runtime()
    else:
        run_benchmarks(**arguments)
