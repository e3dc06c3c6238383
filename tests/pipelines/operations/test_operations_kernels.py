"""The kernels of the CPU against torchvision (reference.py): equal to the bit, or at most 1 of 255 in few pixels."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from pipelines.operations import kernels, reference
from pipelines.operations.vocabulary import Operation, Operations
from pipelines.plan import Plan

Pixels = npt.NDArray[np.uint8]
SIZES = (1, 2, 3, 8, 33, 64)

PARAMETERS: dict[Operation, list[tuple[float, ...]]] = {
    Operation.IDENTITY: [()],
    Operation.AFFINE: [
        (20.0, 3, -2, 1.1, 10, 5),
        (-135, 0, 0, 1, 0, 0),
        (0, 5, -7, 1, 0, 0),
        (0, 0, 0, 0.3, 0, 0),
        (0, 0, 0, 3, 0, 0),
        (0, -20.5, 0, 1, 44.7, 0),
        (0, 1000, 0, 1, 0, 0),
        (0, 0, 0, 1, 0, 0),
    ],
    Operation.BRIGHTNESS: [(0,), (0.01,), (1,), (1.37,), (100,)],
    Operation.CONTRAST: [(0,), (0.01,), (1,), (1.37,), (100,)],
    Operation.SATURATION: [(0,), (0.5,), (1,), (1.99,), (100,)],
    Operation.HUE: [(-0.5,), (-0.13,), (0,), (0.2,), (0.5,)],
    Operation.RGB_SHIFT: [(0, 0, 0), (40, -40, 255), (-255, 13, 1)],
    Operation.GRAYSCALE: [()],
    Operation.GAUSSIAN_BLUR: [(0.1,), (0.7,), (2,), (30,)],
    Operation.POSTERIZE: [(bits,) for bits in range(9)],
    Operation.SOLARIZE: [(0,), (100.5,), (128,), (255,)],
    Operation.EQUALIZE: [()],
    Operation.AUTOCONTRAST: [()],
    Operation.SHARPNESS: [(0,), (0.5,), (1,), (1.99,), (10,)],
    Operation.INVERT: [()],
}
ROUNDED = {
    Operation.AFFINE,
    Operation.CONTRAST,  # the mean grey, at a factor of 100
    Operation.HUE,
    Operation.GAUSSIAN_BLUR,
    Operation.GRAYSCALE,
}


def images(size: int, channels: int) -> list[Pixels]:
    """Noise, a smooth picture, one value, two values, and a dark picture with few values."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[:size, :size] / max(size - 1, 1)
    smooth = np.stack([120 + 110 * np.sin(3 * x + 5 * y + c) for c in range(channels)], axis=2)
    noise = rng.integers(0, 256, (size, size, channels))
    two = np.where(noise > 127, 200, 20)
    return [np.ascontiguousarray(each.astype(np.uint8)) for each in (noise, smooth, 0 * noise + 77, two, noise // 40)]


def plan_of(slots: list[tuple[Operation, tuple[float, ...]]], *, size: int) -> Plan:
    values = np.zeros((1, len(slots), 6))
    for slot, (_, parameters) in enumerate(slots):
        values[0, slot, : len(parameters)] = parameters
    codes = np.array([[operation for operation, _ in slots]], dtype=np.int8)
    nothing: Any = np.empty(0)
    return Plan(nothing, nothing, nothing, nothing, nothing, size_px=size, operations=Operations(codes, values))


def both(image: Pixels, plan: Plan) -> tuple[Pixels, Pixels]:
    ours, theirs = image.copy(), image.copy()
    kernels.operate(ours, plan=plan, row=0)
    reference.operate(theirs, plan=plan, row=0)
    return ours, theirs


def test_every_operation_is_tried() -> None:
    assert set(PARAMETERS) == set(Operation)
    assert len(PARAMETERS) == 15


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", list(Operation), ids=[operation.name for operation in Operation])
def test_a_kernel_does_what_torchvision_does(operation: Operation, channels: int) -> None:
    if channels == 1 and operation == Operation.RGB_SHIFT:
        pytest.skip("grey images have no RGB_SHIFT")
    num_differing = num_compared = 0
    for size in SIZES:
        for parameters in PARAMETERS[operation]:
            for image in images(size, channels):
                ours, theirs = both(image, plan_of([(operation, parameters)], size=size))
                difference = np.abs(ours.astype(int) - theirs)
                assert difference.max() <= (1 if operation in ROUNDED else 0), (size, parameters)
                num_differing += int((difference > 0).sum())
                num_compared += difference.size
    assert num_differing <= 0.002 * num_compared


def test_operations_follow_one_another() -> None:
    image = images(33, 3)[1]
    slots = [(Operation.SOLARIZE, (100.0,)), (Operation.EQUALIZE, ()), (Operation.CONTRAST, (0.5,))]
    ours, theirs = both(image, plan_of(slots, size=33))
    np.testing.assert_array_equal(ours, theirs)
    other, _ = both(image, plan_of(slots[::-1], size=33))
    assert (other != ours).any()


def test_a_batch_of_rows_gets_each_its_own() -> None:
    batch = np.stack(images(16, 3))
    codes = np.array([[1, 9], [0, 0], [14, 0], [11, 12], [7, 2]], dtype=np.int8)
    values = np.random.default_rng(0).uniform(1, 7, (5, 2, 6))
    operations = Operations(codes, values)
    done = batch.copy()
    kernels.operate_rows(done, operations)
    nothing: Any = np.empty(0)
    plan = Plan(nothing, nothing, nothing, nothing, nothing, size_px=16, operations=operations)
    for row, image in enumerate(batch):
        one = image.copy()
        kernels.operate(one, plan=plan, row=row)
        np.testing.assert_array_equal(done[row], one)
    assert (done[1] == batch[1]).all()


def test_many_threads_at_once_give_the_same_pixels() -> None:
    batch = np.concatenate([np.stack(images(64, 3))] * 8)
    rng = np.random.default_rng(1)
    codes = rng.integers(0, 15, (len(batch), 3)).astype(np.int8)
    operations = Operations(codes, rng.uniform(0.1, 8, (len(batch), 3, 6)))
    alone, together = batch.copy(), batch.copy()
    kernels.operate_rows(alone, operations)
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda row: kernels.operate_rows(together[row : row + 1], operations.rows([row])), range(len(batch))
            )
        )
    np.testing.assert_array_equal(alone, together)
