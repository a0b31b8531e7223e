"""Signals that ask a program to end: SIGTERM of a scheduler, SIGUSR2 of SLURM, SIGINT of Ctrl-C.

During `fit` a training ends after the current step, once its checkpoint is on disk. Before and after it there is
nothing to save, and the program ends at once.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(BaseException):
    """Ends a program on a signal. It is no error, so `except Exception` doesn't catch it.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


@contextmanager
def signals_to(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Within it, `handler` gets `SIGNALS`. Only in the main thread: Python allows handlers nowhere else."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


class StopRequests:
    """Within it, a signal raises `Stopped`, or, while `deferring`, is noted in `asked` for the training to act on."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """The first signal while `deferring`."""
        self.deferring = False
        """Whether a training checks `asked` after every step."""
        self._handled = signals_to(self._on_signal)

    def __enter__(self) -> "StopRequests":
        self._handled.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handled.__exit__(kind, error, trace)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.deferring:
            raise Stopped(number)
        if self.asked is None:
            self.asked = number
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            print(f"\n{signal.Signals(number).name}: saving after this step{again}", file=sys.stderr)
        elif number == signal.SIGINT:
            raise Stopped(number)
        # Another SIGTERM changes nothing: the checkpoint that is being written must be completed.
