"""One training on several processes of this machine (ranks): starts them, and ends all when one fails.

Each rank runs the program of `processes.job_command` with the environment variables that torchrun would set.
"""

import os
import signal
import sys
import threading
import time

import pytorch_lightning as pl
from torch.distributed import TCPStore

from blocksparse_rnn import distributed
from blocksparse_rnn.processes import Child, end_all, job_command, job_environment
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped, signals_to

_POLL_SECONDS = 0.1
_GRACE = (
    10.0  # seconds for the other ranks to end by themselves once one has failed or the first has finished
)
_CLEANUP = 8.0  # seconds for a rank to clean up after an error
_PATIENCE = 25.0  # seconds for all ranks to end after Ctrl-C
_LOST = ("Connection closed", "Connection reset", "Connection refused", "NCCL", "Broken pipe")


def run_ranks(run: RunFolder, count: int) -> None:
    """Do a run on `count` processes; returns when all have finished.

    Raises:
        SystemExit: a rank failed; standard error says why, RUN/rank-N.log has all of its output.
        Stopped: after a signal, which was passed on to the ranks.
    """
    # Held until all ranks have ended: a free port could be taken by others while the ranks load torch.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    ranks: list[Child] = []
    passed: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        passed.append(number)
        for child in ranks:
            child.send_signal(number)

    try:
        for rank in range(count):
            ranks.append(_start(run, rank, count, store.port))
        with signals_to(pass_on):
            overdue = _wait(ranks, passed)
    finally:
        end_all(ranks)
    codes = [child.poll() or 0 for child in ranks]
    if codes[0] == 0:
        return
    if any(code in (-number, 128 + number) for code in codes for number in passed):
        # All got the signal; a rank that ended before it could handle it may have broken another's connection.
        run.update_status("stopped")
        raise Stopped(passed[0])
    failed = _first_failure(ranks, [rank for rank, code in enumerate(codes) if code and rank not in overdue])
    _report(run, failed, ranks[failed])
    raise SystemExit(codes[failed] if codes[failed] > 0 else 128 - codes[failed])


def _start(run: RunFolder, rank: int, count: int, port: int) -> Child:
    share = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // count)
    environment = job_environment() | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # this process has the port, not the first rank
        "OMP_NUM_THREADS": str(share),
        "PYTHONFAULTHANDLER": "1",  # a crash in native code prints where
    }
    if not rank:  # its output is that of this process
        return Child(job_command(run.path), environment, log=None)
    log = run.path / f"rank-{rank}.log"
    log.unlink(missing_ok=True)
    return Child(job_command(run.path), environment, log)


def _wait(ranks: list[Child], passed: list[int]) -> set[int]:
    """Wait until all have ended; kills, and returns, those still running some seconds after a failure or Ctrl-C."""
    kill_at: float | None = None
    while running := {rank for rank, child in enumerate(ranks) if child.poll() is None}:
        failed = any(child.poll() for child in ranks)
        if kill_at is None and (failed or ranks[0].poll() == 0):
            kill_at = time.monotonic() + _GRACE
        if kill_at is None and signal.SIGINT in passed:
            kill_at = time.monotonic() + _PATIENCE
        if kill_at is not None and time.monotonic() > kill_at:
            end_all(ranks)
            return running
        time.sleep(_POLL_SECONDS)
    return set()


def _first_failure(ranks: list[Child], failed: list[int]) -> int:
    """The rank that failed first: one with a log whose error is no lost connection to another rank, if any."""
    cause = [r for r in failed if r and not any(word in ranks[r].failure_reason() for word in _LOST)]
    return [*cause, *failed, 0][0]


def _report(run: RunFolder, rank: int, child: Child) -> None:
    """Print the output of the rank that failed, and why it did."""
    if output := child.output().rstrip():
        print(f"{child.log}:\n{output}", file=sys.stderr)
    line = f"rank {rank}: {child.failure_reason()}"
    print(f"error: {line}; the other ranks were ended", file=sys.stderr)
    if rank or (child.poll() or 0) < 0:  # else the first rank has written its own error
        run.update_status("failed", error=line)


class LeaveOnError(pl.Callback):
    """Ends a rank some seconds after an error, in case its cleanup waits for the other ranks."""

    def on_exception(self, trainer: pl.Trainer, recogniser: pl.LightningModule, error: BaseException) -> None:
        if distributed.launched():
            code = error.exit_code if isinstance(error, Stopped) else 1
            timer = threading.Timer(_CLEANUP, os._exit, [code])
            timer.daemon = True
            timer.start()
