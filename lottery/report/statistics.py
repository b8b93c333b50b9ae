"""Tests and intervals about the typical seed: the median of differences paired by seed.

A mean cannot be protected from a collapse in one seed of ten, which eight seeds miss as often as
not. The sign test (Conover 1999, section 3.4) holds its level on every distribution whose median is
on the bound, skewed ones too; what few seeds do is counted apart.
"""

from bisect import bisect_left
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats
from statsmodels.stats.multitest import multipletests

from lottery.params import FEWEST

MOST_SEEDS = 1000
POWER = 0.8


class Median(NamedTuple):
    """The median of paired differences and its two-sided interval; None from too few seeds."""

    value: float
    low: float | None
    high: float | None


def median(values: np.ndarray, confidence: float, step: float) -> Median:
    """The median and the exact interval of order statistics (Conover 1999, section 3.2).

    Measurements lie on a grid of width ``step``, on which a few seeds may agree by chance: the
    interval reaches at least one step to either side.
    """
    middle = float(np.median(values))
    low, high = stats.quantile_test(values, q=0, p=0.5).confidence_interval(confidence)
    if np.isnan(low) or np.isnan(high):
        return Median(_measured(middle), None, None)
    low, high = min(float(low), middle - step), max(float(high), middle + step)
    return Median(*map(_measured, (middle, low, high)))


def _measured(value: float) -> float:
    """Without what the seven digits of histories leave of equal numbers; and 0 has no sign."""
    return round(value, 6) + 0.0


class Criterion(NamedTuple):
    """One of the things that must hold of the typical seed: that ``values`` are above ``bound``.

    Compared with a tolerance of 1e-9. A seed of which the data do not tell neither meets nor
    refutes it.
    """

    name: str
    values: np.ndarray  # float64 [seeds]
    bound: float
    fails: np.ndarray | bool = False  # bool [seeds]: do not meet it, whatever their value
    untold: np.ndarray | bool = False  # bool [seeds]: refute nothing, however low their value

    @property
    def seeds(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @property
    def met(self) -> int:
        """Seeds that satisfy the criterion by themselves."""
        return int(((self.values > self.bound + 1e-9) & np.logical_not(self.fails)).sum())

    @property
    def misses(self) -> int:
        """Seeds that do not."""
        return self.seeds - self.met

    @property
    def refuted(self) -> int:
        """Seeds that count against it."""
        return int(((self.values < self.bound - 1e-9) & np.logical_not(self.untold)).sum())


def sign_test(successes: int, trials: int) -> float:
    """The probability of so many successes or more, were a success a toss of a coin.

    Of seeds above a bound, the p-value for the median being above; 1 from fewer than FEWEST.
    """
    return float(stats.binom.sf(successes - 1, trials, 0.5)) if trials >= FEWEST else 1.0


def p_win(criteria: Sequence[Criterion]) -> float:
    """p-value for all criteria being met: an intersection-union test (Berger 1982)."""
    return max(sign_test(c.met, c.seeds) for c in criteria)


def p_loss(criteria: Sequence[Criterion]) -> float:
    """p-value for at least one being refuted, Bonferroni-corrected for their number."""
    return min(1.0, len(criteria) * min(sign_test(c.refuted, c.seeds) for c in criteria))


def at_most(misses: int, seeds: int, confidence: float) -> float:
    """The upper bound of the share of seeds that miss (Clopper & Pearson 1934), one-sided."""
    return float(stats.binomtest(misses, seeds, alternative="less").proportion_ci(confidence).high)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979)."""
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def power(share: float, seeds: int, alpha: float) -> float:
    """Probability that a sign test at ``alpha`` succeeds, where a ``share`` of all seeds do."""
    needed = int(stats.binom.isf(alpha, seeds, 0.5)) + 1
    return float(stats.binom.sf(needed - 1, seeds, share))


def seeds_needed(
    criteria: Sequence[Criterion], alpha: float, alpha_loss: float
) -> tuple[Literal["win", "lose"], int | None] | None:
    """How many seeds would decide with probability POWER, if what was observed is the truth.

    Where the typical seed meets all criteria it is heading for a win: each must be shown. Else for
    a loss: one must be refuted. Shares of seeds are estimated as (k + 1) / (n + 2), Laplace's rule.
    None from fewer than four seeds; a number of None: more than MOST_SEEDS.
    """
    n = criteria[0].seeds
    if n < 4:
        return None
    shares = [(c.met + 1) / (n + 2) for c in criteria]
    against = max((c.refuted + 1) / (n + 2) for c in criteria)
    heading: Literal["win", "lose"] = "win" if min(shares) > 0.5 else "lose"

    def probability(seeds: int) -> float:
        """That so many seeds decide."""
        if heading == "lose":
            return power(against, seeds, alpha_loss)
        return 1 - sum(1 - power(s, seeds, alpha) for s in shares)  # they may miss together

    numbers = range(FEWEST, MOST_SEEDS + 1)
    index = bisect_left(numbers, True, key=lambda seeds: probability(seeds) >= POWER)
    return heading, numbers[index] if index < len(numbers) else None
