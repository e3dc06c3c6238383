"""The table of docs/operations.md: every way of doing operations is within the limits, and none is missing.

It is measured here on images made up like photographs, or on photographs where REAL_JPEGS names a folder of them.
"""

import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from executor_builders import DALI_IS_EXPECTED
from operation_cases import Pixels
from PIL import Image

from benchmarks import operations, publish
from benchmarks.operations import (
    EVERY_OPERATION,
    LIMITS,
    RANGES,
    SIZE_PX,
    Way,
    build_ways,
    describe_range,
    draw_operations,
    load_photographs,
    measure,
    write_csv,
)
from benchmarks.recipes import RESULTS, read_csv
from pipelines.operations.vocabulary import PARAMETER_NAMES, Operation, Operations, affine_matrices

NUM_OPERATIONS = 14
WAYS = {"reference", "kernels", "batched", *(["dali"] if DALI_IS_EXPECTED else [])}
NUM_IMAGES = 24


def like_photographs(num_images: int) -> Pixels:
    """Smooth noise, uint8 (N, 224, 224, 3), whose amplitude falls with frequency as that of photographs does."""
    rng = np.random.default_rng(0)
    frequencies = np.hypot(np.fft.fftfreq(SIZE_PX)[:, None], np.fft.rfftfreq(SIZE_PX)[None])
    amplitudes = 1 / np.maximum(frequencies, 1 / SIZE_PX)
    images = []
    for _ in range(num_images):
        common, *own = np.fft.irfft2(np.fft.rfft2(rng.normal(size=(4, SIZE_PX, SIZE_PX))) * amplitudes)
        planes = common + 0.4 * np.stack(own)  # mostly grey, as most photographs
        brightness, contrast = rng.uniform(70, 180), rng.uniform(20, 70)
        images.append(brightness + contrast * planes.transpose(1, 2, 0) / planes.std())
    return np.clip(np.stack(images), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def images() -> Pixels:
    if "REAL_JPEGS" in os.environ:
        return load_photographs(Path(os.environ["REAL_JPEGS"]), most=NUM_IMAGES)
    return like_photographs(NUM_IMAGES)


def test_every_way_is_within_the_limits_at_every_operation_that_it_offers(images: Pixels) -> None:
    ways = build_ways()
    differences = measure(images, ways=ways)
    assert set(ways) == WAYS <= set(publish.WAYS)
    assert {found.operation for found in differences} == EVERY_OPERATION == set(LIMITS)
    assert len(EVERY_OPERATION) == NUM_OPERATIONS
    assert len(differences) == sum(len(way.offers) for way in ways.values())
    assert len(differences) == 3 * NUM_OPERATIONS + (5 if DALI_IS_EXPECTED else 0)
    for found in differences:
        assert found.mean <= LIMITS[found.operation], found
        claimed = {"reference": 0.0, "kernels": 0.02, "batched": 0.01, "dali": 1.0}  # far below the limits
        assert found.worst_image <= claimed[found.way], found


def test_the_limits_are_two_for_colours_and_four_where_pixels_move() -> None:
    assert {operation for operation, limit in LIMITS.items() if limit == 4} == {Operation.AFFINE}
    assert set(LIMITS.values()) == {2, 4}


def test_the_table_as_it_is_published_has_all_operations_all_columns_and_no_figure_beyond_its_limit() -> None:
    rows = read_csv(RESULTS / "operations.csv")
    assert {row["executor"] for row in rows} == {"reference", "kernels", "batched", "dali"}
    assert len(rows) == 3 * NUM_OPERATIONS + 5
    assert all(float(row["mean_of_255"]) <= float(row["limit_of_255"]) for row in rows)
    assert {(row["operation"], float(row["limit_of_255"])) for row in rows} == {
        (operation.name, limit) for operation, limit in LIMITS.items()
    }
    assert all(row["parameters"] == describe_range(Operation[row["operation"]]) for row in rows)
    page = (RESULTS.parents[1] / "docs" / "operations.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("| ")][2:]
    assert len(lines) == NUM_OPERATIONS
    assert {line.count(" | ") for line in lines} == {2 + len(publish.WAYS)}


def test_a_way_that_is_wrong_or_lacks_an_operation_is_told(images: Pixels) -> None:
    def in_place(given: Pixels, wanted: Operations) -> Pixels:
        given[:] = 255 - given
        given[0] ^= 4  # every value of the first image is wrong by 4
        return given

    before = images[:10].copy()
    way = Way(in_place, offers=frozenset({Operation.INVERT}))
    (found,) = measure(before, ways={"wrong": way})
    assert found == (Operation.INVERT, "wrong", pytest.approx(0.4), pytest.approx(4.0))
    assert np.array_equal(before, images[:10])


def test_parameters_are_drawn_over_the_whole_of_their_ranges() -> None:
    assert {operation: len(ranges) for operation, ranges in RANGES.items()} == {
        operation: len(names) for operation, names in PARAMETER_NAMES.items()
    }
    for operation, ranges in RANGES.items():
        values_NP = draw_operations(operation, num_rows=3000).values_NKP[:, 0]
        for place, (low, high) in enumerate(ranges):
            values_N = values_NP[:, place]
            assert low <= values_N.min() < low + 0.02 * (high - low)
            assert high - 0.02 * (high - low) < values_N.max() <= high
        assert not values_NP[:, len(ranges) :].any()
    whole = draw_operations(Operation.POSTERIZE, num_rows=100).values_NKP[:, 0, 0]
    assert set(whole) == set(range(2, 9))


def test_a_sixth_of_affines_each_turn_move_scale_shear_and_do_it_all() -> None:
    values_NP = draw_operations(Operation.AFFINE, num_rows=60).values_NKP[:, 0]
    changed_NP = values_NP != [0, 0, 0, 1, 0, 0]
    kinds = Counter(tuple(np.flatnonzero(changed_P).tolist()) for changed_P in changed_NP)
    assert kinds == dict.fromkeys([(0,), (1, 2), (3,), (4,), (5,), (0, 1, 2, 3, 4, 5)], 10)
    assert np.isfinite(affine_matrices(values_NP, size_px=SIZE_PX)).all()


def test_photographs_become_squares_and_rows_say_what_they_were_measured_on(tmp_path: Path) -> None:
    for number, size in enumerate([(300, 240), (230, 500), (224, 224)]):
        Image.new("RGB", size, (10 * number, 0, 0)).save(tmp_path / f"{number}.{('jpg', 'JPEG', 'png')[number]}")
    photographs = load_photographs(tmp_path, most=9)
    assert photographs.shape == (2, SIZE_PX, SIZE_PX, 3)
    assert photographs[1].mean() > photographs[0].mean()
    with pytest.raises(ValueError, match=r"no file \*\.jpg"):
        load_photographs(tmp_path / "nowhere", most=9)
    way = Way(lambda images, operations: images, device="a GPU", offers=frozenset({Operation.INVERT}))
    write_csv(tmp_path / "operations.csv", measure(photographs, ways={"x": way}), ways={"x": way}, num_images=2)
    (row,) = read_csv(tmp_path / "operations.csv")
    assert tuple(row) == operations.FIELDS
    assert (row["operation"], row["executor"], row["device"], row["images"]) == ("INVERT", "x", "a GPU", "2")
    assert float(row["mean_of_255"]) > 200
    assert "torchvision " in row["versions"]
