"""Does a corpus ask of small models what the paper's asked of its own? There dense networks are wider than their
task needs, and acoustics set their error rate.
"""

import statistics
from collections.abc import Sequence

from blocksparse_rnn.report.curves import read_curves
from blocksparse_rnn.report.results import REFERENCE, Row, Run, by_name
from blocksparse_rnn.report.table import EMPTY, Table, percent, rate

_RATES = 0.05, 0.25
_SETTLED = 0.03
_NARROW_COSTS = 0.15
_WIDTH_GAINS = 0.05


def in_the_papers_regime(rows: list[Row], runs: list[Run], again: Sequence[Row] = ()) -> str:
    """What is asked of a corpus's dense models, and a table of them, in Markdown.

    Args:
        rows: of a corpus.
        runs: of which they are made.
        again: of these models on other data, which are asked the same.
    """
    dense = [row for row in rows if row.sparsifier == "none"]
    named = by_name(runs)
    changes = {
        row.model: change
        for row in dense
        if (change := _late_change([named[name] for name in row.names])) is not None
    }
    cells = [cell for cell in REFERENCE if any(row.cell == cell for row in dense)]
    answers = [_answers([row for row in dense if row.cell == cell], changes) for cell in cells]
    tested = [of for cell in cells if (of := [r for r in again if r.sparsifier == "none" and r.cell == cell])]
    answers += [_answers(of, {}) for of in tested]
    asked = (
        f"CER of {percent(_RATES[0], 0)} to {percent(_RATES[1], 0)} %",
        f"settled: changes by less than {percent(_SETTLED, 0)} % over the last fifth of a training",
        f"the 704-row at least {percent(_NARROW_COSTS, 0)} % worse than the reference",
        f"the widest less than {percent(_WIDTH_GAINS, 0)} % better than the reference",
    )
    headings = (
        *("asked of dense models", *(f"{cell.upper()}s" for cell in cells)),
        *(f"{of[0].cell.upper()}s tested again" for of in tested),
    )
    regime = Table("", headings, list(zip(asked, *answers, strict=True)), words=len(headings))
    models = [(row.model, rate(row), percent(row.perf), percent(changes.get(row.model))) for row in dense]
    headings = ("dense model", "CER %", "PERF %", "dev CER's change over the last fifth %")
    return f"{regime.render('github')}\n\n{Table('', headings, models, words=1).render('github')}"


def _answers(dense: list[Row], changes: dict[str, float]) -> tuple[str, ...]:
    """To each question, of the dense models of one family."""
    lowest, highest = min(row.cer for row in dense), max(row.cer for row in dense)
    rates = _answer(
        _RATES[0] <= lowest and highest <= _RATES[1], f"{percent(lowest, 2)} to {percent(highest, 2)}"
    )
    moved = {row.model: abs(changes[row.model]) for row in dense if row.model in changes}
    most = max(moved, key=lambda model: moved[model], default=None)
    settled = EMPTY
    if most is not None:
        settled = _answer(moved[most] < _SETTLED, f"{most} {percent(moved[most])} %")
    narrow = widest = EMPTY
    for row in dense:
        if row.perf is None or row.paper_width is None:
            continue
        if row.paper_width == 704:
            narrow = _answer(-row.perf >= _NARROW_COSTS, f"{percent(-row.perf)} %")
        if row.paper_width > REFERENCE[row.cell]:  # the widest is the last one
            widest = _answer(row.perf < _WIDTH_GAINS, f"{row.model} {percent(row.perf)} %")
    return rates, settled, narrow, widest


def _answer(holds: bool, measured: str) -> str:
    return f"{'yes' if holds else 'no'}: {measured}"


def _late_change(seeds: list[Run]) -> float | None:
    """Relative change of the dev CER over the last fifth of a training, the mean of the seeds; None without curves."""
    changes = []
    for run in seeds:
        steps, rates = read_curves(run).get("val/cer", ([], []))
        earlier = [rate for step, rate in zip(steps, rates, strict=True) if step <= 0.8 * steps[-1]]
        if earlier:
            changes.append(rates[-1] / earlier[-1] - 1)
    return statistics.mean(changes) if changes else None
