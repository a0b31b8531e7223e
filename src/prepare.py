"""Make manifests of your recordings: every file is read once, what can't be used is named with its reason. See `python src/prepare.py --help`."""

from blocksparse_rnn.cli import prepare
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(prepare.main)
