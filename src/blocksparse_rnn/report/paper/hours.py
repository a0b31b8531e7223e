"""What pruning costs where less speech was heard more often, or more speech less often."""

from typing import Any

from blocksparse_rnn.report.results import Row, Run, by_name
from blocksparse_rnn.report.table import EMPTY, Table, percent, rate
from blocksparse_rnn.runs.identity import identity


def rows_by_hours(of: Row, rows: list[Row], runs: list[Run]) -> list[Row]:
    """Rows that differ from one of them in the hours of speech and how often they are heard, the fewest hours first."""
    named = by_name(runs)

    def settings(row: Row) -> dict[str, Any]:
        return named[row.names[0]].settings

    wanted = _but_hours(settings(of))
    alike = [row for row in rows if row.against_dense is not None and _but_hours(settings(row)) == wanted]
    return sorted(alike, key=lambda row: settings(row)["data"]["hours"])


def _but_hours(settings: dict[str, Any]) -> str:
    data = {k: v for k, v in settings["data"].items() if k not in ("hours", "held_out")}
    trainer = {k: v for k, v in settings["trainer"].items() if k != "max_epochs"}
    return identity(settings | {"data": data, "trainer": trainer, "epochs_per_pass": None, "seed": None})


def hours_table(rows: list[Row], runs: list[Run]) -> str:
    """A line for each number of hours: the dense model, the pruned one, and how much worse it is."""
    named = by_name(runs)
    lines = []
    for row in rows:
        first = named[row.names[0]]
        assert row.against_dense is not None
        dense = row.cer / (1 - row.against_dense)
        lines.append(
            (
                f"{first.settings['data']['hours']:g}",
                f"{first.settings['trainer']['max_epochs'] / (first.settings.get('epochs_per_pass') or 1):g}",
                str(first.result.get("steps", EMPTY)),
                *(percent(dense, 2), rate(row), percent(-row.against_dense)),
            )
        )
    headings = ("hours", "times heard", "steps", "dense: CER %", "pruned: CER %", "worse %")
    return Table("", headings, lines, words=0).render("github")
