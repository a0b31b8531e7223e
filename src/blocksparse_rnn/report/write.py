"""The files of a report."""

from pathlib import Path

from blocksparse_rnn.files import create_folder, durable_file
from blocksparse_rnn.report.dashboard import write_dashboard
from blocksparse_rnn.report.plot import draw_all
from blocksparse_rnn.report.results import Row, Run
from blocksparse_rnn.report.table import Table, as_csv, as_latex, as_markdown


def write_report(folder: Path, runs: list[Run], rows: list[Row], tables: list[Table]) -> list[Path]:
    """Write tables, pictures and the page to explore; returns the files.

    Raises:
        UserError: no permission, no space.
    """
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
