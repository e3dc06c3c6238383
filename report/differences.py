"""Pairs of groups of runs -> sentences: which is better and by how much, or that these runs do not decide it."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

from report.groups import Group, is_frac, lower_is_better, show
from report.intervals import Difference, holm, runs_needed, welch

_ERROR_FRAC = 0.05


class Comparison(NamedTuple):
    """Two groups, the better one first.

    gain: how much better its mean is. difference: what Welch's t-test says, in the same direction; None where the runs
    show no spread. p_value: corrected for the number of comparisons (Holm).
    """

    better: Group
    worse: Group
    gain: float
    difference: Difference | None
    p_value: float | None


def compare_groups(groups: Sequence[Group], *, metric: str) -> list[Comparison]:
    """Every pair of groups, those with the best first; p values are corrected for the number of pairs tested.

    Args:
        groups: Best first.
        metric: Decides whether more or less is better.
    """
    sign = -1.0 if lower_is_better(metric) else 1.0
    pairs = list(itertools.combinations(groups, 2))
    tests = [welch([sign * v for v in better.values], [sign * v for v in worse.values]) for better, worse in pairs]
    corrected = iter(holm([test.p_value for test in tests if test is not None]))
    return [
        Comparison(better, worse, sign * (better.mean - worse.mean), test, None if test is None else next(corrected))
        for (better, worse), test in zip(pairs, tests, strict=True)
    ]


def state_all(groups: Sequence[Group], *, metric: str) -> list[str]:
    """A sentence on each pair of groups, those with the best group first."""
    comparisons = compare_groups(groups, metric=metric)
    num_tested = _num_tested(comparisons)
    return [state(comparison, metric=metric, num_tested=num_tested) for comparison in comparisons]


def state(comparison: Comparison, *, metric: str, num_tested: int) -> str:
    """`A is better than B by 1.60 points (...)`, or `undecided: ...` with what would decide it."""
    better, worse, gain, difference, p_value = comparison
    by = f"better than {worse.letter} by {show(gain, metric=metric)}" + (" points" if is_frac(metric) else "")
    runs = f"{len(better.runs)} and {len(worse.runs)} runs"
    if difference is None or p_value is None:
        if not gain:
            return f"undecided: {better.letter} and {worse.letter} score the same ({runs}); {_why_untested(comparison)}"
        return f"undecided: {better.letter} looks {by} ({runs}), but {_why_untested(comparison)}"
    low, high = (show(end, metric=metric) for end in difference.interval)
    numbers = f"95 % interval {low} to {high}; {runs}; p = {p_value:.2g}"
    if p_value < _ERROR_FRAC:
        return f"{better.letter} is {by} ({numbers})"
    return f"undecided: {better.letter} looks {by} ({numbers}). {_what_would_decide(comparison, num_tested=num_tested)}"


def notes_on(groups: Sequence[Group], *, metric: str) -> list[str]:
    """What a reader of the sentences should know."""
    num_tested = _num_tested(compare_groups(groups, metric=metric))
    notes = []
    if num_tested:
        notes.append(
            "Welch's t-test, two-sided, at 95 %. It covers the spread over seeds, on these images; other images to "
            "score on would add a spread of their own."
        )
    if num_tested > 1:
        notes.append(
            f"{num_tested} comparisons were made: the p values are corrected for that (Holm), the intervals are those "
            "of each pair alone."
        )
    return notes


def _num_tested(comparisons: Sequence[Comparison]) -> int:
    return sum(comparison.difference is not None for comparison in comparisons)


def _why_untested(comparison: Comparison) -> str:
    if min(len(comparison.better.runs), len(comparison.worse.runs)) < 2:
        return "one run says nothing about its spread: train each with three seeds or more (--run.seed)."
    return "the runs within each group score exactly the same, so there is no spread to judge it by."


def _what_would_decide(comparison: Comparison, *, num_tested: int) -> str:
    better, worse = comparison.better, comparison.worse
    needed = runs_needed(
        comparison.gain, std_first=better.std or 0.0, std_second=worse.std or 0.0, num_comparisons=num_tested
    )
    if needed is None:
        return "If there is a difference as small as that, 1,000 runs of each would hardly show it."
    needed = max(needed, 1 + min(len(better.runs), len(worse.runs)))
    return f"If it is real and as large as it looks, about {needed:,} runs of each would show it (4 times in 5)."
