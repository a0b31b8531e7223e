"""Show the parameters of a model: shape of every layer, prunable and total counts. See `python src/summary.py --help`."""

from blocksparse_rnn.cli import summary
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(summary.main)
