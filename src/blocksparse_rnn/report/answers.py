"""docs/RESULTS.md: the paper's table and its four questions, answered from committed results.

Every number and every comparison in the text is computed here, so that none can differ from the data.
"""

import math
from collections.abc import Callable
from itertools import combinations, groupby, pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from blocksparse_rnn.command_line import compose_settings
from blocksparse_rnn.config import resolve
from blocksparse_rnn.errors import UserError
from blocksparse_rnn.files import create_folder, durable_file
from blocksparse_rnn.report.hours import hours_table, rows_by_hours
from blocksparse_rnn.report.paper import PAPER, match, paper_table
from blocksparse_rnn.report.plot import block_panel, nonzero_panel, panels, save, sparsity_panel
from blocksparse_rnn.report.regime import in_the_papers_regime
from blocksparse_rnn.report.results import REFERENCE, Row, Run, by_name, rows_of
from blocksparse_rnn.report.shipped import shipped_by_block
from blocksparse_rnn.report.table import EMPTY, Table, percent, rate

_BLOCKS_WIDTH = 2560  # of rq2_blocks, as the paper numbers its rows
_COMMAND = "python src/train.py -m -cd sweeps -cn {} scale={}"
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
    groups = [list(rows) for _, rows in groupby(trained, key=lambda row: row.group)]
    main = max(groups, key=lambda rows: sum(match(paper, rows) is not None for paper in PAPER), default=[])
    if not any(match(paper, main) for paper in PAPER):
        raise UserError(f"{named}: no row of the paper's table is in it; `make reproduce-table` trains them")
    pictures = docs / "results"
    create_folder(pictures)
    scale = main[0].group.split()[0]
    by_hours = _by_hours(main, trained, runs)
    others = [rows for rows in groups if rows is not main and not _all_told(rows, by_hours)]
    sections = [
        _HEAD.format(named=named, docs=docs, circumstances=_circumstances(main, runs)),
        _the_corpus(main, runs, scale),
        _the_table(main, runs, scale, pictures),
        _how_sparse(main, scale, pictures),
        _blocks(main, scale, pictures, folders),
        _algorithms(main),
        _width(main, scale, pictures),
        _hours(by_hours, runs),
        _tested_again([row for row in all_rows if row.retested], main, runs),
        *(_elsewhere(rows, runs, i, pictures) for i, rows in enumerate(others)),
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
    now = resolve(compose_settings([f"scale={name}"]))["scale"]
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


def _the_corpus(rows: list[Row], runs: list[Run], scale: str) -> str:
    """How far the corpus makes of small models what the paper's made of its own."""
    elsewhere = {run.group for run in runs} - {rows[0].group}
    others = " What other corpora make of such models is at the end of this page." if elsewhere else ""
    return f"""## The corpus

In the paper dense networks are wider than their task needs: acoustics set their error rate. A small corpus
should ask the same of small networks, by the measures below; `{_COMMAND.format("twice_the_width", scale)}`
trains the widest. Noise leaves width much to gain, a bad line that loses a part of the speech leaves it less, and
wrong letters in the transcripts leave it least: nothing in the sound says which they are.{others}

{in_the_papers_regime(rows, runs)}
"""


def _the_table(rows: list[Row], runs: list[Run], scale: str, pictures: Path) -> str:
    matched = [row for paper in PAPER if (row := match(paper, rows)) is not None]
    _picture(matched, nonzero_panel, pictures / "table.png")
    pruned = [row for row in matched if row.sparsifier != "none" and row.perf is not None]
    best = [min(of, key=_cer) for cell in REFERENCE if (of := [row for row in pruned if row.cell == cell])]
    told = [
        f"Of the pruned {row.cell.upper()}s {row.model} ({row.algorithm.upper()}, {row.nonzero / 1e6:.2f} M weights "
        f"that are not zero) hears best: {rate(row)}, PERF {percent(row.perf)}.\n"
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
{rows[0].group}; {hours:.1f} hours of processor time for {len(names)} runs. `make reproduce-table SCALE={scale}`, or `{_COMMAND.format("table", scale)}`.

{paper_table(rows).render("github")}

![CER against nonzero parameters](results/table.png)
"""


def _pairs_in_order(cell: str, rows: list[Row]) -> tuple[int, int]:
    """How many pairs of the table's rows of one kind are as in the paper, the better before the worse; of how many."""
    both = [(p.cer, row.cer) for p in PAPER if p.cell == cell and (row := match(p, rows)) is not None]
    pairs = list(combinations(sorted(both), 2))
    return sum(better[1] < worse[1] for better, worse in pairs), len(pairs)


def _how_sparse(rows: list[Row], scale: str, pictures: Path) -> str:
    reference = _of_width(rows, "rnn", REFERENCE["rnn"])
    dense = next((row for row in reference if row.sparsifier == "none"), None)
    pruned = [row for row in reference if row.target is not None and row.schedule == "paper"]
    if dense is None or len(pruned) < 2:
        return ""
    lines = [
        f"{_in_blocks(row)} at {percent(row.target, 0)} %: {_loss(row)}"
        for row in pruned
        if row.block == "4x4" and row.target in (0.8, 0.9)
    ]
    against = f" Against it: {'; '.join(lines)}." if lines else ""
    _picture(reference, sparsity_panel, pictures / "rq1.png")
    return f"""## RQ1: how sparse, at what loss?

The dense {dense.model} reaches {rate(dense)}.{against}
`{_COMMAND.format("rq1_rq3_algorithms", scale)}`

CER in percent, {_seeds(pruned)}:

{_pivot("of prunable %", pruned, lambda row: percent(row.target), _in_blocks, lambda row: row.target or 0.0)}

![CER against sparsity](results/rq1.png)
"""


def _blocks(rows: list[Row], scale: str, pictures: Path, folders: list[Path]) -> str:
    of_width = _of_width(rows, "rnn", _BLOCKS_WIDTH)
    pruned = [row for row in of_width if row.target == 0.9 and row.sparsifier == "bp"]
    if len(pruned) < 2:
        return ""
    best = {s: [row for row in pruned if row.schedule == s] for s in ("paper", "cubic")}
    spans = [
        f" With the {name} schedule the best block is {min(of, key=_cer).block} ({rate(min(of, key=_cer))}), "
        f"the worst {max(of, key=_cer).block} ({rate(max(of, key=_cer))})."
        for name, of in best.items()
        if len(of) > 1
    ]
    both = [(p, c) for p in best["paper"] for c in best["cubic"] if p.block == c.block]
    wins = sum(c.cer < p.cer for p, c in both)
    compared = f" The cubic schedule is better for {wins} of {len(both)} blocks." if both else ""
    dense = [row for row in of_width if row.sparsifier == "none"]
    before = "".join(f" (dense: {rate(row)})" for row in dense)
    _picture(dense + pruned, block_panel, pictures / "rq2.png")
    return f"""## RQ2: what do block size and schedule cost?

{pruned[0].model}{before}, 90 % of the prunable weights gone.{"".join(spans)}{compared}
`{_COMMAND.format("rq2_blocks", scale)}`

CER in percent, {_seeds(pruned)}:

{_pivot("block", pruned, lambda row: row.block, lambda row: f"{row.schedule} schedule")}

![CER by block](results/rq2.png)

{shipped_by_block(best["paper"], folders)}"""


def _algorithms(rows: list[Row]) -> str:
    reference = [row for row in _of_width(rows, "rnn", REFERENCE["rnn"]) if row.schedule != "cubic"]
    by = {
        name: [r for r in reference if r.sparsifier == name and r.block == "4x4"]
        for name in ("bp", "glp", "gl")
    }
    both = [(b, g) for b in by["bp"] for g in by["glp"] if b.target == g.target]
    if not both:
        return ""
    wins = [percent(b.target, 0) for b, g in both if g.cer < b.cer]
    text = f"GLP hears better than BP at {len(wins)} of {len(both)} sparsities"
    text += f" ({', '.join(wins)} %)." if wins else "."
    lines, beaten = [], 0
    for row in by["gl"]:
        sparser = [g for g in by["glp"] if g.prunable_sparsity >= row.prunable_sparsity]
        next_one = min(sparser, key=lambda g: g.prunable_sparsity, default=None)
        beside = (EMPTY, EMPTY) if next_one is None else (percent(next_one.prunable_sparsity), rate(next_one))
        beaten += next_one is not None and next_one.cer < row.cer
        lines.append((row.algorithm.split()[1], percent(row.prunable_sparsity), rate(row), *beside))
    if lines:
        headings = ("lambda_g", "GL: of prunable %", "CER %", "next GLP: of prunable %", "CER %")
        alone = (
            f" A lasso alone has no target ({_seeds(by['gl'])}); the GLP row next to it with no fewer zeros "
            f"hears better than {beaten} of these {len(lines)}:\n\n"
        )
        text += alone + Table("", headings, lines, words=0).render("github")
    return f"""## RQ3: BP, GL or GLP?

Command and rows are those of RQ1. {text}
"""


def _width(rows: list[Row], scale: str, pictures: Path) -> str:
    reference = next((r for r in rows if _is(r, 1760, 0.9)), None)
    if reference is None:
        return ""
    pruned = [row for row in rows if row.cell == "rnn" and row.block == "4x4" and row.schedule == "paper"]
    dense = [row for row in rows if row.cell == "rnn" and row.sparsifier == "none"]
    alike = dense + [row for row in pruned if row.sparsifier == "bp"]
    equal = [row for row in alike if abs(row.nonzero / reference.nonzero - 1) < 0.1]
    if len(equal) < 2:
        return ""
    best, of_that_size = min(equal, key=_cer), [row for row in dense if row in equal]
    if best.sparsifier == "none":
        told = f"the dense {best.model} with {rate(best)}."
    else:
        told = f"{best.model}, {percent(best.prunable_sparsity)} % sparse, with {rate(best)}."
        told += "".join(
            f" The dense model of that size, {row.model}, has {rate(row)}." for row in of_that_size
        )
    _picture(dense + pruned, nonzero_panel, pictures / "rq4.png")
    return f"""## RQ4: does pruning a wider model recover the loss?

Among models with about {reference.nonzero / 1e6:.2f} M parameters that are not zero the best is
{told}
`{_COMMAND.format("rq4_width", scale)}`

{_table(sorted(equal, key=lambda row: row.width))}
{_beside_dense([row for row in pruned if row not in equal], dense)}![CER against nonzero parameters](results/rq4.png)
"""


def _beside_dense(pruned: list[Row], dense: list[Row]) -> str:
    """Pruned models beside dense ones with as many weights, as far as there are dense ones on either side."""
    both = [(row, size) for row in pruned if (size := _dense_of_size(row.nonzero, dense)) is not None]
    if not both:
        return ""
    wins = sum(row.cer < expected for row, expected in both)
    headings = (
        *("model", "sparsifier", "of prunable %", "nonzero M"),
        *("CER %", "dense of that size %", "better %"),
    )
    lines = [
        (
            *(row.model, row.algorithm, percent(row.prunable_sparsity), f"{row.nonzero / 1e6:.2f}"),
            *(rate(row), percent(expected, 2), percent(1 - row.cer / expected)),
        )
        for row, expected in both
    ]
    return f"""Of the other RNNs pruned in 4x4 blocks {wins} of {len(both)} hear better than a dense one with as many
weights would, by a power law between the dense models measured next to that size:

{Table("", headings, lines, words=2).render("github")}

"""


def _by_hours(main: list[Row], rows: list[Row], runs: list[Run]) -> list[Row]:
    """The pruned reference row on more speech and on less; none where it stands alone."""
    reference = next((row for row in main if _is(row, 1760, 0.9)), None)
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

{rows[0].model}, {_in_blocks(rows[0])} at {percent(rows[0].target, 0)} %, on less speech heard more often and on more heard less
often. Of the dense model's rate it costs from {percent(_worse(least))} % to {percent(_worse(most))} %.
`python src/train.py -m -cd sweeps -cn hours`

{hours_table(rows, runs)}
"""


def _tested_again(rows: list[Row], main: list[Row], runs: list[Run]) -> str:
    """Recognisers of the table's corpus on other speech than they learnt, or on other transcripts of it."""
    named = by_name(runs)
    trained = {name for row in main for name in row.names}
    sources = {row.names[0]: Path(named[row.names[0]].settings["weights"]).name for row in rows}
    elsewhere = [row for row in rows if sources[row.names[0]] in trained and row.group != main[0].group]
    headings = ("model", "sparsifier", "of prunable %", "CER %", "tested again: CER %", "PERF %")
    sections = []
    for group, again in groupby(elsewhere, key=lambda row: row.group):
        lines = [
            (
                *(row.model, row.algorithm, percent(row.prunable_sparsity)),
                *(percent(named[sources[row.names[0]]].result["cer"], 2), rate(row), percent(row.perf)),
            )
            for row in again
        ]
        sections.append(
            f"""## Tested again

The same recognisers, with no more training, on {group}; each by `weights=RUN`, the settings of its run and those of
this corpus.

{Table("", headings, lines, words=2).render("github")}
"""
        )
    return "\n".join(sections)


def _worse(row: Row) -> float:
    return -(row.against_dense or 0.0)


def _elsewhere(rows: list[Row], runs: list[Run], index: int, pictures: Path) -> str:
    name = f"other-{index + 1}.png"
    _picture(rows, nonzero_panel, pictures / name)
    is_sweep = sum(row.sparsifier == "none" and row.perf is not None for row in rows) > 1
    measures = ""
    if is_sweep:
        table = paper_table(rows, missing=False).render("github")
        measures = f"{in_the_papers_regime(rows, runs)}\n\n{table}\n\n"
    return f"""## On another corpus

{rows[0].group}.

{measures}{_table(rows)}
![CER against nonzero parameters](results/{name})
"""


def _of_width(rows: list[Row], cell: str, paper_width: int) -> list[Row]:
    return [row for row in rows if row.cell == cell and row.paper_width == paper_width]


def _is(row: Row, paper_width: int, target: float) -> bool:
    chosen = (row.cell, row.paper_width, row.sparsifier, row.block, row.schedule, row.target)
    return chosen == ("rnn", paper_width, "bp", "4x4", "paper", target)


def _dense_of_size(nonzero: float, dense: list[Row]) -> float | None:
    """The CER that a dense model with so many weights would have, on a line in log-log axes between its neighbours."""
    for (fewer, worse), (more, better) in pairwise(sorted((row.nonzero, row.cer) for row in dense)):
        if fewer <= nonzero < more:
            share = math.log(nonzero / fewer) / math.log(more / fewer)
            return worse * (better / worse) ** share
    return None


def _cer(row: Row) -> float:
    return row.cer


def _loss(row: Row) -> str:
    """A row's rate, and how much worse it is than the dense model of its width."""
    if row.against_dense is None:
        return rate(row)
    return f"{rate(row)} ({percent(-row.against_dense)} % worse)"


def _in_blocks(row: Row) -> str:
    return f"{row.algorithm.upper()} {row.block}"


def _seeds(rows: list[Row]) -> str:
    seeds = sorted({seed for row in rows for seed in row.seeds})
    return f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"


def _pivot(
    head: str,
    rows: list[Row],
    line: Callable[[Row], str],
    column: Callable[[Row], str],
    by: Callable[[Row], float] = lambda row: 0.0,
) -> str:
    """Rates, with a line for each value of one choice, in the order of `by`, and a column for each of another."""
    rates: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        rates.setdefault((line(row), column(row)), []).append(rate(row))
    columns = list(dict.fromkeys(column(row) for row in rows))
    lines = [
        (name, *(" / ".join(rates.get((name, c), [EMPTY])) for c in columns))
        for name in dict.fromkeys(map(line, sorted(rows, key=by)))
    ]
    return Table("", (head, *columns), lines, words=1).render("github")


def _table(rows: list[Row]) -> str:
    headings = (
        "model",
        "sparsifier",
        "block",
        "of prunable %",
        "nonzero M",
        "CER %",
        "vs same width %",
        "seeds",
    )
    cells = [
        (
            *(row.model, row.algorithm, row.block or EMPTY, percent(row.prunable_sparsity)),
            *(f"{row.nonzero / 1e6:.2f}", rate(row), percent(row.against_dense)),
            ",".join(map(str, row.seeds)),
        )
        for row in rows
    ]
    return Table("", headings, cells, words=3).render("github") + "\n"


def _picture(rows: list[Row], panel: Callable[[Axes, list[Row]], None], path: Path) -> None:
    save(panels(rows, panel), path)
