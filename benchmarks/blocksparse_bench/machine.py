"""Times on this machine, and what one of its cores can do at best: arithmetic by number format, reading by size."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from blocksparse_rnn.runtime.library import choose_variant, native

_FORMATS = {"fp32": 0, "bf16": 1, "int8": 2}
_SIZES_KIB = (16, 128, 256, 1024, 4096, 8192, 16384, 32768, 131072)
_REPETITIONS = 9
_WARM, _MEASURED = 0.002, 0.005
"""Seconds of a turn, without and with measuring; at least one call of each."""


@dataclass(frozen=True)
class Machine:
    """Measured limits of one core."""

    variant: str
    """Of the kernels: avx512, avx2 or portable."""
    operations: dict[str, float]
    """Number format -> operations per second; a multiply-add is two."""
    bandwidth: dict[int, float]
    """KiB of a working set that is read over and over -> bytes per second."""

    def bandwidth_of(self, size: float) -> float:
        """Bytes per second with which a working set of `size` bytes can be read: that of the next size up."""
        fitting = [kib for kib in self.bandwidth if kib * 1024 >= size]
        return self.bandwidth[min(fitting, default=max(self.bandwidth))]

    def limit(self, size: float, operations: float, dtype: str) -> tuple[float, str]:
        """Seconds that a product needs at least, and what sets them: memory, cache or arithmetic.

        Args:
            size: bytes of the nonzero weights.
            operations: multiplications and additions.
            dtype: number format.
        """
        reading, computing = size / self.bandwidth_of(size), operations / self.operations[dtype]
        if computing > reading:
            return computing, "arithmetic"
        slow = self.bandwidth_of(size) < 1.5 * self.bandwidth[max(self.bandwidth)]
        return reading, "memory" if slow else "cache"


def measure_machine() -> Machine:
    """Measure; takes a few seconds. Needs the native library."""
    library = native()
    assert library is not None
    operations = {
        name: _rate(lambda rounds, f=number: library.bsr_multiply_rounds(f, rounds), 200_000)  # type: ignore[misc]
        for name, number in _FORMATS.items()
    }
    bandwidth = {}
    for kib in _SIZES_KIB:
        values = torch.ones(kib * 256)
        rounds = max(1, (32 << 10) // kib)

        def read(rounds: int, values: torch.Tensor = values) -> float:
            library.bsr_read_rounds(values.data_ptr(), len(values), rounds)
            return 4.0 * len(values) * rounds

        bandwidth[kib] = _rate(read, rounds)
    return Machine(choose_variant(), operations, bandwidth)


def _rate(work: Callable[[int], float], rounds: int) -> float:
    """Amount per second; the median of several tries."""
    rates = []
    for _ in range(_REPETITIONS):
        start = time.perf_counter()
        amount = work(rounds)
        rates.append(amount / (time.perf_counter() - start))
    return statistics.median(rates)


def medians(calls: Mapping[str, Callable[[], object]], seconds: float, least: int = 3) -> dict[str, float]:
    """Median microseconds of several calls that take turns, so that a noisy machine slows all of them alike.

    In its turn each call runs briefly unmeasured, then measured, so that caches hold what they hold within a
    sequence, not what the call before left in them.

    Args:
        calls: name -> what to time.
        seconds: for all calls together.
        least: rounds at least, however long they take.
    """
    taken: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    rounds = 0
    while rounds < least or time.perf_counter() < end:
        for name, call in calls.items():
            _times(call, _WARM)
            taken[name] += _times(call, _MEASURED)
        rounds += 1
    return {name: statistics.median(times) for name, times in taken.items()}


def _times(call: Callable[[], object], seconds: float) -> list[float]:
    """Microseconds of each repetition."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return times
