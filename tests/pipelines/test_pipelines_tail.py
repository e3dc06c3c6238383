"""The tail, against its formulas in float64 and against loops over single samples."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from scipy import stats

from pipelines import counter, tail
from pipelines.effects import Effects, MixPlan
from pipelines.operations.kernels import operate_rows
from pipelines.operations.vocabulary import Operation, Operations
from pipelines.parallel import RowPool
from pipelines.tail import Tail, _shift_right, _standard_normal, add_noise, box_masks

CPU = torch.device("cpu")
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
PRECISIONS = [(torch.float32, 1e-6), (torch.float64, 1e-12)]

Images = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def build(*, dtype: torch.dtype = torch.float32, channels: int = 3, num_threads: int = 1) -> Tail:
    return Tail(mean=MEAN[:channels], std=STD[:channels], device=CPU, dtype=dtype, pool=RowPool(num_threads))


def random_images(count: int, *, size: int = 9, channels: int = 3, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.integers(0, 256, (count, size, size, channels), dtype=np.uint8))


def normalised(images: npt.NDArray[Any]) -> Floats:
    """(N, H, W, C) on the scale 0 to 255 -> what the network sees, in float64."""
    channels = images.shape[3]
    made: Floats = (images / 255.0 - np.array(MEAN[:channels])) / np.array(STD[:channels])
    return made


def nhwc(view: torch.Tensor) -> Floats:
    return view.double().numpy().transpose(0, 2, 3, 1)


def random_keys(count: int, *, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.random.default_rng(seed).integers(-(2**63), 2**63 - 1, count, dtype=np.int64)


# --- normalising


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_every_byte_becomes_value_over_255_minus_mean_over_std(
    dtype: torch.dtype, tolerance: float, channels: int
) -> None:
    images = np.arange(256, dtype=np.uint8).repeat(3 * 2).reshape(2, 32, 8, 3)[..., :channels].copy()
    (made,) = build(dtype=dtype, channels=channels)(torch.from_numpy(images), Effects())
    assert made.dtype == dtype
    assert made.shape == (2, channels, 32, 8)
    assert np.abs(nhwc(made) - normalised(images)).max() <= tolerance


def test_the_kernel_of_the_cpu_equals_the_lines_of_torch_that_other_devices_run() -> None:
    made_by, images = build(), random_images(6)
    (made,) = made_by(images, Effects())
    plain = made_by._normalise(images.to(torch.float32))
    # the kernel multiplies, rounds and adds; torch's addcmul may round once
    assert (made.permute(0, 2, 3, 1) - plain).abs().max() <= 1e-6


@pytest.mark.parametrize("num_threads", [2, 5])
def test_the_number_of_threads_changes_no_bit(num_threads: int) -> None:
    images = random_images(40, size=96)  # enough to be shared out
    (wanted,), (made,) = (build(num_threads=count)(images, Effects()) for count in (1, num_threads))
    assert torch.equal(made, wanted)


def test_images_that_are_not_contiguous_give_the_same() -> None:
    images = random_images(4, size=12)
    window = images[:, 2:10, 1:9]
    assert not window.is_contiguous()
    assert torch.equal(build()(window, Effects())[0], build()(window.contiguous(), Effects())[0])


FULL_MIX = MixPlan(
    kinds_B=np.array([0, 0, 1, 1, 2, 2], dtype=np.int8),
    weights_B=np.array([1, 1, 0.3, 0.3, 1 - 20 / 81, 1 - 20 / 81], dtype=np.float32),
    boxes_B4=np.array([[0, 0, 0, 0]] * 4 + [[3, 2, 4, 5]] * 2),
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "effects",
    [
        Effects(),
        Effects(erase_N4=np.array([[1, 2, 3, 4]] * 6)),
        Effects(noise_keys_N=random_keys(6), noise_std=0.1),
        Effects(mix=FULL_MIX),
    ],
    ids=["plain", "erase", "noise", "mix"],
)
def test_the_result_lies_channels_last_in_memory_of_its_own_whatever_is_done(
    effects: Effects, dtype: torch.dtype
) -> None:
    images = random_images(6)
    before = images.clone()
    (made,) = build(dtype=dtype)(images, effects)
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert not made.is_contiguous()
    assert made.stride() == (9 * 9 * 3, 1, 9 * 3, 3)
    assert torch.equal(images, before), "the executor's memory stays as it was"


def test_a_batch_gives_each_image_what_it_would_get_alone() -> None:
    images = random_images(5, size=7)
    alone = torch.cat([build()(images[index : index + 1], Effects())[0] for index in range(5)])
    assert torch.equal(build()(images, Effects())[0], alone)


def test_views_are_the_parts_of_the_batch_one_after_the_other() -> None:
    images = random_images(6)
    views = build()(images, Effects(), num_views=3)
    assert len(views) == 3
    assert torch.equal(torch.cat(views), build()(images, Effects())[0])
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in views)


# --- erase


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_an_erased_box_is_the_mean_and_the_rest_is_as_without(dtype: torch.dtype, tolerance: float) -> None:
    boxes = np.array([[0, 0, 0, 0], [0, 0, 9, 9], [2, 3, 4, 5], [8, 8, 1, 1], [5, 0, 2, 0], [4, 0, 1, 9]])
    images = random_images(6)
    (made,) = build(dtype=dtype)(images, Effects(erase_N4=boxes))
    wanted = normalised(images.numpy())
    for row, (top, left, height, width) in enumerate(boxes.tolist()):
        wanted[row, top : top + height, left : left + width] = 0.0
        assert (nhwc(made)[row, top : top + height, left : left + width] == 0).all()
    assert np.abs(nhwc(made) - wanted).max() <= tolerance


def test_a_mask_is_true_inside_its_box_alone() -> None:
    boxes = torch.tensor([[1, 2, 3, 1], [0, 0, 5, 5], [2, 2, 0, 3], [4, 4, 1, 1]])
    masks = box_masks(boxes, size_px=5)
    for mask, (top, left, height, width) in zip(masks, boxes.tolist(), strict=True):
        wanted = torch.zeros(5, 5, dtype=torch.bool)
        wanted[top : top + height, left : left + width] = True
        assert torch.equal(mask, wanted)


# --- noise


def normal_by_hand(keys_N: npt.NDArray[np.int64], *, num_values: int) -> Floats:
    """Box and Muller's transform in float64 of SplitMix64 in numpy: outputs 1, 2, ... of the state `key`."""
    num_pairs = -(-num_values // 2)
    golden = np.uint64(0x9E3779B97F4A7C15)
    with np.errstate(over="ignore"):
        states = keys_N.view(np.uint64)[:, None] + np.arange(num_pairs, dtype=np.uint64) * golden
    bits = counter._mix(states)  # adds golden once more
    radius = np.sqrt(-2 * np.log(((bits >> np.uint64(40)).astype(np.float64) + 1) * 2.0**-24))
    angle = 2 * np.pi * (bits & np.uint64(0xFFFFFF)).astype(np.float64) * 2.0**-24
    made: Floats = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)], axis=1)[:, :num_values]
    return made


@pytest.mark.parametrize("count", [27, 30, 31, 40])
def test_a_shift_moves_zeros_in_whatever_the_sign(count: int) -> None:
    keys = np.concatenate([random_keys(1000), np.array([0, 1, -1, 2**63 - 1, -(2**63)])])
    made = _shift_right(torch.from_numpy(keys), count).numpy().view(np.uint64)
    assert np.array_equal(made, keys.view(np.uint64) >> np.uint64(count))


def test_the_constants_are_those_of_the_counter_as_signed_numbers() -> None:
    for signed, unsigned in (
        (tail._GOLDEN, counter._GOLDEN),
        (tail._MULTIPLIER_1, counter._MULTIPLIER_1),
        (tail._MULTIPLIER_2, counter._MULTIPLIER_2),
    ):
        assert signed % 2**64 == int(unsigned)


@pytest.mark.parametrize("num_values", [1, 2, 7, 300])
def test_noise_is_box_mullers_of_the_bits_that_the_counter_makes(num_values: int) -> None:
    keys = np.concatenate([random_keys(50), np.array([0, -1, 2**63 - 1, -(2**63)])])
    made = _standard_normal(torch.from_numpy(keys), num_values=num_values)
    assert made.shape == (54, num_values)
    assert made.dtype == torch.float32
    # float32 and its functions; a wrong shift or product would make another number altogether
    assert np.abs(made.numpy() - normal_by_hand(keys, num_values=num_values)).max() <= 2e-5


def test_a_key_gives_the_same_noise_in_any_batch() -> None:
    images, keys = random_images(40), torch.from_numpy(random_keys(40))
    whole = add_noise(images, keys_N=keys, std=0.2)
    order = torch.from_numpy(np.random.default_rng(1).permutation(40))
    for rows in (torch.arange(40), order, order[:1], order[:17], torch.tensor([3, 3])):
        assert torch.equal(add_noise(images[rows], keys_N=keys[rows], std=0.2), whole[rows])


def test_noise_is_normal_with_the_asked_deviation_independent_of_its_neighbour() -> None:
    grey, std = torch.full((60, 40, 40, 3), 128, dtype=torch.uint8), 0.05
    noise = (add_noise(grey, keys_N=torch.from_numpy(random_keys(60)), std=std) - 128).double().numpy() / 255
    count = noise.size
    assert abs(noise.mean()) <= 5 * std / np.sqrt(count)
    assert abs(noise.std() - std) <= 5 * std / np.sqrt(2 * count)
    assert stats.kstest(noise.reshape(-1)[::7], stats.norm(0, std).cdf).pvalue > 1e-3
    for one, other in ((noise[:, :-1], noise[:, 1:]), (noise[..., 0], noise[..., 1]), (noise[:-1], noise[1:])):
        assert abs(np.corrcoef(one.reshape(-1), other.reshape(-1))[0, 1]) <= 5 / np.sqrt(one.size)


def test_noise_is_cut_off_at_0_and_255() -> None:
    images = torch.tensor([0, 255], dtype=torch.uint8).repeat(600).reshape(2, 10, 20, 3)
    noisy = add_noise(images, keys_N=torch.tensor([1, 2]), std=0.5)
    assert (noisy.min(), noisy.max()) == (0, 255)
    black, white = (noisy[images == value] for value in (0, 255))
    # half of the values are cut off; the other half is the noise's
    assert abs((black == 0).double().mean() - 0.5) <= 5 * 0.5 / np.sqrt(600)
    assert abs((white == 255).double().mean() - 0.5) <= 5 * 0.5 / np.sqrt(600)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_comes_before_normalising_and_erasing_after_it(dtype: torch.dtype) -> None:
    images, keys = random_images(20, size=8), random_keys(20)
    boxes = np.array([[1, 2, 3, 4]] * 20)
    (made,) = build(dtype=dtype)(images, Effects(erase_N4=boxes, noise_keys_N=keys, noise_std=0.1))
    noise = normal_by_hand(keys, num_values=8 * 8 * 3).reshape(20, 8, 8, 3)
    wanted = normalised(np.clip(images.numpy() + 25.5 * noise, 0, 255))
    wanted[:, 1:4, 2:6] = 0.0
    assert np.abs(nhwc(made) - wanted).max() <= 2e-5  # the noise itself is float32


# --- mixing


def mixed_by_hand(images: Floats, plan: MixPlan) -> Floats:
    """Sample by sample: mixup weighs, CutMix pastes."""
    made = images.copy()
    for row in range(len(images)):
        partner = images[row + 1 if row % 2 == 0 else row - 1]
        if plan.kinds_B[row] == 1:
            weight = float(plan.weights_B[row])
            made[row] = weight * images[row] + (1 - weight) * partner
        if plan.kinds_B[row] == 2:
            top, left, height, width = plan.boxes_B4[row].tolist()
            made[row, top : top + height, left : left + width] = partner[top : top + height, left : left + width]
    return made


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
def test_mixed_images_are_those_of_a_loop_over_the_samples(dtype: torch.dtype, tolerance: float) -> None:
    images = random_images(6)
    (made,) = build(dtype=dtype)(images, Effects(mix=FULL_MIX))
    assert np.abs(nhwc(made) - mixed_by_hand(normalised(images.numpy()), FULL_MIX)).max() <= tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rows_that_are_not_mixed_and_pixels_outside_a_box_are_bit_equal_to_no_mixing(dtype: torch.dtype) -> None:
    images = random_images(6)
    (plain,), (made,) = build(dtype=dtype)(images, Effects()), build(dtype=dtype)(images, Effects(mix=FULL_MIX))
    assert torch.equal(made[:2], plain[:2])
    inside = torch.zeros(9, 9, dtype=torch.bool)
    inside[3:7, 2:7] = True
    assert torch.equal(made[4:, :, ~inside], plain[4:, :, ~inside])
    assert torch.equal(made[4:, :, inside], plain[[5, 4]][:, :, inside])


def test_all_views_are_mixed_alike_each_with_the_same_view_of_the_partner() -> None:
    images = random_images(12)
    views = build(dtype=torch.float64)(images, Effects(mix=FULL_MIX), num_views=2)
    for number, view in enumerate(views):
        own = normalised(images.numpy()[6 * number : 6 * number + 6])
        assert np.abs(nhwc(view) - mixed_by_hand(own, FULL_MIX)).max() <= 1e-12


def test_images_are_mixed_after_they_are_erased() -> None:
    images, boxes = random_images(6), np.array([[0, 0, 9, 9], [0, 0, 0, 0]] * 3)
    (made,) = build(dtype=torch.float64)(images, Effects(erase_N4=boxes, mix=FULL_MIX))
    erased = normalised(images.numpy())
    erased[::2] = 0.0
    assert np.abs(nhwc(made) - mixed_by_hand(erased, FULL_MIX)).max() <= 1e-12


def test_a_whole_image_may_be_the_partners() -> None:
    images = random_images(2)
    plan = MixPlan(np.array([2, 2], dtype=np.int8), np.zeros(2, dtype=np.float32), np.array([[0, 0, 9, 9]] * 2))
    (plain,), (made,) = build()(images, Effects()), build()(images, Effects(mix=plan))
    assert torch.equal(made, plain[[1, 0]])


# --- operations and cutout


def mixed_operations(count: int) -> Operations:
    rng = np.random.default_rng(5)
    codes = rng.integers(0, len(Operation), (count, 2)).astype(np.int8)
    return Operations(codes, rng.uniform(0.2, 8, (count, 2, 6)))


@pytest.mark.parametrize("num_threads", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_operations_come_first_and_leave_the_images_given_as_they_were(dtype: torch.dtype, num_threads: int) -> None:
    images, operations = random_images(40, size=64), mixed_operations(40)
    before = images.clone()
    (made,) = build(dtype=dtype, num_threads=num_threads)(images, Effects(operations=operations))
    assert torch.equal(images, before)
    done = images.numpy().copy()
    operate_rows(done, operations)
    assert (done != before.numpy()).any()
    np.testing.assert_allclose(nhwc(made), normalised(done), atol=1e-6)


def test_another_device_gets_the_same_from_batched_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as that can be seen without one: the lines that it runs, on the CPU."""
    images, operations = random_images(30, size=24), mixed_operations(30)
    (by_kernels,) = build()(images, Effects(operations=operations))
    elsewhere = build()
    monkeypatch.setattr(elsewhere, "_device", torch.device("meta"))
    by_torch = elsewhere._normalise(elsewhere._operate(images, operations).float())
    difference = 255 * min(STD) * np.abs(nhwc(by_kernels) - by_torch.double().numpy())
    assert difference.mean() < 0.2


def test_cutout_is_the_mean_beside_an_erased_box() -> None:
    images = random_images(2)
    boxes = np.array([[0, 0, 3, 4], [5, 5, 4, 4]])
    (made,) = build()(images, Effects(cutout_N4=boxes, erase_N4=boxes[::-1].copy()))
    wanted = normalised(images.numpy())
    wanted[:, 0:3, 0:4] = wanted[:, 5:9, 5:9] = 0
    np.testing.assert_allclose(nhwc(made), wanted, atol=1e-6)
