"""Medians of rivals that take turns in one process, so that a noisy machine disturbs all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping

Work = Callable[[], object]


def medians(rivals: Mapping[str, Work], seconds: float, least: int = 5) -> dict[str, float]:
    """Microseconds of each rival.

    Args:
        rivals: name -> what to time; each is called once before, unmeasured.
        seconds: how long to go on, all rivals together.
        least: rounds at least, however long they take.
    """
    for work in rivals.values():
        work()
    taken: dict[str, list[float]] = {name: [] for name in rivals}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for name, work in rivals.items():
            start = time.perf_counter()
            work()
            taken[name].append(1e6 * (time.perf_counter() - start))
        rounds += 1
    return {name: statistics.median(times) for name, times in taken.items()}
