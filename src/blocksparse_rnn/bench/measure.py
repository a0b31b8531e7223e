"""Medians of rivals that take turns in one process, so that a noisy machine disturbs all of them alike.

In its turn each is called once unmeasured, then a few times: caches hold what they hold within a sequence,
not what the rival before left in them.
"""

import statistics
import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]
_CALLS = 3
"""Measured calls of a turn."""


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
            work()
            for _ in range(_CALLS):
                start = time.perf_counter()
                work()
                taken[name].append(1e6 * (time.perf_counter() - start))
        rounds += 1
    return {name: statistics.median(times) for name, times in taken.items()}
