"""Check a finished run: compare its result.json with its checkpoint, its settings and this installation. See `python src/verify.py --help`."""

from blocksparse_rnn.cli import verify
from blocksparse_rnn.cli.program import run

if __name__ == "__main__":
    run(verify.main)
