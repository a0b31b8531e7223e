"""Compare finished runs: tables of error rates and sparsity, plots, and a dashboard. See `python src/report.py --help`."""

from blocksparse_rnn.cli import report
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(report.main)
