"""How often samples are met: floor or ceil of the expectation, per sample and per class, for every epoch."""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from scipy import stats

from pipelines.sampling import draw_sequence, expectations, sampling_weights

Floats = npt.NDArray[np.float64]


def labels_of(counts: list[int], *, seed: int = 0) -> npt.NDArray[np.int64]:
    labels = np.repeat(np.arange(len(counts)), counts)
    return np.random.default_rng(seed).permutation(labels)


def case_of(name: str) -> tuple[npt.NDArray[np.int64], Floats]:
    labels = labels_of([40, 7, 1, 152, 33])
    rng = np.random.default_rng(1)
    weights: dict[str, Floats | None] = {
        "balanced": sampling_weights(labels, sampling="balanced", factors={}, weights_N=None),
        "factors": sampling_weights(labels, sampling="shuffled", factors={1: 5.0, 3: 0.1}, weights_N=None),
        "both": sampling_weights(labels, sampling="balanced", factors={0: 2.0}, weights_N=None),
        "lognormal": rng.lognormal(0, 2, len(labels)),
        "zeros": np.where(rng.random(len(labels)) < 0.5, 0.0, rng.random(len(labels))),
        "one": np.eye(1, len(labels), 5)[0],
        "huge": rng.random(len(labels)) * 1e308,
        "tiny": rng.random(len(labels)) * 1e-300,
        "whole": np.tile([1.0, 2.0, 3.0], len(labels))[: len(labels)],
    }
    chosen = weights[name]
    assert chosen is not None
    return labels, chosen


CASES = ["balanced", "factors", "both", "lognormal", "zeros", "one", "huge", "tiny", "whole"]


@pytest.mark.parametrize("name", CASES)
def test_samples_and_classes_are_met_floor_or_ceil_of_their_expectation(name: str) -> None:
    labels, weights = case_of(name)
    exact = [Fraction(weight) for weight in weights.tolist()]
    total = sum(exact)
    wanted = np.array([float(len(labels) * weight / total) for weight in exact])
    assert expectations(weights) == pytest.approx(wanted, rel=1e-14)
    class_wanted = np.bincount(labels, weights=wanted)
    for epoch in range(50):
        sequence = draw_sequence(labels, expectations(weights), seed=4, epoch=epoch)
        assert len(sequence.ids_N) == len(labels)
        for counts, expected in (
            (np.bincount(sequence.ids_N, minlength=len(labels)), wanted),
            (np.bincount(labels[sequence.ids_N], minlength=5), class_wanted),
        ):
            assert (counts >= np.floor(expected + 1e-6)).all()
            assert (counts <= np.ceil(expected - 1e-6)).all()


@pytest.mark.parametrize("counts", [[300, 300, 300], [299, 300, 301], [900, 1, 1], [3, 7, 11]])
def test_equal_weights_meet_every_sample_exactly_once(counts: list[int]) -> None:
    labels = labels_of(counts)
    for weight in (1.0, 0.1, 1 / 3):
        for epoch in range(20):
            sequence = draw_sequence(labels, expectations(np.full(len(labels), weight)), seed=0, epoch=epoch)
            assert sorted(sequence.ids_N.tolist()) == list(range(len(labels)))


def test_expectations_that_are_whole_numbers_are_met_exactly() -> None:
    """Thirds and sevenths sum to whole classes, whatever rounding does to them."""
    labels = labels_of([300, 700, 100, 100])
    weights = sampling_weights(labels, sampling="balanced", factors={}, weights_N=None)
    assert weights is not None
    for epoch in range(200):
        ids = draw_sequence(labels, expectations(weights), seed=1, epoch=epoch).ids_N
        assert np.bincount(labels[ids]).tolist() == [300, 300, 300, 300]
        assert np.bincount(ids, minlength=1200)[labels == 2].tolist() == [3] * 100


def test_copies_count_how_often_a_sample_came_before_in_its_epoch() -> None:
    labels, weights = case_of("balanced")
    sequence = draw_sequence(labels, expectations(weights), seed=0, epoch=3)
    assert sequence.copies_N is not None
    met: dict[int, list[int]] = {}
    for sample_id, copy in zip(sequence.ids_N.tolist(), sequence.copies_N.tolist(), strict=True):
        met.setdefault(sample_id, []).append(copy)
    assert all(sorted(copies) == list(range(len(copies))) for copies in met.values())
    assert max(len(copies) for copies in met.values()) > 40, "the class of one sample"


def test_over_many_epochs_each_sample_is_met_as_often_as_its_weight_says() -> None:
    labels, weights = case_of("lognormal")
    num_epochs, wanted = 2000, expectations(weights)
    counts = np.zeros(len(labels))
    for epoch in range(num_epochs):
        counts += np.bincount(draw_sequence(labels, wanted, seed=9, epoch=epoch).ids_N, minlength=len(labels))
    left = wanted - np.floor(wanted)  # in each epoch one more with this probability
    spread = np.sqrt(np.maximum(left * (1 - left) * num_epochs, 0.25))
    assert np.abs((counts - num_epochs * wanted) / spread).max() < 4.5


def test_places_in_the_sequence_are_uniform_and_epochs_and_seeds_differ() -> None:
    labels = labels_of([6, 2])
    wanted = expectations(np.array([3.0, 1.0])[labels])
    places = [np.flatnonzero(draw_sequence(labels, wanted, seed=0, epoch=epoch).ids_N == 0) for epoch in range(4000)]
    counts = np.bincount(np.concatenate(places), minlength=8)
    assert stats.chisquare(counts).pvalue > 1e-3
    draws = [draw_sequence(labels, wanted, seed=s, epoch=e).ids_N.tolist() for s in (0, 1) for e in (0, 1)]
    assert len({tuple(draw) for draw in draws}) == 4


def test_a_sequence_is_a_function_of_its_arguments_and_stays_what_it_was() -> None:
    labels, weights = case_of("lognormal")
    first, again = (draw_sequence(labels, expectations(weights), seed=7, epoch=2) for _ in range(2))
    assert first.ids_N.tolist() == again.ids_N.tolist()
    assert first.ids_N[:10].tolist() == [200, 120, 7, 191, 200, 183, 92, 39, 11, 183]


def test_a_million_samples_are_met_as_exactly_as_a_few() -> None:
    labels = np.sort(np.random.default_rng(0).zipf(1.3, 1_000_000).clip(max=1000) - 1)
    labels = np.unique(labels, return_inverse=True)[1].astype(np.int64)
    weights = sampling_weights(labels, sampling="balanced", factors={}, weights_N=None)
    assert weights is not None
    wanted = expectations(weights)
    ids = draw_sequence(labels, wanted, seed=0, epoch=0).ids_N
    counts = np.bincount(ids, minlength=len(labels))
    assert (counts >= np.floor(wanted + 1e-6)).all()
    assert (counts <= np.ceil(wanted - 1e-6)).all()
    per_class, expected = np.bincount(labels[ids]), 1_000_000 / (labels.max() + 1)
    assert {math.floor(expected), math.ceil(expected)} >= set(per_class.tolist())


def test_nothing_is_weighted_where_nothing_asks_for_it() -> None:
    labels = labels_of([3, 4])
    assert sampling_weights(labels, sampling="shuffled", factors={}, weights_N=np.ones(7)) is None


def test_weights_are_those_of_the_manifest_times_the_factors() -> None:
    given = np.array([1.0, 0.0, 2.0])
    weights = sampling_weights(np.array([0, 1, 1]), sampling="weighted", factors={1: 3.0}, weights_N=given)
    assert weights is not None
    assert weights.tolist() == [1, 0, 6]
    assert given.tolist() == [1, 0, 2], "the given ones are left alone"


def test_weights_of_nothing_are_refused() -> None:
    wanted = "the weights of the 3 training images sum up to 0; give at least one image a weight above 0"
    with pytest.raises(ValueError, match=wanted):
        sampling_weights(np.array([0, 1, 1]), sampling="weighted", factors={}, weights_N=np.zeros(3))
