"""Work that a GPU repeats with the same shapes: recorded once as a CUDA graph, then replayed in one call.

A recurrent layer starts thousands of small kernels, and starting each from Python takes longer than it runs.
Lengths are rounded up to few buckets, so that a few recordings serve all batches.
"""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

import torch

Value = TypeVar("Value")


def bucket(length: int) -> int:
    """The smallest of four sizes to an octave that is no less: 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, ..."""
    step = 1 << max(0, (length - 1).bit_length() - 3)
    return -(-length // step) * step


def record(work: Callable[[], Any], device: torch.device) -> Callable[[], Any]:
    """What repeats `work`, which must always read and write the same memory: a CUDA graph, or itself on a CPU.

    On a GPU `work` runs once here, before it is recorded: kernels are compiled and libraries set up.
    """
    if device.type != "cuda":
        return work
    with torch.cuda.device(device):
        beside = torch.cuda.Stream()
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            work()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # Loaders and other threads may go on using the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            work()
    return graph.replay


class Recordings(Generic[Value]):
    """The recordings used last, by shape; each holds memory, so only so many are kept.

    Args:
        most: how many.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._kept: OrderedDict[Hashable, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The recording of this key, made if need be."""
        if key not in self._kept:
            while len(self._kept) >= self.most:
                self._kept.popitem(last=False)
            self._kept[key] = make()
        self._kept.move_to_end(key)
        return self._kept[key]
