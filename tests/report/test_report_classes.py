"""Accuracy of each class: numbers, order, intervals."""

import numpy as np
import pytest
from scipy import stats

from report.classes import ClassScore, draw_classes, scores_of_counts, scores_of_result

COUNTS = np.array([[9, 1, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 7]])


def test_classes_come_worst_first_and_those_without_images_are_left_out():
    scores = scores_of_counts(COUNTS, class_names=["a", "b", "c", "d"])
    assert scores == [ClassScore("b", 0.5, 4), ClassScore("a", 0.9, 10), ClassScore("d", 1.0, 7)]


def test_bars_and_lines_are_accuracy_and_interval():
    scores = scores_of_counts(COUNTS, class_names=["a", "b", "c", "d"])
    axes = draw_classes(scores).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 90, 100])
    assert [text.get_text() for text in axes.get_yticklabels()] == ["b  (4)", "a  (10)", "d  (7)"]
    for line, (num_correct, num_samples) in zip(axes.get_lines(), [(2, 4), (9, 10), (7, 7)], strict=True):
        expected = stats.binomtest(num_correct, num_samples).proportion_ci(method="wilson")
        assert line.get_xdata() == pytest.approx([100 * expected.low, 100 * expected.high])
    assert axes.yaxis_inverted(), "the worst class is at the top"


def test_of_many_classes_25_at_either_end_are_drawn():
    scores = [ClassScore(f"c{place}", place / 100, 100) for place in range(100)]
    axes = draw_classes(scores).axes[0]
    drawn = [round(bar.get_width()) for bar in axes.patches]
    assert drawn == [*range(25), *range(75, 100)]
    assert axes.get_title() == "the 25 worst and the 25 best of 100 classes"
    assert len(draw_classes(scores[:50]).axes[0].patches) == 50


def test_a_result_alone_gives_accuracies_without_intervals():
    result = {"test/top1_frac": 0.5, "test/top1_frac/a/b": 0.75, "test/top1_frac/c": 0.25, "val/top1_frac/c": 0.0}
    scores = scores_of_result(result, split="test")
    assert scores == [ClassScore("c", 0.25), ClassScore("a/b", 0.75)]
    assert scores[0].interval is None
    axes = draw_classes(scores).axes[0]
    assert not axes.get_lines()
    assert [text.get_text() for text in axes.get_yticklabels()] == ["c", "a/b"]
