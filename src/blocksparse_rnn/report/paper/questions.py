"""The paper's four questions over the rows of one corpus.

Each is a section of docs/RESULTS.md in Markdown, its picture written into the folder `pictures`; empty where too few
runs answer it.
"""

import math
import statistics
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from blocksparse_rnn.report.paper.shipped import shipped_by_block
from blocksparse_rnn.report.plot import block_panel, nonzero_panel, panels, save, sparsity_panel
from blocksparse_rnn.report.results import REFERENCE, Row
from blocksparse_rnn.report.table import EMPTY, Table, brief_table, percent, rate

_BLOCKS_WIDTH = 2560  # of rq2_blocks, as the paper numbers its rows
COMMAND = "python src/train.py -m -cd sweeps -cn {} scale={}"


def how_sparse(rows: list[Row], scale: str, pictures: Path) -> str:
    """RQ1: how sparse may the RNN of the reference row become, at what loss?"""
    reference = _of_width(rows, "rnn", REFERENCE["rnn"])
    dense = next((row for row in reference if row.sparsifier == "none"), None)
    pruned = [row for row in reference if row.target is not None and row.schedule == "paper"]
    if dense is None or len(pruned) < 2:
        return ""
    lines = [
        f"{in_blocks(row)} at {percent(row.target, 0)} %: {_loss(row)}"
        for row in pruned
        if row.block == "4x4" and row.target in (0.8, 0.9)
    ]
    against = f" Against the dense one of the same seed: {'; '.join(lines)}." if lines else ""
    save(panels(reference, sparsity_panel), pictures / "rq1.png")
    return f"""## RQ1: how sparse, at what loss?

The dense {dense.model} reaches {rate(dense)}.{against}
`{COMMAND.format("rq1_rq3_algorithms", scale)}`

CER in percent, {_seeds(pruned)}:

{_pivot("of prunable %", pruned, lambda row: percent(row.target), in_blocks, lambda row: row.target or 0.0)}

![CER against sparsity](results/rq1.png)
"""


def blocks(rows: list[Row], scale: str, pictures: Path, folders: list[Path]) -> str:
    """RQ2: what do block size and schedule cost, and what do they gain a shipped file?"""
    of_width = _of_width(rows, "rnn", _BLOCKS_WIDTH)
    pruned = [row for row in of_width if row.target == 0.9 and row.sparsifier == "bp"]
    if len(pruned) < 2:
        return ""
    best = {s: [row for row in pruned if row.schedule == s] for s in ("paper", "cubic")}
    spans = [
        f" With the {name} schedule the best block is {min(of, key=cer).block} ({rate(min(of, key=cer))}), "
        f"the worst {max(of, key=cer).block} ({rate(max(of, key=cer))})."
        for name, of in best.items()
        if len(of) > 1
    ]
    both = [(p, c) for p in best["paper"] for c in best["cubic"] if p.block == c.block]
    gains = [1 - c.cer / p.cer for p, c in both]
    alike = _alike({p.block: p.cer - c.cer for p, c in both}, rows)
    compared = f" The cubic schedule is better for {_wins(gains)}{alike}." if gains else ""
    dense = [row for row in of_width if row.sparsifier == "none"]
    before = "".join(f" (dense: {rate(row)})" for row in dense)
    save(panels(dense + pruned, block_panel), pictures / "rq2.png")
    return f"""## RQ2: what do block size and schedule cost?

{pruned[0].model}{before}, 90 % of the prunable weights gone.{"".join(spans)}{compared}
`{COMMAND.format("rq2_blocks", scale)}`

CER in percent, {_seeds(pruned)}:

{_pivot("block", pruned, lambda row: row.block, lambda row: f"{row.schedule} schedule")}

![CER by block](results/rq2.png)

{shipped_by_block(best["paper"], folders)}"""


def algorithms(rows: list[Row], scale: str, pictures: Path) -> str:
    """RQ3: block pruning, group lasso or both?"""
    reference = [row for row in _of_width(rows, "rnn", REFERENCE["rnn"]) if row.schedule != "cubic"]
    by = {
        name: [r for r in reference if r.sparsifier == name and r.block == "4x4"]
        for name in ("bp", "glp", "gl")
    }
    both = [(b, g) for b in by["bp"] for g in by["glp"] if b.target == g.target]
    if not both:
        return ""
    wins = [percent(b.target, 0) for b, g in both if g.cer < b.cer]
    alike = _alike({f"{percent(b.target, 0)} %": b.cer - g.cer for b, g in both}, rows)
    text = f"GLP hears better than BP at {len(wins)} of {len(both)} sparsities"
    text += (f" ({', '.join(wins)} %)" if wins else "") + f"{alike}."
    alone, lines, beaten = "", [], 0
    for row in by["gl"]:
        sparser = [g for g in by["glp"] if g.prunable_sparsity >= row.prunable_sparsity]
        next_one = min(sparser, key=lambda g: g.prunable_sparsity, default=None)
        beside = (EMPTY, EMPTY) if next_one is None else (percent(next_one.prunable_sparsity), rate(next_one))
        beaten += next_one is not None and next_one.cer < row.cer
        lines.append((row.algorithm.split()[1], percent(row.prunable_sparsity), rate(row), *beside))
    if lines:
        headings = ("lambda_g", "GL: of prunable %", "CER %", "next GLP: of prunable %", "CER %")
        alone = (
            f"A lasso alone has no target ({_seeds(by['gl'])}); the GLP row next to it with no fewer zeros "
            f"hears better than {beaten} of these {len(lines)}:\n\n"
        )
        alone += Table("", headings, lines, words=0).render("github") + "\n\n"
    dense = [row for row in reference if row.sparsifier == "none"]
    save(panels([*dense, *by["bp"], *by["glp"], *by["gl"]], sparsity_panel), pictures / "rq3.png")
    return f"""## RQ3: BP, GL or GLP?

{text}
`{COMMAND.format("rq1_rq3_algorithms", scale)}`

{alone}![CER against sparsity of each algorithm](results/rq3.png)
"""


def width(rows: list[Row], scale: str, pictures: Path) -> str:
    """RQ4: does a wider model, pruned to as many weights, hear better?"""
    reference = reference_pruned(rows)
    if reference is None:
        return ""
    rnns = [row for row in rows if row.cell == "rnn" and row.schedule in (None, "paper")]
    pruned = [row for row in rnns if row.block == "4x4" and row.schedule == "paper"]
    dense = [row for row in rnns if row.sparsifier == "none"]
    equal = [row for row in rnns if abs(row.nonzero / reference.nonzero - 1) < 0.1]
    if len(equal) < 2:
        return ""
    best = min(equal, key=cer)
    save(panels(dense + pruned, nonzero_panel), pictures / "rq4.png")
    return f"""## RQ4: does pruning a wider model recover the loss?

Among models with about {reference.nonzero / 1e6:.2f} M parameters that are not zero the best is {_named(best)} with {rate(best)}.
{_recovered(equal, dense)}`{COMMAND.format("rq4_width", scale)}`

{brief_table(sorted(equal, key=lambda row: row.width)).render("github")}

{_beside_dense([row for row in pruned if row not in equal], dense)}![CER against nonzero parameters](results/rq4.png)
"""


def _recovered(equal: list[Row], dense: list[Row]) -> str:
    """How much of what the small dense model loses against the reference those of its size win back by pruning."""
    small = next((row for row in dense if row in equal), None)
    reference = next((row for row in dense if row.paper_width == REFERENCE[row.cell]), None)
    if small is None or reference is None or reference.cer >= small.cer:
        return ""
    lost = small.cer - reference.cer
    pruned = [row for row in equal if row is not small]
    best: dict[str, Row] = {}
    for row in sorted(pruned, key=cer):
        best.setdefault(in_blocks(row), row)
    shares = [
        f"{percent((small.cer - row.cer) / lost, 0)} % ({kind} of {row.model})"
        for kind, row in best.items()
        if row.cer < small.cer
    ]
    behind = [row for row in sorted(pruned, key=lambda row: row.width) if row.cer >= small.cer]
    worse = dict.fromkeys(f"{row.model} ({in_blocks(row)})" for row in behind)
    none = f" Worse than the small dense one hear {', '.join(worse)}." if worse else ""
    return (
        f"The dense one of that size, {small.model}, has {rate(small)}, and {reference.model}, with "
        f"{reference.nonzero / small.nonzero:.0f} times as many, {rate(reference)}. Of these {percent(lost, 1)} points "
        f"pruning from wider ones recovers {'at best ' + ', '.join(shares) if shares else 'none'}.{none}\n"
    )


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


def reference_pruned(rows: list[Row]) -> Row | None:
    """The RNN as wide as the dense reference row, with 90 % of its prunable weights gone in 4x4 blocks."""
    wanted = ("rnn", REFERENCE["rnn"], "bp", "4x4", "paper", 0.9)
    for row in rows:
        if (row.cell, row.paper_width, row.sparsifier, row.block, row.schedule, row.target) == wanted:
            return row
    return None


def cer(row: Row) -> float:
    """To choose rows by."""
    return row.cer


def in_blocks(row: Row) -> str:
    """An algorithm and its block, such as `BP 4x4`."""
    return f"{row.algorithm.upper()} {row.block}"


def _named(row: Row) -> str:
    if row.sparsifier == "none":
        return f"the dense {row.model}"
    return f"{row.model}, {in_blocks(row)}, {percent(row.prunable_sparsity)} % sparse,"


def _alike(differences: dict[str, float], rows: list[Row]) -> str:
    """Which of some differences between rates are no larger than those between seeds."""
    deviations = [row.cer_deviation for row in rows if row.cell == "rnn" and row.cer_deviation is not None]
    if not deviations:
        return ""
    usual = statistics.mean(deviations)
    small = [name for name, difference in differences.items() if abs(difference) <= usual]
    if not small:
        return ""
    return (
        f"; at {', '.join(small)} the two differ by no more than seeds do ({percent(usual, 2)} points, the mean "
        f"standard deviation of the {len(deviations)} RNNs with several)"
    )


def _of_width(rows: list[Row], cell: str, paper_width: int) -> list[Row]:
    return [row for row in rows if row.cell == cell and row.paper_width == paper_width]


def _dense_of_size(nonzero: float, dense: list[Row]) -> float | None:
    """The CER that a dense model with so many weights would have, on a line in log-log axes between its neighbours."""
    for (fewer, worse), (more, better) in pairwise(sorted((row.nonzero, row.cer) for row in dense)):
        if fewer <= nonzero < more:
            share = math.log(nonzero / fewer) / math.log(more / fewer)
            return worse * (better / worse) ** share
    return None


def _loss(row: Row) -> str:
    """A row's rate, and how much worse it is than the dense model of its width."""
    if row.against_dense is None:
        return rate(row)
    return f"{rate(row)} ({percent(-row.against_dense)} % worse)"


def _wins(gains: list[float]) -> str:
    """For how many of some blocks there is a gain, and the largest."""
    wins = [gain for gain in gains if gain > 0]
    largest = f", by up to {percent(max(wins))} %" if wins else ""
    return f"{len(wins)} of {len(gains)} blocks{largest}"


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
