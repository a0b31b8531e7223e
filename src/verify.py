"""Check a finished run: what its result says against its checkpoint, its settings and this installation.

python src/verify.py outputs/rnn-176-dense-s0-1a2b3c
python src/verify.py outputs/rnn-176-bp-b4-s0-4d5e6f --no-test    # without the corpus
python src/verify.py outputs/*/                                   # several; goes on where one is not finished
"""

import argparse
import sys

from blocksparse_rnn import cli
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.verification import verify


def program() -> None:
    """Read the arguments, print a line for each check; exit with 1 where one fails, 2 where nothing can be checked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", help="run folders under outputs/")
    parser.add_argument("--no-test", action="store_true", help="leave the test error rate out")
    arguments = parser.parse_args()
    differing = unchecked = 0
    for run in arguments.runs:
        print(run, flush=True)
        try:
            for what, holds, words in verify(run, test=not arguments.no_test):
                print(f"  {'ok      ' if holds else 'DIFFERS '} {what}: {words}", flush=True)
                differing += not holds
        except UserError as error:
            print(f"  error: {error}", file=sys.stderr, flush=True)
            unchecked += 1
    if differing:
        print(f"{differing} differ")
    if unchecked == len(arguments.runs):
        sys.exit(cli.MISTAKE)
    if unchecked:
        print(f"{unchecked} of {len(arguments.runs)} runs could not be checked")
    if differing or unchecked:
        sys.exit(cli.PARTLY)


if __name__ == "__main__":
    cli.run(program)
