"""Make manifests from your recordings: every file is decoded once, and each one left out is listed with its reason. See `python src/prepare.py --help`."""

from blocksparse_rnn.cli import prepare
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(prepare.main)
