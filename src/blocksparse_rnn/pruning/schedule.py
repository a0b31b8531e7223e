"""When pruning happens and how its threshold rises: from q to slopes, from an iteration to a threshold.

Iterations count optimizer steps. Sources: Narang et al., "Exploring Sparsity in Recurrent Neural
Networks", ICLR 2017, algorithm 1 and equation 1; Zhu and Gupta, "To prune, or not to prune", 2017.
"""

from collections.abc import Callable
from dataclasses import dataclass

from blocksparse_rnn.errors import UserError


@dataclass(frozen=True)
class Steps:
    """A schedule resolved to iterations. Updates come at multiples of `freq` between start and end,
    both excluded; `end_itr` follows the last of them, so that it reaches the intended threshold."""

    start_itr: int
    ramp_itr: int
    end_itr: int
    freq: int

    @property
    def updates(self) -> range:
        """Iterations after which masks are updated."""
        return range((self.start_itr // self.freq + 1) * self.freq, self.end_itr, self.freq)


class PaperSchedule:
    """The threshold rises along two lines, the second steeper: the paper's schedule.

    Args:
        start_epoch: epochs before the first update.
        ramp_frac: share of the run's iterations at which the steeper line begins.
        end_frac: share of the run's iterations at which pruning ends.
        ramp_ratio: steeper slope over first slope, phi over theta; 1.5 to 2 in the paper.
        freq: iterations from one update to the next.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(
        self, *, start_epoch: float, ramp_frac: float, end_frac: float, ramp_ratio: float, freq: int
    ) -> None:
        _check(start_epoch, end_frac, freq)
        if not 0 <= ramp_frac <= end_frac:
            raise UserError(f"schedule.ramp_frac={ramp_frac}: must be from 0 to end_frac={end_frac}")
        if ramp_ratio <= 0:
            raise UserError(f"schedule.ramp_ratio={ramp_ratio}: must be above 0")
        self.start_epoch = start_epoch
        self.ramp_frac = ramp_frac
        self.end_frac = end_frac
        self.ramp_ratio = ramp_ratio
        self.freq = freq

    def resolve(self, steps_per_epoch: int, total_steps: int) -> Steps | None:
        """The schedule of a run of `total_steps`; None where it has no room for an update."""
        return _resolve(
            self.start_epoch, self.ramp_frac, self.end_frac, self.freq, steps_per_epoch, total_steps
        )

    def threshold(self, itr: int, steps: Steps, q: float) -> float:
        """Threshold eps at an update, for weights of which `q` is the reference value.

        With phi = 1.5 theta it ends at about q.
        """
        before, after = steps.ramp_itr - steps.start_itr, steps.end_itr - steps.ramp_itr
        start_slope = 2 * q * steps.freq / (2 * before + 3 * after)
        return start_slope * self._climb(itr, steps) / steps.freq

    def cut(self, itr: int, steps: Steps, target: float, quantile: Callable[[float], float]) -> float:
        """Threshold at an update on the way to the sparsity `target`: the lines above, scaled so that
        the last update prunes what lies below the scores' quantile at the target."""
        return self._climb(itr, steps) / self._climb(steps.updates[-1], steps) * quantile(target)

    def _climb(self, itr: int, steps: Steps) -> float:
        """Height of the two lines at an iteration, in units of the first slope times iterations."""
        if itr < steps.ramp_itr:
            return itr - steps.start_itr + 1
        return steps.ramp_itr - steps.start_itr + 1 + self.ramp_ratio * (itr - steps.ramp_itr + 1)


class CubicSchedule:
    """The sparsity itself rises, fast at first: target * (1 - (1 - progress)^3), Zhu and Gupta's.

    Args:
        start_epoch: epochs before the first update.
        end_frac: share of the run's iterations at which pruning ends.
        freq: iterations from one update to the next.

    Raises:
        UserError: a value is out of its range.
    """

    def __init__(self, *, start_epoch: float, end_frac: float, freq: int) -> None:
        _check(start_epoch, end_frac, freq)
        self.start_epoch = start_epoch
        self.end_frac = end_frac
        self.freq = freq

    def resolve(self, steps_per_epoch: int, total_steps: int) -> Steps | None:
        """The schedule of a run of `total_steps`; None where it has no room for an update."""
        return _resolve(
            self.start_epoch, self.end_frac, self.end_frac, self.freq, steps_per_epoch, total_steps
        )

    def cut(self, itr: int, steps: Steps, target: float, quantile: Callable[[float], float]) -> float:
        """Threshold at an update: the scores' quantile at the sparsity that is due."""
        progress = (itr - steps.start_itr) / (steps.updates[-1] - steps.start_itr)
        return quantile(target * (1 - (1 - progress) ** 3))


Schedule = PaperSchedule | CubicSchedule


def _check(start_epoch: float, end_frac: float, freq: int) -> None:
    if start_epoch < 0:
        raise UserError(f"schedule.start_epoch={start_epoch}: must not be negative")
    if not 0 < end_frac <= 1:
        raise UserError(f"schedule.end_frac={end_frac}: must be above 0 and at most 1")
    if freq < 1:
        raise UserError(f"schedule.freq={freq}: must be at least 1")


def _resolve(
    start_epoch: float, ramp_frac: float, end_frac: float, freq: int, steps_per_epoch: int, total_steps: int
) -> Steps | None:
    start_itr = round(start_epoch * steps_per_epoch)
    last_update = int(end_frac * total_steps) // freq * freq
    if last_update <= start_itr:
        return None
    end_itr = last_update + 1
    ramp_itr = min(max(round(ramp_frac * total_steps), start_itr), end_itr)
    return Steps(start_itr, ramp_itr, end_itr, freq)
