"""Export the recogniser of a run as one file with block-sparse weights, for any CPU. See `python src/export.py --help`."""

from blocksparse_rnn.cli import export
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(export.main)
