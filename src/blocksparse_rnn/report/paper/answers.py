"""docs/RESULTS.md: the paper's table and its four questions, answered from committed results.

Every number and every comparison in the text is computed here, so that none can differ from the data.
"""

from itertools import combinations, groupby
from pathlib import Path
from typing import Any, NamedTuple

from blocksparse_rnn.config.compose import compose_settings
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import create_folder, durable_file
from blocksparse_rnn.report.paper.hours import hours_table, rows_by_hours
from blocksparse_rnn.report.paper.questions import (
    COMMAND,
    algorithms,
    blocks,
    cer,
    how_sparse,
    in_blocks,
    reference_pruned,
    width,
)
from blocksparse_rnn.report.paper.regime import in_the_papers_regime
from blocksparse_rnn.report.paper.table import PAPER, match, paper_table
from blocksparse_rnn.report.plot import nonzero_panel, panels, save
from blocksparse_rnn.report.results import REFERENCE, Row, Run, by_name, comparable, rows_of
from blocksparse_rnn.report.table import Table, brief_table, percent, rate

_HEAD = """# Results

Written by `python src/report.py {named} --answers {docs}` from the result files in these folders; no
number in it was typed. Rates are in percent, on voices and sentences never heard in training. PERF is the relative
CER against the dense reference row of the family, (dense - CER) / dense. The paper's own corpus (2,100
hours) is private, so its error rates can't be matched; what can be compared is parameters, sparsity and
PERF.

{circumstances}
"""


def write_answers(runs: list[Run], folders: list[Path], docs: Path) -> Path:
    """Write the page and its pictures; returns the page.

    Args:
        runs: finished runs.
        folders: where they lie, and benchmarks of them.
        docs: folder of RESULTS.md and of results/, its pictures.

    Raises:
        UserError: no run is a row of the paper's table, two have the same name, no permission, no space.
    """
    named = " ".join(map(str, folders))
    all_rows = rows_of(runs)
    trained = [row for row in all_rows if not row.retested]
    groups = comparable(trained)
    main = max(groups, key=lambda rows: sum(match(paper, rows) is not None for paper in PAPER), default=[])
    if not any(match(paper, main) for paper in PAPER):
        raise UserError(f"{named}: no row of the paper's table is in it; `make reproduce-table` trains them")
    pictures = docs / "results"
    create_folder(pictures)
    scale = main[0].group.split()[0]
    by_hours = _by_hours(main, trained, runs)
    others = [rows for rows in groups if rows is not main and not _all_told(rows, by_hours)]
    retests = _retests([row for row in all_rows if row.retested], main, runs)
    sections = [
        _HEAD.format(named=named, docs=docs, circumstances=_circumstances(main, runs)),
        _the_corpus(main, runs, scale, retests),
        _the_table(main, runs, scale, pictures, retests),
        how_sparse(main, scale, pictures),
        blocks(main, scale, pictures, folders),
        algorithms(main, scale, pictures),
        width(main, scale, pictures),
        _hours(by_hours, runs),
        _tested_again(retests),
        *(_elsewhere(rows, main, runs, i, pictures) for i, rows in enumerate(others)),
    ]
    text = "\n".join(section for section in sections if section)
    page = docs / "RESULTS.md"
    with durable_file(page, "w") as file:
        file.write(text)
    for picture in (*pictures.glob("rq*.png"), *pictures.glob("other-*.png")):
        if picture.name not in text:  # of an earlier page, which had more questions or corpora
            picture.unlink()
    return page


def _circumstances(main: list[Row], runs: list[Run]) -> str:
    devices = sorted({run.result["device"] for run in runs})
    threads = sorted({run.result["threads"] for run in runs})
    commits = sorted({str(run.result["commit"]) for run in runs})
    hours = sum(run.result["wall_seconds"] for run in runs) / 3600
    return (
        f"{len(runs)} runs, {hours:.1f} hours of training in all, on {', '.join(devices)} with "
        f"{' or '.join(map(str, threads))} thread(s) each; commits {', '.join(commits)}."
        f"{_of_another_recipe([run for run in runs if run.group == main[0].group])}"
    )


def _of_another_recipe(runs: list[Run]) -> str:
    """A warning where a run's scale has other settings than that of the same name has now."""
    name = runs[0].settings["scale"]["name"]
    now = compose_settings([f"scale={name}"])["scale"]
    if all(_recipe(run.settings["scale"], run) == _recipe(now, run) for run in runs):
        return ""
    return f" Their `scale={name}` was another one than now: the commands below give their figures at these commits."


def _recipe(scale: dict[str, Any], run: Run) -> dict[str, Any]:
    """What a run takes from its scale and does not name: a lasso alone names its strength, as all name their width."""
    unused = {"row_width", "lambda_gl", "lambda_gl_path"}
    unused |= {"lambda_glp"} if run.sparsifier != "glp" else set()
    if run.schedule is None:  # it prunes no blocks
        unused |= {"start_epoch", "ramp_frac", "end_frac", "freq", "rate_exponent"}
    return {key: value for key, value in scale.items() if key not in unused}


class _Retest(NamedTuple):
    """A recogniser of the table's corpus tested again on other speech than it learnt, or on other transcripts of it."""

    row: Row
    source: Row
    """Where its run stands in the table."""
    cer: float
    """With which that very run was tested first."""


def _retests(rows: list[Row], main: list[Row], runs: list[Run]) -> list[_Retest]:
    named = by_name(runs)
    sources = {name: row for row in main for name in row.names}
    found = []
    for row in rows:
        first = Path(named[row.names[0]].settings["weights"]).name
        if first in sources and row.group != sources[first].group:
            found.append(_Retest(row, sources[first], named[first].result["cer"]))
    return found


def _the_corpus(rows: list[Row], runs: list[Run], scale: str, retests: list[_Retest]) -> str:
    """How far the corpus makes of small models what the paper's made of its own."""
    told = ""
    less = sorted(100 * (again.cer - again.row.cer) for again in retests)
    if less and less[0] > 0:
        told = (
            f" On the data of *Tested again* the same recognisers have {less[0]:.1f} to {less[-1]:.1f} points less, "
            "whatever the model: so much of every rate below is the corpus's, and relative losses are larger there."
        )
    elsewhere = {run.group for run in runs} - {rows[0].group}
    others = " What other corpora make of such models is at the end of this page." if elsewhere else ""
    return f"""## The corpus

In the paper dense networks are wider than their task needs: acoustics set their error rate. A small corpus
should ask the same of small networks, by the measures below; `{COMMAND.format("twice_the_width", scale)}`
trains the widest. Noise leaves width much to gain, a bad line that loses a part of the speech leaves it less, and
wrong letters in the transcripts leave it least: nothing in the sound says which they are.{told}{others}

{in_the_papers_regime(rows, runs, [again.row for again in retests])}
"""


def _the_table(rows: list[Row], runs: list[Run], scale: str, pictures: Path, retests: list[_Retest]) -> str:
    matched = [row for paper in PAPER if (row := match(paper, rows)) is not None]
    save(panels(matched, nonzero_panel), pictures / "table.png")
    pruned = [row for row in matched if row.sparsifier != "none" and row.perf is not None]
    best = [min(of, key=cer) for cell in REFERENCE if (of := [row for row in pruned if row.cell == cell])]
    told = [
        f"Of the pruned {row.cell.upper()}s {row.model} ({row.algorithm.upper()}, {row.nonzero / 1e6:.2f} M weights "
        f"that are not zero) hears best: {rate(row)}, PERF {percent(row.perf)}"
        + "".join(
            f" (tested again {rate(again.row)}, PERF {percent(again.row.perf)})"
            for again in retests
            if again.source is row
        )
        + ".\n"
        for row in best
    ]
    told += [
        f"Of the {cell.upper()}s, {same} of {of} pairs of rows stand in the paper's order of CER.\n"
        for cell in REFERENCE
        for same, of in [_pairs_in_order(cell, rows)]
        if of
    ]
    names = {name for row in matched for name in row.names}
    hours = sum(run.result.get("cpu_seconds", 0.0) for run in runs if run.path.name in names) / 3600
    return f"""## The paper's table

{"".join(told)}
{rows[0].group}; {hours:.1f} hours of processor time for {len(names)} runs. `make reproduce-table SCALE={scale}`, or `{COMMAND.format("table", scale)}`.

{paper_table(rows).render("github")}

![CER against nonzero parameters](results/table.png)
"""


def _pairs_in_order(cell: str, rows: list[Row]) -> tuple[int, int]:
    """How many pairs of the table's rows of one kind are as in the paper, the better before the worse; of how many."""
    both = [(p.cer, row.cer) for p in PAPER if p.cell == cell and (row := match(p, rows)) is not None]
    pairs = list(combinations(sorted(both), 2))
    return sum(better[1] < worse[1] for better, worse in pairs), len(pairs)


def _by_hours(main: list[Row], rows: list[Row], runs: list[Run]) -> list[Row]:
    """The pruned reference row on more speech and on less; none where it stands alone."""
    reference = reference_pruned(main)
    found = [] if reference is None else rows_by_hours(reference, rows, runs)
    return found if len(found) > 1 else []


def _all_told(rows: list[Row], by_hours: list[Row]) -> bool:
    """Whether a corpus has nothing but rows that are told by hours, and their dense models."""
    models = {(row.group, row.model) for row in by_hours}
    return all(
        row in by_hours or (row.sparsifier == "none" and (row.group, row.model) in models) for row in rows
    )


def _hours(rows: list[Row], runs: list[Run]) -> str:
    if not rows:
        return ""
    least, most = min(rows, key=_worse), max(rows, key=_worse)
    return f"""## When does pruning cost less?

{rows[0].model}, {in_blocks(rows[0])} at {percent(rows[0].target, 0)} %, on less speech heard more often and on more heard less
often. Of the dense model's rate it costs from {percent(_worse(least))} % to {percent(_worse(most))} %.
`python src/train.py -m -cd sweeps -cn hours`

{hours_table(rows, runs)}
"""


def _worse(row: Row) -> float:
    return -(row.against_dense or 0.0)


def _tested_again(retests: list[_Retest]) -> str:
    headings = ("model", "sparsifier", "of prunable %", "CER %", "tested again: CER %", "PERF %")
    sections = []
    for group, again in groupby(retests, key=lambda again: again.row.group):
        lines = [
            (
                *(row.model, row.algorithm, percent(row.prunable_sparsity)),
                *(percent(first, 2), rate(row), percent(row.perf)),
            )
            for row, _, first in again
        ]
        sections.append(
            f"""## Tested again

The same recognisers, with no more training, on {group}; each by `weights=RUN`, the settings of its run and those of
this corpus.

{Table("", headings, lines, words=2).render("github")}
"""
        )
    return "\n".join(sections)


def _elsewhere(rows: list[Row], main: list[Row], runs: list[Run], index: int, pictures: Path) -> str:
    name = f"other-{index + 1}.png"
    save(panels(rows, nonzero_panel), pictures / name)
    is_sweep = sum(row.sparsifier == "none" and row.perf is not None for row in rows) > 1
    measures = ""
    if is_sweep:
        table = paper_table(rows, missing=False).render("github")
        measures = f"{in_the_papers_regime(rows, runs)}\n\n{table}\n\n"
    heading = "By another recipe" if rows[0].group == main[0].group else "On another corpus"
    return f"""## {heading}

{rows[0].group}.

{measures}{brief_table(rows).render("github")}

![CER against nonzero parameters](results/{name})
"""
