"""Print the parameters of a model: shapes, counts, and which of them are prunable. See `python src/summary.py --help`."""

from blocksparse_rnn.cli import summary
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(summary.main)
