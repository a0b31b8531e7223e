"""When pruning happens, and how high the threshold is at each update.

Iterations count optimizer steps. Sources:
2017a: Narang, Elsen, Diamos, Sengupta, "Exploring Sparsity in Recurrent Neural Networks", ICLR 2017.
2017b: Narang, Undersander, Diamos, "Block-Sparse Recurrent Neural Networks", 2017, section 3.1.
Zhu, Gupta, "To prune, or not to prune", 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass

from blocksparse_rnn.errors import UserError

Quantile = Callable[[float], float]
"""Fraction -> quantile of the scores that the blocks have now."""


@dataclass(frozen=True)
class Steps:
    """A schedule in iterations.

    Masks are updated at multiples of `freq` between start and end, both excluded. `end_itr` is one more
    than the last update, so that the threshold reaches its intended height.
    """

    start_itr: int
    ramp_itr: int
    end_itr: int
    freq: int

    @property
    def updates(self) -> range:
        """Iterations after which masks are updated; empty in a run that is too short."""
        return range((self.start_itr // self.freq + 1) * self.freq, self.end_itr, self.freq)


class Schedule:
    """When pruning starts and ends; subclasses say how the threshold rises in between, and explain the arguments."""

    def __init__(self, start_epoch: float, ramp_frac: float, end_frac: float, freq: int) -> None:
        if start_epoch < 0:
            raise UserError(f"schedule.start_epoch={start_epoch}: must not be negative")
        if not 0 < end_frac <= 1:
            raise UserError(f"schedule.end_frac={end_frac}: must be above 0 and at most 1")
        if not 0 <= ramp_frac <= end_frac:
            raise UserError(f"schedule.ramp_frac={ramp_frac}: must be from 0 to end_frac={end_frac}")
        if freq < 1:
            raise UserError(f"schedule.freq={freq}: must be at least 1")
        self.start_epoch = start_epoch
        self.ramp_frac = ramp_frac
        self.end_frac = end_frac
        self.freq = freq

    def resolve(self, steps_per_epoch: int, total_steps: int) -> Steps:
        """The schedule of a run of `total_steps`."""
        start_itr = round(self.start_epoch * steps_per_epoch)
        end_itr = int(self.end_frac * total_steps) // self.freq * self.freq + 1
        ramp_itr = min(max(round(self.ramp_frac * total_steps), start_itr), end_itr)
        return Steps(start_itr, ramp_itr, end_itr, self.freq)

    def target_threshold(self, itr: int, steps: Steps, target: float, quantile: Quantile) -> float:
        """Threshold at the update `itr`, on the way to `target`: the fraction of zero blocks after the last update."""
        raise NotImplementedError


class PaperSchedule(Schedule):
    """The threshold rises along two lines, the second steeper (2017a, algorithm 1; 2017b, table 1).

    Args:
        start_epoch: epochs before the first update; 1 in the paper.
        ramp_frac: share of the run's iterations at which the steeper line begins; 0.2 in the paper.
        end_frac: share of the run's iterations at which pruning ends; 0.4 in the paper.
        ramp_ratio: phi / theta, second slope over first; 1.2 to 1.7 in the paper.
        freq: iterations from one update to the next; 100 in the paper.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self, *, start_epoch: float, ramp_frac: float, end_frac: float, ramp_ratio: float, freq: int
    ) -> None:
        super().__init__(start_epoch, ramp_frac, end_frac, freq)
        if ramp_ratio <= 0:
            raise UserError(f"schedule.ramp_ratio={ramp_ratio}: must be above 0")
        self.ramp_ratio = ramp_ratio

    def threshold(self, itr: int, steps: Steps, q: float) -> float:
        """Threshold eps at an update for the reference weight q (2017b, equation 1).

        The equation assumes phi = 1.5 theta, with which the threshold ends at about q.
        """
        before, after = steps.ramp_itr - steps.start_itr, steps.end_itr - steps.ramp_itr
        start_slope = 2 * q * steps.freq / (2 * before + 3 * after)
        return start_slope * self._height(itr, steps) / steps.freq

    def target_threshold(self, itr: int, steps: Steps, target: float, quantile: Quantile) -> float:
        """The same two lines, scaled so that they end at the quantile of the target."""
        return self._height(itr, steps) / self._height(steps.updates[-1], steps) * quantile(target)

    def _height(self, itr: int, steps: Steps) -> float:
        """Height of the two lines, in units of theta / freq (2017a, algorithm 1)."""
        if itr < steps.ramp_itr:
            return itr - steps.start_itr + 1
        return steps.ramp_itr - steps.start_itr + 1 + self.ramp_ratio * (itr - steps.ramp_itr + 1)


class CubicSchedule(Schedule):
    """The sparsity rises, fast at first: target * (1 - (1 - progress)^3) (Zhu and Gupta).

    Args:
        start_epoch: epochs before the first update.
        end_frac: share of the run's iterations at which pruning ends.
        freq: iterations from one update to the next.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(self, *, start_epoch: float, end_frac: float, freq: int) -> None:
        super().__init__(start_epoch, end_frac, end_frac, freq)

    def target_threshold(self, itr: int, steps: Steps, target: float, quantile: Quantile) -> float:
        """The quantile of the sparsity that is due at `itr`."""
        progress = (itr - steps.start_itr) / (steps.updates[-1] - steps.start_itr)
        return quantile(target * (1 - (1 - progress) ** 3))
