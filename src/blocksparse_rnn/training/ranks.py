"""One training on several processes of this machine: starts its ranks, and lets none outlive the others.

Each rank is the program `blocksparse_rnn.cli.job` with the variables that torchrun sets too. The first that
fails ends all. They watch a pipe of ours and end when we do, whatever ended us.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

import pytorch_lightning as pl
from torch.distributed import TCPStore

from blocksparse_rnn import distributed
from blocksparse_rnn.files import SOURCE
from blocksparse_rnn.runs.folder import RunFolder
from blocksparse_rnn.signals import SIGNALS, STDIN_IS_PARENT, Stopped

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
        SystemExit: a rank failed; its last words are in standard error, all of them in RUN/rank-N.log.
        Stopped: after a signal, which the ranks got too.
    """
    # Ours until all have ended: a port that is free now may be somebody else's once the ranks have loaded torch.
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    processes: list[subprocess.Popen] = []
    try:
        for rank in range(count):
            processes.append(_start(run, rank, count, store.port))
        with _passing_on(processes) as passed:
            ended_by_us = _watch(processes, passed)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    if processes[0].returncode == 0:
        return
    obeyed = {code for number in passed for code in (128 + number, -number)}
    if any(process.returncode in obeyed for process in processes):
        # All were asked; one that had not begun to listen may have torn another's connection as it left.
        run.update_status("stopped")
        raise Stopped(passed[0])
    failed = _cause(run, [0 if r in ended_by_us else p.returncode for r, p in enumerate(processes)])
    code = processes[failed].returncode
    _report(run, failed, code)
    raise SystemExit(code if code > 0 else 128 - code)


def _start(run: RunFolder, rank: int, count: int, port: int) -> subprocess.Popen:
    share = max(1, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1) // count)
    environment = os.environ | {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",  # the first rank need not open the port
        "OMP_NUM_THREADS": str(share),
        STDIN_IS_PARENT: "1",
        "PYTHONFAULTHANDLER": "1",  # a crash in native code tells where
        "PYTHONPATH": os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-m", "blocksparse_rnn.cli.job", str(run.path)]
    # The first rank speaks where we do.
    log = open(_log(run, rank), "wb") if rank else None  # noqa: SIM115
    with log or nullcontext():
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,  # closes when we die, whatever kills us
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on
        )


def _watch(processes: list[subprocess.Popen], passed: list[int]) -> set[int]:
    """Wait for all, and no longer than the grace once one has failed; returns those that had to be killed."""
    kill_at: float | None = None
    while waiting := {rank for rank, process in enumerate(processes) if process.poll() is None}:
        failed = any(process.returncode for process in processes)
        if kill_at is None and (failed or processes[0].returncode == 0):
            kill_at = time.monotonic() + _GRACE
        if kill_at is None and signal.SIGINT in passed:
            kill_at = time.monotonic() + _PATIENCE
        if kill_at is not None and time.monotonic() > kill_at:
            for process in processes:
                process.kill()
            return waiting
        time.sleep(_POLL_SECONDS)
    return set()


def _cause(run: RunFolder, codes: list[int]) -> int:
    """The rank that failed first: of those that failed, one that doesn't speak of a lost connection."""
    failed = [rank for rank, code in enumerate(codes) if code]
    own = [rank for rank in failed if rank and not any(word in _last_line(run, rank) for word in _LOST)]
    return [*own, *failed, 0][0]


@contextmanager
def _passing_on(processes: list[subprocess.Popen]) -> Iterator[list[int]]:
    """Pass signals on to the ranks; yields the list of those that came."""
    passed: list[int] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        passed.append(number)
        for process in processes:
            process.send_signal(number)

    if threading.current_thread() is not threading.main_thread():
        yield passed
        return
    before = {number: signal.signal(number, pass_on) for number in SIGNALS}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _report(run: RunFolder, rank: int, code: int) -> None:
    """Say which rank failed, and why."""
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    log, last = _log(run, rank), _last_line(run, rank)
    if last:
        print(f"{log}:\n{log.read_text(encoding='utf-8', errors='replace').rstrip()}", file=sys.stderr)
    line = f"rank {rank} {how}" + (f": {last}" if last else "")
    print(f"error: {line}; the other ranks were ended", file=sys.stderr)
    if rank or code < 0:  # else the first rank has said it itself
        run.update_status("failed", error=line)


def _last_line(run: RunFolder, rank: int) -> str:
    """Last words of a rank; the first speaks where we do, and has no log."""
    log = _log(run, rank)
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if rank and log.exists() else []
    spoken = [
        line.strip().removeprefix(f"[rank{rank}]: ") for line in lines if line.strip()
    ]  # torch's prefix
    crashes = [line for line in spoken if line.startswith("Fatal Python error")]  # long lists follow it
    return [*crashes[:1], *spoken[-1:], ""][0]


def _log(run: RunFolder, rank: int) -> Path:
    return run.path / f"rank-{rank}.log"


class LeaveOnError(pl.Callback):
    """Ends a rank for good some seconds after an error, should cleaning up wait for the other ranks."""

    def on_exception(self, trainer: pl.Trainer, recogniser: pl.LightningModule, error: BaseException) -> None:
        if distributed.launched():
            code = error.exit_code if isinstance(error, Stopped) else 1
            timer = threading.Timer(_LEAVE, os._exit, [code])
            timer.daemon = True
            timer.start()
