"""One job of a sweep: train the run whose settings are in its folder.

python -m blocksparse_rnn.cli.job outputs/gru-640-glp-b4-s0-1f9c2a    # repeat one run of a sweep
"""

import sys

from blocksparse_rnn.cli.program import run
from blocksparse_rnn.config.checks import check
from blocksparse_rnn.config.schema import read_settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.processes import end_with_parent
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.training.train import train


def main() -> None:
    """Train the run folder named on the command line."""
    if len(sys.argv) != 2:
        raise UserError("give one run folder: python -m blocksparse_rnn.cli.job outputs/RUN")
    run = RunFolder(sys.argv[1])
    if not (run.path / "config.yaml").is_file():
        raise UserError(f"{run.path}: no run folder (no config.yaml in it); give a folder under outputs/")
    end_with_parent()
    settings = read_settings(run)
    check(settings)
    train(settings, run)


if __name__ == "__main__":
    run(main)
