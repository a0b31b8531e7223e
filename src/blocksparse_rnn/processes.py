"""Child processes that do a run: jobs of a sweep, ranks of a training. None outlives whoever started it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType

from blocksparse_rnn.files import SOURCE
from blocksparse_rnn.signals import SIGNALS

_STDIN_IS_PARENT = "BLOCKSPARSE_STDIN_IS_PARENT"
"""Environment variable of a child: its standard input is a pipe that closes when whoever started it dies."""


def job_command(run: Path) -> list[str]:
    """The program that does the run in a folder."""
    return [sys.executable, "-m", "blocksparse_rnn.cli.job", str(run)]


def environment_of_jobs() -> dict[str, str]:
    """This process's environment, in which a child imports the same package."""
    path = os.pathsep.join(filter(None, [str(SOURCE), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": path}


class Child:
    """A process that does a run.

    Args:
        command: program and arguments.
        environment: all of it.
        log: file to which its output is added; None for the output of this process.

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
                stdin=subprocess.PIPE,  # closes when we die, whatever kills us
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C reaches us alone, and we pass it on
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, or minus the signal that ended it; None while it runs."""
        return self._process.poll()

    def send_signal(self, number: int) -> None:
        """Ask it to end; nothing where it has ended."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """End it now."""
        self._process.kill()

    def close(self) -> None:
        """Wait until a process that ends has ended, and let go of its pipe."""
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def failure_reason(self) -> str:
        """Why it failed: the signal that ended it, or the line of its log that says it best; empty without any."""
        code = self.poll() or 0
        if code < 0:
            return f"was killed by {signal.Signals(-code).name}" + (
                " (out of memory?)" if -code == signal.SIGKILL else ""
            )
        if self.log is None:
            return ""
        try:
            output = self.log.read_bytes()[self._log_begin :].decode(errors="replace")
        except OSError as error:  # somebody removed the run's folder
            return f"ended with exit code {code}; its log can't be read ({error.strerror})"
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        crashes = [line for line in lines if line.startswith("Fatal Python error")]  # long lists follow it
        return [*errors[-1:], *crashes[:1], *lines[-1:], "it said nothing"][0].removeprefix("error: ")


def end_all(children: Iterable[Child]) -> None:
    """Kill what still runs, and wait for its end."""
    children = list(children)
    for child in children:
        child.kill()
    for child in children:
        child.close()


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Within it, `handler` gets what asks this process to end; in the main thread alone, as Python has it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def end_with_parent() -> None:
    """In a child: leave at once when the pipe on standard input closes, since whoever started it was killed.

    What is on disk stays whole, and the next start resumes from it.
    """
    if not os.environ.pop(_STDIN_IS_PARENT, None):
        return  # started by hand, where any pipe is somebody else's

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
