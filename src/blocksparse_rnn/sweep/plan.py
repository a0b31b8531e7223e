"""The jobs of a sweep, in the order in which they start.

A run is finished only when it has a result.json, whatever its exit code was. So a rerun of the command resumes a
sweep, however it ended.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from blocksparse_rnn.config.build import build_shapes
from blocksparse_rnn.config.schema import Settings
from blocksparse_rnn.processes import Child
from blocksparse_rnn.pruning.prunable import count_parameters
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.runs.identity import needs_dense, same_network, same_recipe


@dataclass
class Job:
    """A run of a sweep, and its state."""

    settings: Settings
    run: RunFolder
    state: str = "waiting"
    """waiting, running, finished, failed, busy (another process works on it: waited for) or dropped (the sweep ended first)."""
    after: list["Job"] = field(default_factory=list)
    """Dense runs that must end before this one starts."""
    attempts: int = 0
    slot: int | None = None
    child: Child | None = None
    locked_since: float | None = None
    problem: str = ""

    @property
    def name(self) -> str:
        return self.run.path.name

    @property
    def dense(self) -> bool:
        return self.settings.sparsifier.name == "none"

    @property
    def ended(self) -> bool:
        return self.state not in ("waiting", "running", "busy")

    @property
    def log(self) -> Path:
        return self.run.path / "stdout.log"

    def fail(self, problem: str) -> None:
        """Give up; `problem` is shown in the report."""
        self.state, self.problem = "failed", problem

    def fail_with_dense(self) -> None:
        """Fail if a dense run did: q would silently be taken from other weights."""
        for dense in self.after:
            if self.state == "waiting" and dense.state == "failed":
                self.fail(f"needs q of {dense.name}, which failed")

    def leave_to_others(self) -> None:
        """Wait for the process that works on this run."""
        self.state, self.problem = "busy", "another process is working on this run"


def run_sweep(runs: list[Settings]) -> int:
    """Do all runs with the launcher of the first, and report.

    Returns:
        The exit code: 0, 1 where a run failed, 128 and its number after a signal.

    Raises:
        UserError: the launcher can't run them here, or the output folder can't be written.
    """
    return runs[0].launcher.build().run(plan(runs))


def plan(runs: Iterable[Settings]) -> list[Job]:
    """The jobs of a sweep: dense runs first, no run folder twice."""
    jobs = {run.path: Job(settings, run) for settings in runs for run in [RunFolder.of(settings)]}
    ordered = sorted(jobs.values(), key=lambda job: not job.dense)
    for job in ordered:
        settings = job.settings.plain()
        if job.run.result() is not None:
            job.state = "finished"
        elif needs_dense(settings):
            dense = [
                other for other in ordered if other.dense and same_network(other.settings.plain(), settings)
            ]
            # q=auto prefers runs of the same recipe to others.
            alike = [other for other in dense if same_recipe(other.settings.plain(), settings)]
            job.after = alike or dense
    return ordered


def show_plan(runs: Iterable[Settings]) -> None:
    """Print what a sweep would do with each run, and its size; writes nothing."""
    for job in plan(runs):
        if job.state == "finished":
            action = "skip"
        elif job.run.is_locked():
            action = "busy"
        else:
            action = "resume" if job.run.can_resume else "new"
        print(f"{action:6}  {job.run.path}  {_parameters(job.settings)}")


def _parameters(settings: Settings) -> str:
    """Parameters of the model, and the nonzero ones if it has a target sparsity."""
    counts = count_parameters(build_shapes(settings), settings.prunable)
    share = settings.target_sparsity if hasattr(settings.sparsifier, "block_pruning") else None
    nonzero = "" if share is None else f"{(counts.total - share * counts.prunable) / 1e6:.3f} M nonzero of "
    return f"{nonzero}{counts.total / 1e6:.3f} M"
