"""Compare finished runs: a table of error rates, sparsity and losses, and a picture.

python src/report.py outputs/                       # print the table
python src/report.py outputs/demo --out report/     # and write report.md and cer-sparsity.png
"""

import argparse
from pathlib import Path

from blocksparse_rnn import cli
from blocksparse_rnn.errors import cannot_write
from blocksparse_rnn.files import durable_file
from blocksparse_rnn.report.plot import draw
from blocksparse_rnn.report.results import read_runs, rows_of
from blocksparse_rnn.report.table import as_markdown, as_text


def program() -> None:
    """Read the arguments, print and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders with runs, at any depth")
    parser.add_argument("--out", type=Path, help="folder for report.md and cer-sparsity.png")
    arguments = parser.parse_args()
    runs, others = read_runs(arguments.folders)
    rows = rows_of(runs)
    print(as_text(rows))
    if others:
        print(f"\nnot finished, left out: {len(others)}", *others, sep="\n  ")
    if arguments.out:
        try:
            arguments.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise cannot_write(arguments.out, error) from error
        draw(rows, arguments.out / "cer-sparsity.png")
        with durable_file(arguments.out / "report.md", "w") as file:
            file.write(as_markdown(rows) + "\n![CER against sparsity](cer-sparsity.png)\n")
        print(f"\nwritten: {arguments.out / 'report.md'}, {arguments.out / 'cer-sparsity.png'}")


if __name__ == "__main__":
    cli.run(program)
