"""The ranks of a training: which one this process is, and sums, comparisons and decisions over all of them.

With one rank every function is the identity, so callers need no special case.
"""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

_T = TypeVar("_T")
_counts = True


def launched() -> bool:
    """Whether this process was started as one of several ranks: by torchrun, SLURM or `training.ranks`."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def rank() -> int:
    """This process's rank, from its environment, so that it is known before `joined`."""
    return int(os.environ["RANK"]) if launched() else 0


def on_this_machine() -> int:
    """Number of ranks on this machine, from its environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])) if launched() else 1


def machines() -> int:
    """Number of machines."""
    return int(os.environ["WORLD_SIZE"]) // on_this_machine() if launched() else 1


@contextmanager
def rank_zero_stdout() -> Iterator[None]:
    """Within it, only the first rank prints to standard output; all print to standard error."""
    with redirect_stdout(io.StringIO()) if rank() else nullcontext():
        yield


@contextmanager
def joined(on_gpu: bool) -> Iterator[None]:
    """Join the process group of all ranks, if there are several, and leave it at the end."""
    if not launched():
        yield
        return
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("nccl" if on_gpu else "gloo")
    yield
    # Not after an error: the other ranks may wait in another call, and this process is about to end.
    dist.destroy_process_group()


def world() -> int:
    """Number of ranks in the process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_all(values: Tensor) -> Tensor:
    """Sum over all ranks; no gradient flows through it."""
    values = values.detach().clone()
    if world() > 1:
        dist.all_reduce(values)
    return values


def gather(values: Tensor) -> Tensor:
    """The values of all ranks, one row each; their shape is the same on all."""
    if world() == 1:
        return values.detach().unsqueeze(0)
    rows = [torch.empty_like(values) for _ in range(world())]
    dist.all_gather(rows, values.detach().contiguous())
    return torch.stack(rows)


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank; all get the same answer at the same step."""
    return flag if world() == 1 else bool(sum_all(torch.tensor(float(flag), device=device)))


def largest(value: int, device: torch.device) -> int:
    """The largest of the ranks' values, on all ranks."""
    return value if world() == 1 else int(gather(torch.tensor(value, device=device)).max())


def from_first(value: _T) -> _T:
    """The first rank's value, on all ranks."""
    if world() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held, src=0)
    return held[0]


def gather_names(names: list[str]) -> list[str]:
    """The names of all ranks, rank by rank."""
    if world() == 1:
        return names
    gathered: list[list[str]] = [[] for _ in range(world())]
    dist.all_gather_object(gathered, names)
    return [name for each in gathered for name in each]


@contextmanager
def counting(counts: bool) -> Iterator[None]:
    """Set `batch_counts()` for the code within: false where this rank's share of the batch is a stand-in."""
    global _counts
    before, _counts = _counts, counts
    try:
        yield
    finally:
        _counts = before


def batch_counts() -> bool:
    """Whether the frames of this rank count in the global batch."""
    return _counts


def check_equal(masks: dict[str, Tensor]) -> None:
    """Compare checksums of boolean masks over all ranks.

    Raises:
        RuntimeError: some differ; the message names them.
    """
    if world() == 1:
        return
    rows = gather(torch.stack([_checksum(mask) for mask in masks.values()]))
    differing = [name for name, bad in zip(masks, (rows != rows[0]).any(0).tolist(), strict=True) if bad]
    if differing:
        raise RuntimeError(f"masks differ between ranks: {', '.join(differing)}")


def _checksum(mask: Tensor) -> Tensor:
    """The sum of a pseudo-random number for each true position."""
    places = torch.arange(1, mask.numel() + 1, device=mask.device)
    return ((places * 0x9E3779B1 % 0x7FFFFFFF) * mask.flatten()).sum()
