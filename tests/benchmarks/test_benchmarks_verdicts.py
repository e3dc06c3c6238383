"""Measured values into words."""

import statistics

from scipy import stats

from benchmarks.verdicts import differences, spread


def test_values_are_told_by_mean_and_standard_deviation_and_one_by_itself() -> None:
    assert spread([69.0, 70.0, 72.5]) == f"70.50 +- {statistics.stdev([69.0, 70.0, 72.5]):.2f} % (3 seeds)"
    assert spread([69.0]) == "69.00 % (1 seed)"


def test_a_pair_without_spread_has_no_verdict_and_does_not_count_in_the_correction() -> None:
    values = {"a": [1.0, 2.0, 3.0], "b": [2.0, 4.0, 9.0], "c": [5.0]}
    lines = differences([("b", "a"), ("c", "a")], values)
    test = stats.ttest_ind(values["b"], values["a"], equal_var=False)
    low, high = test.confidence_interval()
    assert lines == [
        f"- b, against a: **undecided**, +3.00 points (95 % interval {low:+.2f} to {high:+.2f}, p = {test.pvalue:.2g})"
    ]
