"""Batches of utterances of similar duration, in an order that every process can compute."""

import itertools
import random
from collections.abc import Iterable, Iterator, Sequence

from torch.utils.data import Sampler

from blocksparse_rnn.errors import UserError


class WeightedDraws:
    """The utterances of a pass, drawn by weight; all passes have the same number, and so the same number of steps.

    Args:
        weights: of each utterance: with 2 it occurs twice; of those with 0.5 half occur, drawn anew in each pass.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.groups: dict[float, list[int]] = {}
        for index, weight in enumerate(weights):
            self.groups.setdefault(weight, []).append(index)

    def __len__(self) -> int:
        return sum(whole * len(group) + part for group, whole, part in self._shares())

    def __call__(self, seed: str) -> list[int]:
        """Drawn indices in ascending order."""
        random_state = random.Random(f"{seed}-weights")
        drawn: list[int] = []
        for group, whole, part in self._shares():
            drawn += group * whole + random_state.sample(group, part)
        return sorted(drawn)

    def _shares(self) -> Iterator[tuple[list[int], int, int]]:
        """Members of each weight, how often all of them occur, and how many of them occur once more."""
        for weight, group in self.groups.items():
            yield group, int(weight), round(weight % 1 * len(group))


class BucketBatchSampler(Sampler[list[int]]):
    """Batches by duration: the shortest first in the first epoch (SortaGrad), shuffled afterwards.

    The batches of an epoch are a function of (the constructor's arguments, epoch) alone. Every rank takes
    its share of each global batch from the same list, so all ranks take the same number of steps, and
    a batch holds the same utterances on any number of ranks. If a batch is too small for all ranks, a rank
    without a share gets the first utterance as a placeholder, marked by `~index` (below 0): it is
    computed, since every rank takes part in every step, but does not count.

    Source of SortaGrad: Amodei et al., "Deep Speech 2", 2016, section 3.3.

    Args:
        durations: seconds of each utterance.
        batch: utterances of a global batch; the last one of a pass may hold fewer.
        epochs_per_pass: epochs that share the batches of a pass over all utterances. They have the same number
            of batches, so a pass leaves out fewer than `epochs_per_pass`, others in each pass.
        seed: seed of the order.
        rank: this process's number among `world`.
        world: processes that share a batch.
        weights: how often each utterance occurs in a pass, on average; None means once.

    Raises:
        UserError: the weights are so small that a pass has no utterance.
    """

    JITTER = 0.1
    """Relative noise on durations, so that the batches differ between passes."""

    def __init__(
        self,
        durations: Sequence[float],
        *,
        batch: int,
        epochs_per_pass: int = 1,
        seed: int,
        rank: int = 0,
        world: int = 1,
        weights: Sequence[float] | None = None,
    ) -> None:
        self.durations = durations
        self.batch = batch
        self.epochs_per_pass = epochs_per_pass
        self.seed = seed
        self.rank, self.world = rank, world
        self.draws = WeightedDraws(weights) if weights and set(weights) != {1.0} else None
        if self.draws is not None and len(self.draws) == 0:
            raise UserError("data.train: with these weights a pass has no utterance at all; give larger ones")
        self.epoch = 0
        self._resume: tuple[int, int] | None = None
        self.sampler = self  # Lightning sets the epoch of `batch_sampler.sampler`

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches come next."""
        self.epoch = epoch

    def resume(self, epoch: int, batches: int) -> None:
        """Let the next iteration start in `epoch`, after its first `batches` batches."""
        self._resume = (epoch, batches)

    def __len__(self) -> int:
        return -(-self.utterances_per_pass() // self.batch) // self.epochs_per_pass

    def global_batches(self, epoch: int) -> Iterable[list[int]]:
        """All batches of an epoch, before they are shared among ranks."""
        number, part = divmod(epoch, self.epochs_per_pass)
        if self.epochs_per_pass == 1:  # as a stream: shards need not hold all of it in memory
            return self.pass_batches(number, shuffled=epoch > 0)
        batches = itertools.islice(
            self.pass_batches(number, shuffled=True), part * len(self), (part + 1) * len(self)
        )
        return batches if epoch else sorted(batches, key=lambda batch: self.seconds(batch[0]))

    def utterances_per_pass(self) -> int:
        """Number of utterances of a pass; one that occurs twice counts twice."""
        return len(self.durations) if self.draws is None else len(self.draws)

    def seconds(self, index: int) -> float:
        """Duration of an utterance."""
        return self.durations[index]

    def pass_batches(self, number: int, *, shuffled: bool) -> Iterable[list[int]]:
        """All batches of a pass, shuffled or the shortest first."""
        noise = random.Random(f"{self.seed}-{number}")
        jitter = self.JITTER if number else 0.0
        keys = [d * (1 + jitter * noise.random()) for d in self.durations]
        drawn = range(len(keys)) if self.draws is None else self.draws(f"{self.seed}-{number}")
        order = sorted(drawn, key=keys.__getitem__)
        batches = [order[i : i + self.batch] for i in range(0, len(order), self.batch)]
        if shuffled:
            noise.shuffle(batches)
        return batches

    def __iter__(self) -> Iterator[list[int]]:
        # A generator, since a loader with workers creates two iterators and uses the second only.
        skip = 0
        if self._resume is not None:
            self.epoch, skip = self._resume
            self._resume = None
        for batch in itertools.islice(self.global_batches(self.epoch), skip, None):
            yield batch[self.rank :: self.world] or [~batch[0]]
