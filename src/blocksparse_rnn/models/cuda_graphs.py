"""CUDA graphs: work of fixed shapes is captured once, then replayed in one call.

A recurrent layer launches thousands of small kernels, and a launch from Python takes longer than the kernel.
Lengths are rounded up to a few buckets, so that a few graphs serve all batches.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

Value = TypeVar("Value")


def bucket(length: int) -> int:
    """`length` rounded up to one of four sizes per octave: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ..."""
    step = 1 << max(0, (length - 1).bit_length() - 3)
    return -(-length // step) * step


def capture(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """A function that repeats `work`: a CUDA graph's replay, or `work` itself on a CPU.

    `work` must read and write the same memory at every call. On a GPU it runs once before it is captured, so that
    kernels are compiled and libraries initialised.
    """
    if device.type != "cuda":
        return work
    with torch.cuda.device(device):
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            work()
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": other threads, such as data loaders, may use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    return graph.replay


class CapturedGraphs(Generic[Value]):
    """The most recently used graphs, by key. Each holds memory, so their number is limited.

    Args:
        most: how many are kept.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The graph of this key; `make` captures it if it isn't kept."""
        if key not in self._kept:
            while len(self._kept) >= self.most:
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]
