"""Operations on batches, against torchvision image by image, at outermost parameters."""

import numpy as np
import pytest
import torch
from operation_cases import PARAMETERS, Pixels, draw_images, make_operations, operations_of, plan_of

from pipelines.operations import batched
from pipelines.operations.batched import operate_batch
from pipelines.operations.reference import operate
from pipelines.operations.vocabulary import Operation, Operations

SIZES_PX = (1, 2, 3, 8, 33, 64)
NUM_ROWS = 30  # a multiple of the three kinds of images; over it, parameters and kinds meet in many ways
RESAMPLED = (Operation.AFFINE, Operation.HUE, Operation.GAUSSIAN_BLUR)  # the others give the same bytes
CASES = [
    (operation, channels)
    for operation in Operation
    for channels in (1, 3)
    if (operation, channels) != (Operation.RGB_SHIFT, 1)
]


def row_by_row(images_NHWC: Pixels, operations: Operations) -> Pixels:
    images_NHWC = images_NHWC.copy()
    plan = plan_of(operations, size_px=images_NHWC.shape[1])
    for row, image in enumerate(images_NHWC):
        operate(image, plan=plan, row=row)
    return images_NHWC


def assert_near(found: list[Pixels], wanted: list[Pixels], *, most_frac: float) -> None:
    """Arrays that differ by at most 1 of 255, in at most that part of all their values."""
    flat = [np.concatenate([array.ravel() for array in arrays]).astype(int) for arrays in (found, wanted)]
    differences = np.abs(flat[0] - flat[1])
    assert differences.max() <= 1
    assert np.count_nonzero(differences) <= most_frac * differences.size


def draw_mixed(num_rows: int, *, num_slots: int, channels: int) -> Operations:
    """Any operation with any of its parameters in any slot."""
    rng = np.random.default_rng(num_slots)
    sets = [
        (operation, *values)
        for operation in Operation
        for values in PARAMETERS[operation]
        if (operation, channels) != (Operation.RGB_SHIFT, 1)
    ]
    return make_operations([[sets[place] for place in rng.integers(0, len(sets), num_slots)] for _ in range(num_rows)])


def test_the_cases_see_every_operation_and_every_one_is_batched() -> None:
    assert {operation for operation, _ in CASES} == set(Operation) == set(PARAMETERS)
    assert len(CASES) == 2 * 15 - 1
    assert set(batched._CHANGES) == set(Operation) - {Operation.IDENTITY}


@pytest.mark.parametrize(("operation", "channels"), CASES)
def test_an_operation_gives_torchvisions_pixels_at_every_size(operation: Operation, channels: int) -> None:
    operations = operations_of(operation, num_rows=NUM_ROWS)
    found, wanted = [], []
    for size_px in SIZES_PX:
        images = draw_images(NUM_ROWS, size_px=size_px, channels=channels)
        result = operate_batch(torch.from_numpy(images), operations)
        assert (result.dtype, result.shape) == (torch.uint8, images.shape)
        found.append(result.numpy())
        wanted.append(row_by_row(images, operations))
    assert_near(found, wanted, most_frac=0.001 if operation in RESAMPLED else 0)


def test_at_the_size_of_a_photograph_the_mean_of_contrast_is_torchvisions() -> None:
    images = draw_images(6, size_px=224, channels=3)
    operations = operations_of(Operation.CONTRAST, num_rows=6)
    assert np.array_equal(operate_batch(torch.from_numpy(images), operations).numpy(), row_by_row(images, operations))


@pytest.mark.parametrize("channels", [1, 3])
def test_three_mixed_slots_are_done_one_after_the_other(channels: int) -> None:
    images = draw_images(90, size_px=17, channels=channels)
    operations = draw_mixed(90, num_slots=3, channels=channels)
    found = operate_batch(torch.from_numpy(images), operations).numpy()
    differences = np.abs(found.astype(int) - row_by_row(images, operations))
    # what differs by 1 may be blown up by the next slot (a threshold, a factor of 300), so most rows, not all
    assert np.count_nonzero(differences.max(axis=(1, 2, 3))) <= 3


def test_a_row_gets_the_same_bytes_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.from_numpy(draw_images(60, size_px=17, channels=3))
    operations = draw_mixed(60, num_slots=3, channels=3)
    whole = operate_batch(images, operations)
    for start, stop in [(0, 1), (1, 14), (14, 60)]:
        part = operate_batch(images[start:stop], operations.rows(slice(start, stop)))
        assert torch.equal(part, whole[start:stop])
    monkeypatch.setattr(batched, "_VALUES_AT_ONCE", 2 * 17 * 17 * 3)  # two rows at once
    assert torch.equal(operate_batch(images, operations), whole)


def test_the_images_given_stay_and_the_result_lies_elsewhere() -> None:
    images = draw_images(45, size_px=9, channels=3)
    given = torch.from_numpy(images.copy())
    result = operate_batch(given, draw_mixed(45, num_slots=2, channels=3))
    assert not torch.equal(result, given)
    assert np.array_equal(given.numpy(), images)
    untouched = operate_batch(given, operations_of(Operation.IDENTITY, num_rows=45))
    assert torch.equal(untouched, given)
    assert untouched.data_ptr() != given.data_ptr()


def test_images_may_lie_in_any_order_and_there_may_be_none() -> None:
    images = torch.from_numpy(draw_images(15, size_px=9, channels=3))
    operations = draw_mixed(15, num_slots=2, channels=3)
    turned = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert not turned.is_contiguous()
    result = operate_batch(turned, operations)
    assert result.is_contiguous()
    assert torch.equal(result, operate_batch(images, operations))
    assert operate_batch(images[:0], operations.rows(slice(0, 0))).shape == (0, 9, 9, 3)
    no_slots = Operations(operations.codes_NK[:, :0], operations.values_NKP[:, :0])
    assert torch.equal(operate_batch(images, no_slots), images)


def test_grey_images_are_refused_a_shift_of_colours() -> None:
    images = torch.from_numpy(draw_images(3, size_px=9, channels=1))
    with pytest.raises(AssertionError, match="grey"):
        operate_batch(images, operations_of(Operation.RGB_SHIFT, num_rows=3))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_the_gpu_gives_the_pixels_of_the_cpu_without_being_waited_for() -> None:
    for operation, channels in CASES:
        operations = operations_of(operation, num_rows=NUM_ROWS)
        found, wanted = [], []
        for size_px in SIZES_PX:
            images = torch.from_numpy(draw_images(NUM_ROWS, size_px=size_px, channels=channels))
            on_gpu = images.cuda()
            torch.cuda.set_sync_debug_mode("error")  # of whatever makes the host wait
            try:
                result = operate_batch(on_gpu, operations)
            finally:
                torch.cuda.set_sync_debug_mode("default")
            assert result.device == on_gpu.device
            found.append(result.cpu().numpy())
            wanted.append(operate_batch(images, operations).numpy())
        assert_near(found, wanted, most_frac=0.001)
