"""Measured values of several seeds into words: mean and spread, and which of two groups is better.

top-1 of each seed, in percent -> spread, differences -> Markdown
"""

import statistics
from collections.abc import Mapping, Sequence

from report.intervals import holm, welch


def spread(values: Sequence[float]) -> str:
    """`69.13 +- 0.60 % (5 seeds)`: mean and standard deviation; of one seed the value alone."""
    beside = f" +- {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{beside} % ({len(values)} seed{'s' * (len(values) > 1)})"


def differences(pairs: Sequence[tuple[str, str]], values: Mapping[str, Sequence[float]]) -> list[str]:
    """A sentence on each pair, the first against the second; nothing on pairs without a spread to judge by.

    p values are corrected for there being several (Holm).
    """
    tests = [welch(values[after], values[before]) for after, before in pairs]
    corrected = iter(holm([test.p_value for test in tests if test is not None]))
    lines = []
    for (after, before), test in zip(pairs, tests, strict=True):
        if test is not None:
            p_value = next(corrected)
            verdict = ("better" if test.value > 0 else "worse") if p_value < 0.05 else "undecided"
            lines.append(
                f"- {after}, against {before}: **{verdict}**, {test.value:+.2f} points (95 % interval "
                f"{test.interval.low:+.2f} to {test.interval.high:+.2f}, p = {p_value:.2g})"
            )
    return lines
