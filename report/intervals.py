"""How sure a number is: intervals of accuracies, differences between groups of runs, and how many runs would decide.

Everything here is two-sided and at 95 %.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

_Z = 1.959963984540054  # standard normal, 97.5 %
_ERROR_FRAC = 0.05
_POWER_FRAC = 0.8
_MOST_RUNS = 1000


class Interval(NamedTuple):
    """From `low` to `high`."""

    low: float
    high: float


class Difference(NamedTuple):
    """What Welch's t-test says of the means of two groups: their difference, its 95 % interval and the p value."""

    value: float
    interval: Interval
    p_value: float


def wilson_interval(num_correct: int, *, num_samples: int) -> Interval:
    """The 95 % interval of an accuracy (Wilson 1927), which stays within 0 to 1 also at 0 or all correct.

    Raises:
        ValueError: There are no samples.
    """
    if num_samples < 1:
        raise ValueError("an accuracy of no samples has no interval; leave the class out.")
    frac, share = num_correct / num_samples, _Z**2 / num_samples
    centre = (frac + share / 2) / (1 + share)
    half = math.sqrt(frac * (1 - frac) * share + share**2 / 4) / (1 + share)
    return Interval(max(centre - half, 0.0), min(centre + half, 1.0))


def welch(first: Sequence[float], second: Sequence[float]) -> Difference | None:
    """The difference of the means, first minus second; None where the runs show no spread to judge it by.

    That is so where a group has one run only, and where all runs of both groups score the same within their group.
    """
    if min(len(first), len(second)) < 2 or np.ptp(first) + np.ptp(second) == 0:
        return None
    parts = [float(np.var(group, ddof=1)) / len(group) for group in (first, second)]
    degrees = sum(parts) ** 2 / sum(
        part**2 / (len(group) - 1) for part, group in zip(parts, (first, second), strict=True)
    )
    value, error = float(np.mean(first) - np.mean(second)), math.sqrt(sum(parts))
    reach = error * float(stats.t.ppf(1 - _ERROR_FRAC / 2, degrees))
    p_value = 2 * float(stats.t.sf(abs(value) / error, degrees))
    return Difference(value, Interval(value - reach, value + reach), p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p values, corrected for there being several (Holm 1979): below 0.05 holds for all of them together."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min((len(p_values) - rank) * p_values[place], 1.0))
        corrected[place] = largest
    return corrected


def runs_needed(difference: float, *, std_first: float, std_second: float, num_comparisons: int = 1) -> int | None:
    """Runs per group that would find a real difference of this size in four of five cases; None above 1,000.

    Args:
        difference: Of the means.
        std_first: Standard deviation of the runs of one group.
        std_second: Of the other.
        num_comparisons: How many there are; each is then held to 5 % divided by their number.
    """
    if difference == 0:
        return None
    effect = (std_first**2 + std_second**2) / difference**2
    runs = np.arange(2, _MOST_RUNS + 1)
    degrees = 2 * (runs - 1)
    quantiles = stats.t.ppf(1 - _ERROR_FRAC / num_comparisons / 2, degrees) + stats.t.ppf(_POWER_FRAC, degrees)
    enough = runs >= quantiles**2 * effect
    return int(runs[enough.argmax()]) if enough.any() else None
