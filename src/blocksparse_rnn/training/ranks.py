"""One training on several processes of this machine: starts its ranks, and lets none outlive the others.

Each rank is the program of `processes.job_command` with the variables that torchrun sets too. The first that
fails ends all. They end when this process does, whatever ended it.
"""

import os
import signal
import sys
import threading
import time

import pytorch_lightning as pl
from torch.distributed import TCPStore

from blocksparse_rnn import distributed
from blocksparse_rnn.processes import Child, end_all, environment_of_jobs, job_command, signals_to
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import Stopped

_POLL_SECONDS = 0.1
_GRACE = (
    10.0  # seconds for the other ranks to end by themselves once one has failed, or the first has finished
)
_LEAVE = 8.0  # seconds for a rank that failed to clean up
_LOST = ("Connection closed", "Connection reset", "Connection refused", "NCCL", "Broken pipe")
_PATIENCE = 25.0  # seconds for all ranks after Ctrl-C


def run_ranks(run: RunFolder, count: int) -> None:
    """Do a run on `count` processes; returns when all have finished.

    Raises:
        SystemExit: a rank failed; standard error says why, RUN/rank-N.log has all of its output.
        Stopped: after a signal, which the ranks got too.
    """
    # Ours until all have ended: a port that is free now may be somebody else's once the ranks have loaded torch.
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
            ended_by_us = _watch(ranks, passed)
    finally:
        end_all(ranks)
    codes = [child.poll() or 0 for child in ranks]
    if codes[0] == 0:
        return
    obeyed = {code for number in passed for code in (128 + number, -number)}
    if any(code in obeyed for code in codes):
        # All were asked; one that had not begun to listen may have torn another's connection as it left.
        run.update_status("stopped")
        raise Stopped(passed[0])
    failed = _cause(ranks, [0 if rank in ended_by_us else code for rank, code in enumerate(codes)])
    _report(run, failed, ranks[failed], codes[failed])
    raise SystemExit(codes[failed] if codes[failed] > 0 else 128 - codes[failed])


def _start(run: RunFolder, rank: int, count: int, port: int) -> Child:
    share = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // count)
    environment = environment_of_jobs() | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the first rank need not open the port
        "OMP_NUM_THREADS": str(share),
        "PYTHONFAULTHANDLER": "1",  # a crash in native code tells where
    }
    if not rank:  # it prints where we do
        return Child(job_command(run.path), environment, log=None)
    log = run.path / f"rank-{rank}.log"
    log.unlink(missing_ok=True)
    return Child(job_command(run.path), environment, log)


def _watch(ranks: list[Child], passed: list[int]) -> set[int]:
    """Wait for all, and no longer than the grace once one has failed; returns those that had to be killed."""
    kill_at: float | None = None
    while waiting := {rank for rank, child in enumerate(ranks) if child.poll() is None}:
        failed = any(child.poll() for child in ranks)
        if kill_at is None and (failed or ranks[0].poll() == 0):
            kill_at = time.monotonic() + _GRACE
        if kill_at is None and signal.SIGINT in passed:
            kill_at = time.monotonic() + _PATIENCE
        if kill_at is not None and time.monotonic() > kill_at:
            end_all(ranks)
            return waiting
        time.sleep(_POLL_SECONDS)
    return set()


def _cause(ranks: list[Child], codes: list[int]) -> int:
    """The rank that failed first: of those that failed, one that doesn't speak of a lost connection."""
    failed = [rank for rank, code in enumerate(codes) if code]
    own = [rank for rank in failed if rank and not any(word in _reason(ranks[rank], rank) for word in _LOST)]
    return [*own, *failed, 0][0]


def _reason(child: Child, rank: int) -> str:
    return child.failure_reason().removeprefix(f"[rank{rank}]: ")  # torch's prefix


def _report(run: RunFolder, rank: int, child: Child, code: int) -> None:
    """Say which rank failed, and why."""
    reason = _reason(child, rank)
    if code > 0:
        reason = f"ended with exit code {code}" + (f": {reason}" if reason else "")
    if child.log:
        output = child.log.read_text(encoding="utf-8", errors="replace").rstrip()
        print(f"{child.log}:\n{output}", file=sys.stderr)
    line = f"rank {rank} {reason}"
    print(f"error: {line}; the other ranks were ended", file=sys.stderr)
    if rank or code < 0:  # else the first rank has said it itself
        run.update_status("failed", error=line)


class LeaveOnError(pl.Callback):
    """Ends a rank for good some seconds after an error, should cleaning up wait for the other ranks."""

    def on_exception(self, trainer: pl.Trainer, recogniser: pl.LightningModule, error: BaseException) -> None:
        if distributed.launched():
            code = error.exit_code if isinstance(error, Stopped) else 1
            timer = threading.Timer(_LEAVE, os._exit, [code])
            timer.daemon = True
            timer.start()
