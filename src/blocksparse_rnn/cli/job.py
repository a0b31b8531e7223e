"""One job of a sweep: train the run whose settings lie in a folder.

python -m blocksparse_rnn.cli.job outputs/gru-640-glp-b4-s0-1f9c2a    # do one point of a sweep again
"""

import os
import sys
import threading

from blocksparse_rnn.cli.program import run
from blocksparse_rnn.config.checks import check
from blocksparse_rnn.config.schema import read_settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import STDIN_IS_PARENT
from blocksparse_rnn.training.train import train


def main() -> None:
    """Train the run folder named on the command line."""
    if len(sys.argv) != 2:
        raise UserError("give one run folder: python -m blocksparse_rnn.cli.job outputs/RUN")
    run = RunFolder(sys.argv[1])
    if not (run.path / "config.yaml").is_file():
        raise UserError(f"{run.path}: no run folder (no config.yaml in it); give a folder under outputs/")
    _end_with_the_sweep()
    settings = read_settings(run)
    check(settings)
    train(settings, run)


def _end_with_the_sweep() -> None:
    """Leave at once when the pipe on standard input closes: the sweep that started us was killed.

    What is on disk stays whole, and the sweep's next start goes on from it.
    """
    if not os.environ.pop(STDIN_IS_PARENT, None):
        return  # started by hand, where any pipe is somebody else's

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


if __name__ == "__main__":
    run(main)
