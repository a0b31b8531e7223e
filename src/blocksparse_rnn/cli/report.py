"""Compare finished runs: tables of error rates and sparsity, plots, and a dashboard.

python src/report.py outputs/                       # print the table
python src/report.py outputs/ --paper               # the paper's table beside ours
python src/report.py outputs/demo --out report/     # write tables, plots and dashboard.html
python src/report.py outputs/ --wandb my-team/blocksparse-rnn
python src/report.py outputs/ --keep results/mini   # copy the results, without checkpoints
python src/report.py results/mini results/demo --answers docs   # write docs/RESULTS.md

PERF is (dense CER - CER) / dense CER, where dense is the paper's dense baseline of the same cell; for "PERF same
width" it is the dense model of the same width.
"""

import argparse
from pathlib import Path

from blocksparse_rnn.files import create_folder, durable_file
from blocksparse_rnn.report.paper.table import paper_tables
from blocksparse_rnn.report.results import Row, Run, keep_runs, read_runs, rows_of
from blocksparse_rnn.report.table import Table, as_csv, as_latex, as_markdown, as_text, run_tables
from blocksparse_rnn.report.workspace import publish


def main() -> None:
    """Read the arguments, print and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="folders with runs, at any depth")
    parser.add_argument("--paper", action="store_true", help="only the paper's nine rows, ours beside them")
    parser.add_argument("--out", type=Path, help="folder for tables, plots and dashboard.html")
    parser.add_argument("--keep", type=Path, help="folder for copies of the finished runs' results")
    parser.add_argument(
        "--answers", type=Path, metavar="DOCS", help="write DOCS/RESULTS.md: the paper's table and questions"
    )
    parser.add_argument("--wandb", metavar="ENTITY/PROJECT", help="write the comparison to a W&B workspace")
    arguments = parser.parse_args()
    runs, others = read_runs(arguments.folders)
    rows = rows_of(runs)
    tables = paper_tables(rows) if arguments.paper else run_tables(rows)
    print(as_text(tables), flush=True)  # plots take a little longer
    if others:
        print(f"\nleft out: {len(others)}", *others, sep="\n  ")
    if arguments.out:
        print(f"\nwritten: {', '.join(map(str, write_report(arguments.out, runs, rows, tables)))}")
    if arguments.keep:
        print(f"\nkept: {keep_runs(runs, arguments.keep)} runs in {arguments.keep}")
    if arguments.answers:
        # It plots, and matplotlib takes a second to load.
        from blocksparse_rnn.report.paper.results_page import write_page

        print(f"\nwritten: {write_page(runs, arguments.folders, arguments.answers)}")
    if arguments.wandb:
        print(f"\nW&B workspace: {publish(arguments.wandb)}")


def write_report(folder: Path, runs: list[Run], rows: list[Row], tables: list[Table]) -> list[Path]:
    """Write tables, plots and the dashboard; returns the files.

    Raises:
        UserError: no permission, no space.
    """
    # matplotlib and Plotly take a second to load.
    from blocksparse_rnn.report.dashboard import write_dashboard
    from blocksparse_rnn.report.plots import draw_all

    create_folder(folder)
    pictures = draw_all(folder, runs, rows)
    shown = "".join(f"\n![{picture.stem}]({picture.name})\n" for picture in pictures)
    texts = {
        "report.md": as_markdown(tables) + shown,
        "report.tex": as_latex(tables),
        "report.csv": as_csv(rows),
    }
    for name, text in texts.items():
        with durable_file(folder / name, "w") as file:
            file.write(text)
    page = folder / "dashboard.html"
    write_dashboard(runs, page)
    return [*(folder / name for name in texts), *pictures, page]
