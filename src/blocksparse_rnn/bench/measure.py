"""Medians of rivals that take turns in one process, so that a noisy machine disturbs all of them alike.

In its turn each runs for a moment unmeasured, then measured: caches hold what they hold within a sequence,
not what the rival before left in them.
"""

import statistics
import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]
_WARM, _MEASURED = 0.002, 0.005
"""Seconds of a turn, without and with measuring; at least one call of each."""


def medians(rivals: Mapping[str, Work], seconds: float, least: int = 3) -> dict[str, float]:
    """Microseconds of each rival.

    Args:
        rivals: name -> what to time.
        seconds: how long to go on, all rivals together.
        least: rounds at least, however long they take.
    """
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for name, work in rivals.items():
            _calls(work, _WARM)
            taken[name] += _calls(work, _MEASURED)
        rounds += 1
    return {name: statistics.median(times) for name, times in taken.items()}


def _calls(work: Work, seconds: float) -> list[float]:
    """Microseconds of each call."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        work()
        times.append(1e6 * (time.perf_counter() - start))
    return times
