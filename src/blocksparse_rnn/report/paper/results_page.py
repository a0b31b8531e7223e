"""docs/RESULTS.md: the words stand in results.md.jinja, every figure, table and picture comes from result files."""

import json
import math
import statistics
from collections.abc import Callable, Iterable
from importlib.resources import files
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined

from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import create_folder, durable_file
from blocksparse_rnn.report.paper.table import PAPER, find, match, paper_table
from blocksparse_rnn.report.plots import block_panel, nonzero_panel, panels, save, sparsity_panel
from blocksparse_rnn.report.results import Row, Run, by_name, comparable, rows_of
from blocksparse_rnn.report.table import Table, brief_table, percent, rate

_TEMPLATE = "results.md.jinja"
_PANELS = {"sparsity": sparsity_panel, "nonzero": nonzero_panel, "block": block_panel}


def write_page(runs: list[Run], folders: list[Path], docs: Path) -> Path:
    """Write the page and its pictures; returns the page.

    Args:
        runs: finished runs.
        folders: where they lie, and the benchmarks of exported ones (`shipped*/bench.json`).
        docs: folder of RESULTS.md and of results/, its pictures.

    Raises:
        UserError: a run or a benchmark that the page needs is missing, a sentence no longer holds, two runs
            have the same name, no permission, no space.
    """
    environment = Environment(
        extensions=["jinja2.ext.do"], undefined=StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    environment.filters |= {"percent": percent, "rate": rate, "aligned": aligned}
    template = environment.from_string((files(__package__) / _TEMPLATE).read_text(encoding="utf-8"))
    create_folder(docs / "results")
    text = template.render(_content(runs, folders, docs))
    page = docs / "RESULTS.md"
    with durable_file(page, "w") as file:
        file.write(text)
    return page


def _content(runs: list[Run], folders: list[Path], docs: Path) -> dict[str, Any]:
    """Every name that the template uses."""
    named = by_name(runs)
    rows = rows_of(runs)
    groups = comparable(row for row in rows if not row.reevaluated)
    main = max(groups, key=lambda group: sum(match(paper, group) is not None for paper in PAPER), default=[])
    matched = [(paper, ours) for paper in PAPER if (ours := match(paper, main)) is not None]
    measured = exported_models(folders)

    def row(*wanted: Any, **more: Any) -> Row:
        found = find(main, *wanted, **more)
        if found is None:
            which = " ".join(map(str, (*wanted, *more.values())))
            raise UserError(
                f"{' '.join(map(str, folders))}: no run is the paper's {which}, which docs/RESULTS.md needs; train "
                "it with one of the sweeps table, rq1_rq3_algorithms, rq2_blocks and rq4_width"
            )
        return found

    def pick(**wanted: Any) -> list[Row]:
        return [
            found for found in main if all(getattr(found, name) == value for name, value in wanted.items())
        ]

    def exported(pruned: Row, dtype: str) -> Exported:
        for name in pruned.names:
            if (name, dtype) in measured:
                return measured[name, dtype]
        raise UserError(
            f"{' '.join(map(str, folders))}: no shipped*/bench.json measures {pruned.names[0]} as {dtype}; write one with "
            "src/bench.py --only models --run RUN --out FOLDER"
        )

    def picture(name: str, of: list[Row], panel: str) -> str:
        save(panels(of, _PANELS[panel]), docs / "results" / name)
        return f"results/{name}"

    return {
        "folders": " ".join(map(str, folders)),
        "docs": docs,
        "group": main[0].group if main else "",
        "scale": main[0].group.split()[0] if main else "",
        "others": [group for group in groups if group is not main],
        "matched": matched,
        "paper_table": paper_table(main).render("github") if main else "",
        "runs": runs,
        "table_runs": [named[name] for _, ours in matched for name in ours.names],
        "row": row,
        "pick": pick,
        "reevaluated": lambda of: reevaluated(of, rows, named),
        "pairs_in_order": lambda cell: pairs_in_order(cell, main),
        "seed_deviation": seed_deviation(main),
        "dense_of_size": lambda nonzero: dense_of_size(nonzero, pick(cell="rnn", sparsifier="none")),
        "exported": exported,
        "exported_on": sorted({model.device for model in measured.values()}),
        "brief": lambda of: brief_table(of).render("github"),
        "picture": picture,
        "claim": claim,
    }


def claim(holds: bool, caller: Callable[[], str]) -> str:
    """A sentence that is true of these results; UserError where it is not, so that no page says it."""
    text = caller()
    if not holds:
        raise UserError(
            f"{_TEMPLATE}: these results contradict “{' '.join(text.split())}”; reword the sentence"
        )
    return text


def aligned(text: str) -> str:
    """A Markdown table with its columns aligned; its second line says how, as `---` or `--:`."""
    lines = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in text.strip().splitlines()
    ]
    headings, rule, *cells = lines
    return Table("", headings, cells, words=sum(not of.endswith(":") for of in rule)).render("github") + "\n"


class Reevaluated(NamedTuple):
    """A row whose runs were evaluated once more, on other data than they were trained on."""

    row: Row
    before: float
    """Mean CER of the very same runs, as they were evaluated after their training."""


def reevaluated(source: Row, rows: Iterable[Row], runs: dict[str, Run]) -> Reevaluated:
    """A row's runs on other data.

    Raises:
        UserError: they were not re-evaluated.
    """
    for row in rows:
        if row.reevaluated and row.group != source.group:
            names = [Path(runs[name].settings["weights"]).name for name in row.names]
            if set(names) <= set(source.names):
                return Reevaluated(row, statistics.mean(runs[name].result["cer"] for name in names))
    raise UserError(
        f"{source.names[0]} was not re-evaluated, which docs/RESULTS.md needs: "
        "python src/train.py weights=RUN data.typos=null SETTINGS OF THE RUN"
    )


def pairs_in_order(cell: str, rows: list[Row]) -> tuple[int, int]:
    """How many pairs of the table's rows of one cell have their CERs in the paper's order; of how many."""
    both = [(p.cer, row.cer) for p in PAPER if p.cell == cell and (row := match(p, rows)) is not None]
    pairs = list(combinations(sorted(both), 2))
    return sum(lower[1] < higher[1] for lower, higher in pairs), len(pairs)


def seed_deviation(rows: list[Row]) -> float:
    """Mean standard deviation of the CER between seeds, over the RNN rows with several; 0 without any."""
    deviations = [row.cer_deviation for row in rows if row.cell == "rnn" and row.cer_deviation is not None]
    return statistics.mean(deviations) if deviations else 0.0


def dense_of_size(nonzero: float, dense: list[Row]) -> float:
    """The CER of a dense model with so many parameters: a power law between the next smaller and larger one.

    Raises:
        UserError: none is smaller, or none is larger.
    """
    sizes = sorted((row.nonzero, row.cer) for row in dense)
    for (fewer, higher), (more, lower) in pairwise(sizes):
        if fewer <= nonzero < more:
            share = math.log(nonzero / fewer) / math.log(more / fewer)
            return higher * (lower / higher) ** share
    raise UserError(f"no dense models are smaller and larger than {nonzero:.0f} parameters; train some")


class Exported(NamedTuple):
    """An exported model beside its dense checkpoint in PyTorch."""

    megabytes: float
    times_smaller: float
    speed_up: float
    kernels: str
    device: str


def exported_models(folders: list[Path]) -> dict[tuple[str, str], Exported]:
    """(run, dtype) -> what src/bench.py measured, from every `shipped*/bench.json` in some folders.

    Raises:
        UserError: a file isn't such as bench.py writes.
    """
    found: dict[tuple[str, str], Exported] = {}
    for path in sorted(path for folder in folders for path in folder.glob("shipped*/bench.json")):
        try:
            bench = json.loads(path.read_text(encoding="utf-8"))
            models = [row for row in bench["rows"] if row["op"] == "model"]
            dense = {row["model"]: row["file_bytes"] for row in models if row["backend"] == "torch dense"}
            for row in models:
                if row["backend"] == "blocksparse":
                    size = row["file_bytes"]
                    found[row["model"], row["dtype"]] = Exported(
                        megabytes=size / 1e6,
                        times_smaller=dense[row["model"]] / size,
                        speed_up=row["ratio_to_dense"],
                        kernels=bench["variant"],
                        device=bench["device"],
                    )
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path}: not a benchmark of models ({error}); write it with src/bench.py"
            ) from error
    return found
