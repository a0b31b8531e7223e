"""Child processes that do a run: jobs of a sweep, ranks of a training. None outlives the process that started it."""

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path

from blocksparse_rnn.files import SOURCE

_STDIN_IS_PARENT = "BLOCKSPARSE_STDIN_IS_PARENT"
"""Environment variable of a child: its standard input is a pipe that closes when its parent ends."""


def job_command(run: Path) -> list[str]:
    """The command that does the run in a folder."""
    return [sys.executable, "-m", "blocksparse_rnn.cli.job", str(run)]


def job_environment() -> dict[str, str]:
    """This process's environment, with a PYTHONPATH from which a child imports the same package."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


class Child:
    """A process that does a run.

    Args:
        command: program and arguments.
        environment: all of its variables.
        log: file to which its output is appended; None to print where this process prints.

    Raises:
        OSError: the log can't be written, or there is no more memory or process.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], log: Path | None) -> None:
        self.log = log
        with open(log, "ab") if log else nullcontext() as file:
            self._log_begin = file.tell() if file else 0
            self._process = subprocess.Popen(
                command,
                env={**environment, _STDIN_IS_PARENT: "1"},
                stdin=subprocess.PIPE,  # closes when this process ends, even by SIGKILL
                stdout=file,
                stderr=file,
                start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing once it has ended."""
        self._process.send_signal(number)

    def close(self) -> None:
        """Wait for its end, and close its pipe."""
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def output(self) -> str:
        """What it has printed; empty without a log, or if somebody removed it."""
        try:
            return self.log.read_bytes()[self._log_begin :].decode(errors="replace") if self.log else ""
        except OSError:
            return ""

    def failure_reason(self) -> str:
        """Why it failed: its exit code and its last error message, else its last line; or the signal that ended it."""
        code = self.poll() or 0
        if code < 0:
            hint = " (out of memory?)" if -code == signal.SIGKILL else ""
            return f"killed by {signal.Signals(-code).name}{hint}"
        lines = [line.strip() for line in self.output().splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        # Torch puts the rank before each line of a traceback.
        last = [re.sub(r"^(error|\[rank\d+\]): ", "", line) for line in (errors or lines)[-1:]]
        return ": ".join([f"exit code {code}", *last])


def end_all(children: Iterable[Child]) -> None:
    """Kill those that still run, and wait for the end of all."""
    children = list(children)
    for child in children:
        child.send_signal(signal.SIGKILL)
    for child in children:
        child.close()


def end_with_parent() -> None:
    """In a child: exit at once when the pipe on standard input closes, since the parent has been killed.

    The files on disk stay whole, and the next start resumes from them.
    """
    if not os.environ.pop(_STDIN_IS_PARENT, None):
        return  # started by hand: a closed standard input means nothing

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
