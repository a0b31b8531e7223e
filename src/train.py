"""Train a recogniser, or sweep over many. See `python src/train.py --help`."""

from blocksparse_rnn.cli import train
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(train.main)
