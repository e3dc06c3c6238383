"""Intervals, Welch's test, Holm's correction and numbers of runs, each against another way to the same number."""

import itertools

import numpy as np
import pytest
from scipy import stats

from report.intervals import holm, runs_needed, welch, wilson_interval


def test_wilson_intervals_are_those_of_scipy():
    cases = [(0, 1), (1, 1), (0, 50), (50, 50), (7, 11), (355, 360), (500_000, 1_000_000)]
    for num_correct, num_samples in cases:
        expected = stats.binomtest(num_correct, num_samples).proportion_ci(method="wilson")
        found = wilson_interval(num_correct, num_samples=num_samples)
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_samples_have_no_interval():
    with pytest.raises(ValueError, match="no samples has no interval"):
        wilson_interval(0, num_samples=0)


def test_welch_is_that_of_scipy():
    for first, second in [([0.91, 0.93, 0.92, 0.95], [0.90, 0.84, 0.88]), ([1.0, 2.0], [5.0, 1.0, 9.0])]:
        expected = stats.ttest_ind(first, second, equal_var=False)
        found = welch(first, second)
        assert found.value == pytest.approx(np.mean(first) - np.mean(second))
        assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
        assert found.p_value == pytest.approx(expected.pvalue)


def test_runs_without_spread_are_not_tested():
    assert welch([0.9], [0.8, 0.7]) is None
    assert welch([0.9, 0.9], [0.8, 0.8]) is None
    assert welch([0.9, 0.9], [0.8, 0.7]) is not None


def test_welch_errs_in_one_of_twenty_cases_where_there_is_no_difference():
    rng = np.random.default_rng(0)
    draws = rng.normal(0, 1, (1500, 8)) * np.array([1, 1, 1, 1, 3, 3, 3, 3])
    excluded = [not welch(row[:4], row[4:]).interval.low <= 0 <= welch(row[:4], row[4:]).interval.high for row in draws]
    assert 0.03 < np.mean(excluded) < 0.07


def test_holm_is_closed_testing_with_bonferroni():
    rng = np.random.default_rng(1)
    for p_values in [[0.01, 0.04, 0.03], [0.5], [0.02, 0.02, 0.02], *rng.random((20, 4)).tolist()]:
        places = range(len(p_values))
        sets = [s for size in range(1, len(p_values) + 1) for s in itertools.combinations(places, size)]
        expected = [max(min(1, len(s) * min(p_values[i] for i in s)) for s in sets if place in s) for place in places]
        assert holm(p_values) == pytest.approx(expected)
    assert holm([]) == []


def test_the_number_of_runs_finds_the_difference_in_four_of_five_cases():
    rng = np.random.default_rng(2)
    for num_comparisons in (1, 3):
        runs = runs_needed(1.0, std_first=0.7, std_second=1.2, num_comparisons=num_comparisons)
        first = rng.normal(1, 0.7, (4000, runs))
        second = rng.normal(0, 1.2, (4000, runs))
        p_values = stats.ttest_ind(first, second, axis=1, equal_var=False).pvalue
        assert 0.75 < np.mean(p_values < 0.05 / num_comparisons) < 0.88


def test_a_difference_that_no_thousand_runs_would_show_has_no_number():
    assert runs_needed(0.0, std_first=1, std_second=1) is None
    assert runs_needed(1e-3, std_first=1, std_second=1) is None
