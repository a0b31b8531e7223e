"""Being asked to end: SIGTERM of a scheduler, SIGUSR2 of SLURM, Ctrl-C.

A training that is asked ends after its next step, once what it learnt is on disk; before and after
the training itself there is nothing to save, and it ends at once.
"""

import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class Stopped(BaseException):
    """Ends a program on a signal. No error, and nothing that handles errors may swallow it.

    Args:
        number: the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number
        self.exit_code = 128 + number


class StopRequests:
    """Listens to signals while it is entered."""

    def __init__(self) -> None:
        self.asked: int | None = None
        """The first signal while `deferring`."""
        self.deferring = False
        """Whether a training looks at `asked` after every step."""
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopRequests":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            for number in SIGNALS:
                signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if not self.deferring:
            raise Stopped(number)
        if self.asked is None:
            self.asked = number
            again = "; Ctrl-C again ends at once" if number == signal.SIGINT else ""
            print(f"\n{signal.Signals(number).name}: saving after this step{again}", file=sys.stderr)
        elif number == signal.SIGINT:
            raise Stopped(number)
        # Another SIGTERM changes nothing: what is being written must get to its end.
