"""Benchmark the block-sparse runtime beside torch, other libraries, and the limits of this machine. See `python src/bench.py --help`."""

import sys

from blocksparse_rnn.cli import bench
from blocksparse_rnn.cli.program import run
from blocksparse_rnn.files import SOURCE

if __name__ == "__main__":
    sys.path.append(str(SOURCE.parent / "benchmarks"))
    run(bench.main)
