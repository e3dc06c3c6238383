"""The confusion matrix: the right numbers in the right cells, and the right pairs."""

import numpy as np
import pytest

from report.confusion import draw_confusion, most_confused
from report.figures import png_of

COUNTS = np.array([[8, 2, 0, 0], [0, 5, 5, 0], [2, 0, 0, 1], [0, 0, 0, 0]])
NAMES = ["cat", "dog", "eel", "fox"]


def drawn_fracs(figure):
    return np.asarray(figure.axes[0].images[0].get_array()) / 100


def test_pairs_come_by_count_then_by_part_of_the_class():
    pairs = most_confused(COUNTS, class_names=NAMES, limit=10)
    assert [tuple(pair) for pair in pairs] == [
        ("dog", "eel", 5, 0.5),
        ("eel", "cat", 2, pytest.approx(2 / 3)),
        ("cat", "dog", 2, 0.2),
        ("eel", "fox", 1, pytest.approx(1 / 3)),
    ]
    assert most_confused(COUNTS, class_names=NAMES, limit=1) == pairs[:1]
    assert most_confused(np.diag([3, 4]), class_names=["a", "b"], limit=5) == []


def test_colours_are_parts_of_the_true_class_and_numbers_are_counts():
    figure = draw_confusion(COUNTS, class_names=NAMES)
    axes = figure.axes[0]
    seen = COUNTS.sum(axis=1)
    for true in range(4):
        for predicted in range(4):
            expected = COUNTS[true, predicted] / seen[true] if seen[true] else 0
            assert drawn_fracs(figure)[true, predicted] == pytest.approx(expected)
    written = {(int(text.get_position()[1]), int(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(i, j): str(COUNTS[i, j]) for i in range(4) for j in range(4) if COUNTS[i, j]}
    assert [text.get_text() for text in axes.get_yticklabels()] == NAMES
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true", "predicted")


@pytest.mark.parametrize(("num_classes", "num_texts"), [(20, 20), (21, 0), (50, 0)])
def test_counts_are_written_up_to_20_classes(num_classes, num_texts):
    figure = draw_confusion(np.diag(np.full(num_classes, 3)), class_names=[f"c{i}" for i in range(num_classes)])
    assert len(figure.axes[0].texts) == num_texts
    assert drawn_fracs(figure).shape == (num_classes, num_classes)


def test_of_many_classes_those_of_the_worst_pairs_are_shown():
    counts = np.diag(np.full(1000, 50))
    for rank in range(12):
        counts[100 + rank, 900 - rank] = 40 - rank  # 24 classes in pairs, worst first
    figure = draw_confusion(counts, class_names=[f"c{i}" for i in range(1000)])
    labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert labels == [f"c{100 + i}" for i in range(10)] + [f"c{900 - i}" for i in reversed(range(10))]
    assert drawn_fracs(figure)[0, 19] == pytest.approx(40 / 90)
    assert figure.axes[0].get_title() == "the 20 most confused of 1,000 classes"


def test_a_perfect_classifier_of_many_classes_and_an_empty_matrix_are_drawn():
    for counts in (np.diag(np.full(60, 3)), np.zeros((2, 2), dtype=np.int64)):
        assert png_of(draw_confusion(counts, class_names=[str(i) for i in range(len(counts))]))
