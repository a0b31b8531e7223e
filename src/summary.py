"""Show the parameters of a model: shape of every layer, prunable and total counts.

python src/summary.py model=rnn width=1760
python src/summary.py scale=mini model=gru width=192 --json
"""

import argparse
import json

from blocksparse_rnn import cli
from blocksparse_rnn.command_line import compose_settings
from blocksparse_rnn.summary import as_table, summarise


def program() -> None:
    """Read the arguments, print the summary."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("overrides", nargs="*", help="settings, as for train.py: model=rnn width=1760")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    summary = summarise(compose_settings(arguments.overrides))
    print(json.dumps(summary, indent=2) if arguments.json else as_table(summary))


if __name__ == "__main__":
    cli.run(program)
