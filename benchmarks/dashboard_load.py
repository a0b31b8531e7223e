"""How long dashboard.html takes to open, with as many runs as asked for: copies of some under other names.

Each opening has a browser of its own. The page is usable once table and plots are drawn, and whole once the
masks behind them are read too.

python benchmarks/dashboard_load.py results/mini results/demo [--runs 300] [--opens 5]
"""

import argparse
import shutil
import statistics
import tempfile
from dataclasses import replace
from itertools import cycle, islice
from pathlib import Path

from playwright.sync_api import sync_playwright

from blocksparse_rnn.report.dashboard import write_dashboard
from blocksparse_rnn.report.results import read_runs

DRAWN = "document.querySelector('#runs tbody tr') && document.querySelector('#scatter .point')"
PAINTED = "new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(performance.now()))))"
WHOLE = "performance.getEntriesByType('navigation')[0].loadEventEnd"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="with finished runs")
    parser.add_argument("--runs", type=int, default=300)
    parser.add_argument("--opens", type=int, default=5)
    arguments = parser.parse_args()
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        parser.error("needs chromium: apt-get install chromium")
    kept = islice(cycle(read_runs(arguments.folders)[0]), arguments.runs)
    runs = [replace(run, result={**run.result, "name": f"{i}-{run.path.name}"}) for i, run in enumerate(kept)]
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "dashboard.html"
        write_dashboard(runs, page)
        times = [opened(browser, page.as_uri()) for _ in range(arguments.opens)]
        drawn, whole = (statistics.median(each) for each in zip(*times, strict=True))
        size = page.stat().st_size / 1e6
    print(f"{len(runs)} runs, {size:.1f} MB: drawn after {drawn:.2f} s, whole after {whole:.2f} s")


def opened(browser: str, address: str) -> tuple[float, float]:
    """Seconds until the page is drawn and until it is whole."""
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"]) as chromium,
    ):
        page = chromium.new_page()
        page.goto(address, wait_until="commit")
        page.wait_for_function(DRAWN)
        drawn = page.evaluate(PAINTED)
        page.wait_for_function(f"{WHOLE} > 0")
        return drawn / 1000, page.evaluate(WHOLE) / 1000


if __name__ == "__main__":
    main()
