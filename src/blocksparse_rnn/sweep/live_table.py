"""Output of a running sweep: a live table on a terminal, else a line for each change of a job's state."""

import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from tqdm import tqdm

from blocksparse_rnn.sweep.plan import Job

_REFRESH_SECONDS = 1.0
_COLOURS = {"running": "cyan", "finished": "green", "failed": "red", "busy": "yellow", "dropped": "yellow"}


class SweepTable:
    """Shows the jobs of a sweep.

    Args:
        slots: jobs that run at a time.
    """

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self._started = time.monotonic()
        self._shown_at = -_REFRESH_SECONDS
        self._states: dict[Path, str] = {}
        self._began: dict[Path, float] = {}
        self._took: list[float] = []

    def __enter__(self) -> "SweepTable":
        if self.live:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.live:
            self.live.stop()

    def show(self, jobs: list[Job]) -> None:
        """Show each change of state; on a terminal, update the table."""
        changed = [job for job in jobs if self._states.get(job.run.path) != job.state]
        for job in changed:
            self._note(job)
            if not self.live:
                print(f"{_clock()} {job.state:8} {job.name}{_details(job)}", flush=True)
        if self.live and (changed or time.monotonic() - self._shown_at > _REFRESH_SECONDS):
            self._shown_at = time.monotonic()
            self.live.update(self._table(jobs), refresh=True)

    def report(self, jobs: list[Job]) -> None:
        """Print at the end why jobs failed, and how to repeat each."""
        for job in jobs:
            if job.state == "failed":
                print(f"{job.state}: {job.run.path}: {job.problem}", file=sys.stderr)
                if job.log.is_file():
                    print(
                        f"  log: {job.log}; repeat: python -m blocksparse_rnn.cli.job {job.run.path}",
                        file=sys.stderr,
                    )
        if not self.live:  # on a terminal the summary is below the table
            print(self._summary(jobs))

    def _note(self, job: Job) -> None:
        if job.state == "running":
            self._began[job.run.path] = time.monotonic()
        elif job.state == "finished" and job.run.path in self._began:
            self._took.append(time.monotonic() - self._began[job.run.path])
        self._states[job.run.path] = job.state

    def _table(self, jobs: list[Job]) -> Table:
        table = Table(caption=self._summary(jobs), caption_justify="left")
        for heading in ("run", "state", "epoch", "CER %", "sparsity %", "time left"):
            table.add_column(heading, justify="left" if heading in ("run", "state") else "right")
        rows = max(5, self.console.height - 8)
        # Where not all fit, running, failed and busy jobs come first.
        shown = sorted(jobs, key=lambda job: ("running", "failed", "busy").count(job.state) == 0)[:rows]
        for job in jobs:
            if job in shown:
                state = f"[{_COLOURS.get(job.state, 'dim')}]{job.state}"
                table.add_row(job.name, state, *_figures(job))
        if len(jobs) > len(shown):
            table.add_row(f"... and {len(jobs) - len(shown)} more")
        return table

    def _summary(self, jobs: list[Job]) -> str:
        counts = {
            state: sum(job.state == state for job in jobs) for state in ("finished", *_COLOURS, "waiting")
        }
        parts = [f"{count} {state}" for state, count in counts.items() if count]
        elapsed = tqdm.format_interval(time.monotonic() - self._started)
        left = self._seconds_left(jobs)
        return (
            ", ".join(parts)
            + f"; {elapsed} passed"
            + (f", {tqdm.format_interval(left)} left" if left else "")
        )

    def _seconds_left(self, jobs: list[Job]) -> float:
        """Running jobs report their own; a waiting job is taken to last as long as the mean of the finished ones."""
        running = [float(_status(job).get("seconds_left") or 0) for job in jobs if job.state == "running"]
        waiting = sum(job.state == "waiting" for job in jobs)
        if waiting and not self._took:
            return 0.0
        mean = sum(self._took) / len(self._took) if self._took else 0.0
        return max([(sum(running) + waiting * mean) / self.slots, *running])


def _figures(job: Job) -> tuple[str, str, str, str]:
    """Epoch, CER, sparsity and time left of a job."""
    result = job.run.result() if job.state == "finished" else None
    if result is not None:
        cer, sparsity = _percent(result["cer"], 2), _percent(result.get("sparsity/prunable"), 1)
        return str(result.get("epochs", "")), cer, sparsity, ""
    if job.state != "running":
        return "", "", "", ""
    status = _status(job)
    left = status.get("seconds_left")
    return (
        str(status.get("epoch", "")),
        _percent(status.get("cer"), 2),
        _percent(status.get("sparsity"), 1),
        "" if left is None else tqdm.format_interval(left),
    )


def _status(job: Job) -> dict[str, Any]:
    status = job.run.status()
    if job.child is None:  # SLURM runs it
        return status
    # Not that of an earlier process: the child writes it, or its first rank.
    return status if job.child.pid in (status.get("pid"), status.get("parent")) else {}


def _percent(value: float | None, digits: int) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def _details(job: Job) -> str:
    if job.problem:
        return f": {job.problem}"
    result = job.run.result() if job.state == "finished" else None
    if result is None:
        return ""
    sparsity = result.get("sparsity/prunable")
    return f": test CER {result['cer']:.4f}" + ("" if sparsity is None else f", sparsity {sparsity:.3f}")


def _clock() -> str:
    return time.strftime("%H:%M:%S")
