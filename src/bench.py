"""Benchmark the block-sparse runtime beside torch, other libraries, and the limits of this machine. See `python src/bench.py --help`."""

from blocksparse_rnn.cli import bench
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(bench.main)
