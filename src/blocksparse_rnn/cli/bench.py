"""Benchmark the block-sparse runtime beside torch, other libraries, and the limits of this machine.

python src/bench.py --quick                                  # a minute: one matrix, few blocks and batches
python src/bench.py --out results/runtime                    # all of it: bench.json, bench.md, speed.png
python src/bench.py --only layers --threads 2
python src/bench.py --compile                                # only compile the runtime
python src/bench.py --only models --run outputs/RUN          # a trained run; without --run random models of the paper's sizes
"""

import argparse
from pathlib import Path

from blocksparse_rnn.runtime.library import cache_folder, choose_variant, load


def main() -> None:
    """Read the arguments, measure, print and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one matrix, few blocks and batches")
    parser.add_argument("--only", choices=("products", "layers", "models"), help="one part instead of all")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of every method (default 1)")
    parser.add_argument(
        "--run",
        type=Path,
        metavar="RUN",
        dest="runs",
        action="append",
        default=[],
        help="a trained run instead of random models of the paper's sizes; may be repeated",
    )
    parser.add_argument("--seconds", type=float, default=2.0, help="for each comparison (default 2)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, a list")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write bench.json, bench.md and speed.png")
    parser.add_argument(
        "--compile", action="store_true", help="only compile the runtime, ahead of its first use"
    )
    arguments = vars(parser.parse_args())
    if arguments.pop("compile"):
        variant = choose_variant()
        load(variant)
        print(f"runtime: {variant}, in {cache_folder()}")
        return
    # A package of its own, beside src/ in a checkout; compiling does without it.
    from blocksparse_bench.run import run_benchmarks

    run_benchmarks(**arguments)
