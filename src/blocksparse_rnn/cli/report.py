"""Compare finished runs: tables of error rates, sparsity and losses, pictures, and a page to explore.

python src/report.py outputs/                       # print the table
python src/report.py outputs/ --paper               # the paper's table beside ours
python src/report.py outputs/demo --out report/     # and write them, with pictures and dashboard.html
python src/report.py outputs/ --wandb my-team/blocksparse-rnn
python src/report.py outputs/ --keep results/mini   # copy what a report needs, without checkpoints
"""

import argparse
from pathlib import Path

from blocksparse_rnn.report.keep import keep_runs
from blocksparse_rnn.report.paper.table import paper_tables
from blocksparse_rnn.report.results import read_runs, rows_of
from blocksparse_rnn.report.table import as_text, run_tables
from blocksparse_rnn.report.workspace import publish


def main() -> None:
    """Read the arguments, print and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders with runs, at any depth")
    parser.add_argument(
        "--paper", action="store_true", help="only the paper's nine rows, its figures beside ours"
    )
    parser.add_argument("--out", type=Path, help="folder for tables, pictures and dashboard.html")
    parser.add_argument("--keep", type=Path, help="folder for copies of the finished runs' results")
    parser.add_argument(
        "--answers", type=Path, metavar="DOCS", help="write DOCS/RESULTS.md: table and questions"
    )
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="make the comparison a W&B workspace")
    arguments = parser.parse_args()
    runs, others = read_runs(arguments.folders)
    rows = rows_of(runs)
    tables = paper_tables(rows) if arguments.paper else run_tables(rows)
    print(as_text(tables), flush=True)  # pictures take a little longer
    if others:
        print(f"\nleft out: {len(others)}", *others, sep="\n  ")
    if arguments.out:
        # It draws, for which matplotlib takes a second to load.
        from blocksparse_rnn.report.write import write_report

        written = write_report(arguments.out, runs, rows, tables)
        print(f"\nwritten: {', '.join(map(str, written))}")
    if arguments.keep:
        print(f"\nkept: {keep_runs(runs, arguments.keep)} runs in {arguments.keep}")
    if arguments.answers:
        # It composes settings, for which torch and Lightning take seconds to load.
        from blocksparse_rnn.report.paper.answers import write_answers

        print(f"\nwritten: {write_answers(runs, arguments.folders, arguments.answers)}")
    if arguments.wandb:
        print(f"\nW&B workspace: {publish(arguments.wandb)}")
