"""Check a finished run: what its result says against its checkpoint, its settings and this installation.

python src/verify.py outputs/rnn-176-dense-s0-1a2b3c
python src/verify.py outputs/rnn-176-bp-b4-s0-4d5e6f --no-test    # without the corpus
python src/verify.py outputs/*/                                   # several
"""

import argparse
import sys

from blocksparse_rnn import cli
from blocksparse_rnn.verification import verify


def program() -> None:
    """Read the arguments, print a line for each check, exit with 1 where one fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders under outputs/")
    parser.add_argument("--no-test", action="store_true", help="leave the test error rate out")
    arguments = parser.parse_args()
    differing = 0
    for run in arguments.runs:
        print(run)
        for what, holds, words in verify(run, test=not arguments.no_test):
            print(f"  {'ok      ' if holds else 'DIFFERS '} {what}: {words}", flush=True)
            differing += not holds
    if differing:
        print(f"{differing} differ")
        sys.exit(1)


if __name__ == "__main__":
    cli.run(program)
