"""Splits: stratified, disjoint, complete, the same for the same seed."""

import re

import numpy as np
import pytest

from pipelines.source import ArraySource
from pipelines.split import Parts, split_fold, split_source


def make_source(counts: list[int]) -> ArraySource:
    """So many samples per class, shuffled; the first two pixels hold the sample's number."""
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(len(counts)), counts))
    numbers = np.arange(len(labels), dtype=np.uint16)
    images = numbers.view(np.uint8).reshape(-1, 1, 2, 1)
    return ArraySource(
        class_names=tuple(f"class{index}" for index in range(len(counts))), labels_N=labels, images_NHWC=images
    )


def numbers_of(source: object) -> list[int]:
    assert isinstance(source, ArraySource)
    return source.images_NHWC.reshape(-1, 2).copy().view(np.uint16)[:, 0].tolist()


def split(source: ArraySource, frac: float, *, seed: int = 0) -> Parts:
    return split_source(source, held_out_frac=frac, seed=seed)


@pytest.mark.parametrize("counts", [[100, 100], [97, 13, 41], [180] * 10, [2, 2], [1000, 10, 30]])
@pytest.mark.parametrize("frac", [0.1, 0.2, 0.5])
def test_each_class_gives_its_fraction_within_one_image_and_nothing_is_lost(counts: list[int], frac: float) -> None:
    if frac * sum(counts) < len(counts):
        frac = 0.5
    source = make_source(counts)
    parts = split(source, frac)
    held_out, rest = numbers_of(parts.held_out), numbers_of(parts.rest)
    assert sorted(held_out + rest) == list(range(sum(counts)))
    assert (held_out, rest) == (sorted(held_out), sorted(rest)), "the order of the source is kept"
    per_class = np.bincount(parts.held_out.labels_N, minlength=len(counts))
    assert np.abs(per_class - np.array(counts) * frac).max() <= 1
    assert source.labels_N[held_out].tolist() == parts.held_out.labels_N.tolist()


def test_the_same_seed_gives_the_same_split_and_another_one_another() -> None:
    source = make_source([50, 50])
    first, again, other = (numbers_of(split(source, 0.2, seed=seed).held_out) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def check_offers(message: str, source: ArraySource) -> None:
    """Every fraction that the message offers works."""
    offers = re.search(r"a fraction of ([\d.]+) to ([\d.]+)", message)
    assert offers is not None
    for offer in offers.groups():
        parts = split(source, float(offer))
        for part in parts:
            assert len(set(part.labels_N.tolist())) == len(source.class_names)


@pytest.mark.parametrize(
    ("counts", "frac"), [([10, 10], 0.01), ([10, 10], 0.99), ([3] * 7, 0.1), ([3] * 7, 0.9), ([7] * 3, 0.05)]
)
def test_a_fraction_too_small_or_large_for_the_classes_is_refused_and_the_offers_work(
    counts: list[int], frac: float
) -> None:
    source = make_source(counts)
    wanted = (
        f"cannot split {sum(counts)} images of {len(counts)} classes (the smallest, 'class0', has {counts[0]}) with "
        f"data.val_frac={frac:g}: each class needs an image on both sides; add images, give val/ yourself, use "
    )
    with pytest.raises(ValueError, match=re.escape(wanted)) as caught:
        split(source, frac)
    assert "data.val_frac=0 with run.select=last" in str(caught.value)
    check_offers(str(caught.value), source)


def test_a_class_of_one_image_is_refused_by_name_and_no_fraction_is_offered() -> None:
    with pytest.raises(ValueError, match=r"the smallest, 'class1', has 1\) .*both sides; add images") as caught:
        split(make_source([30, 1, 20]), 0.2)
    assert "use a fraction" not in str(caught.value)
    assert "data.val_frac=0 with run.select=last" in str(caught.value)


def fold(source: ArraySource, number: int, *, num_folds: int = 4, seed: int = 0) -> Parts:
    return split_fold(source, num_folds=num_folds, fold=number, seed=seed)


def test_folds_share_no_sample_and_are_the_whole_together():
    source = make_source([8, 12, 21])
    parts = [fold(source, number) for number in range(4)]
    held_out = [number for part in parts for number in numbers_of(part.held_out)]
    assert sorted(held_out) == list(range(41))
    for part in parts:
        assert sorted(numbers_of(part.rest) + numbers_of(part.held_out)) == list(range(41))


def test_each_fold_has_its_share_of_every_class():
    source = make_source([8, 12, 21])
    counts = [np.bincount(fold(source, number).held_out.labels_N, minlength=3) for number in range(4)]
    assert all(
        low <= count <= high for one in counts for count, low, high in zip(one, (2, 3, 5), (2, 3, 6), strict=True)
    )


def test_folds_of_one_seed_are_the_same_and_of_another_not():
    source = make_source([20, 20])
    assert numbers_of(fold(source, 1).held_out) == numbers_of(fold(source, 1).held_out)
    assert numbers_of(fold(source, 1).held_out) != numbers_of(fold(source, 1, seed=1).held_out)


@pytest.mark.parametrize(("counts", "offer"), [([3, 9], "use data.num_folds=3 or fewer, or "), ([1, 9], "")])
def test_a_class_with_fewer_images_than_folds_is_refused(counts, offer):
    message = f"class 'class0' has {counts[0]} image(s), and each part needs one of every class; {offer}add images."
    with pytest.raises(ValueError, match=re.escape(message)):
        fold(make_source(counts), 0)
