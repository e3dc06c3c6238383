"""What DALI's graph does to pixels is what torchvision does, whatever row and slot it stands in."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from pipelines.operations import reference
from pipelines.operations.vocabulary import NATIVE_OPERATIONS, Operation, Operations
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import Source
from pipelines.sources.scan import scan_folder

pytestmark = pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of DALI for this system")
if DALI_IS_EXPECTED:
    from pipelines.executors import dali, dali_graph
    from pipelines.executors.dali import DaliExecutor

COUNT = 12
SIZE_PX = 96
# How far the mean over photographs may be from torchvision, of 255; the project asks for 2, and 4 for AFFINE.
LIMITS = {
    Operation.AFFINE: 0.05,
    Operation.BRIGHTNESS: 0.01,
    Operation.CONTRAST: 0.1,  # the centre is not torchvision's to the last digit
    Operation.SATURATION: 0.5,  # torchvision cuts its grey off before it blends
    Operation.GAUSSIAN_BLUR: 0.01,
}


def draw_photograph(*, seed: int) -> Image.Image:
    """Noise with the spectrum of photographs (amplitude 1/f), its channels alike; a real one where there are such."""
    if "REAL_JPEGS" in os.environ:
        with Image.open(sorted(Path(os.environ["REAL_JPEGS"]).glob("*.JPEG"))[seed]) as image:
            return image.convert("RGB").resize((SIZE_PX, SIZE_PX), Image.Resampling.BILINEAR)
    rng = np.random.default_rng(seed)
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(SIZE_PX), np.fft.fftfreq(SIZE_PX)))
    frequency[0, 0] = np.inf  # no mean
    planes = np.fft.ifft2(np.fft.fft2(rng.normal(size=(4, SIZE_PX, SIZE_PX))) / frequency).real
    planes /= planes.std(axis=(1, 2), keepdims=True)
    pixels = 120 + 45 * planes[3] + 25 * planes[:3]
    return Image.fromarray(pixels.transpose(1, 2, 0).clip(0, 255).astype(np.uint8))


@pytest.fixture
def source(tmp_path: Path) -> Source:
    return scan_folder(str(write_photographs(tmp_path, suffix=".png")), show_progress=False)["train"]


def write_photographs(root: Path, *, suffix: str) -> Path:
    for seed in range(COUNT):
        path = root / "train" / "ab"[seed % 2] / f"{seed:03}{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_photograph(seed=seed).save(path, quality=95)
    return root


def draw_values(operation: Operation, count: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """float64 (count, 6)."""
    values = np.zeros((count, 6))
    match operation:
        case Operation.AFFINE:
            low, high = [-90, -20, -20, 0.7, -25, -15], [90, 20, 20, 1.4, 25, 15]
            values[:] = rng.uniform(low, high, (count, 6))
        case Operation.GAUSSIAN_BLUR:
            values[:, 0] = rng.uniform(0.3, 3, count)
        case Operation.IDENTITY:
            pass
        case _:
            values[:, 0] = rng.uniform(0.0, 2.0, count)
    return values


def draw_operations(codes_NK: npt.NDArray[np.int64]) -> Operations:
    rng = np.random.default_rng(0)
    values = [draw_values(Operation(code), 1, rng)[0] for code in codes_NK.reshape(-1)]
    return Operations(codes_NK.astype(np.int8), np.array(values).reshape(*codes_NK.shape, 6))


def draw_plan(
    source: Source, ids: list[int], operations: Operations | None, *, num_views: int = 1, size_px: int = SIZE_PX
) -> Plan:
    ids_N = np.array(ids)
    plan = plan_training(
        ids_N,
        copies_N=np.zeros_like(ids_N),
        sizes_N2=source.sizes_N2[ids_N],
        fit=Fit("crop", 1.0),
        augmentation=Augmentation(flip="random"),
        seed=0,
        epoch=0,
        size_px=size_px,
        num_views=num_views,
    )
    return plan._replace(operations=operations)


def build_executor(
    source: Source,
    *,
    operations: frozenset[Operation] = NATIVE_OPERATIONS,
    num_slots: int = 1,
    channels: int = 3,
) -> "DaliExecutor":
    return DaliExecutor(
        source,
        channels=channels,
        interpolation="bilinear",
        device=torch.device("cpu"),
        num_threads=2,
        num_prefetched=1,
        operations=operations,
        num_slots=num_slots,
    )


def carry_out(executor: "DaliExecutor", plans: list[Plan]) -> list[npt.NDArray[np.uint8]]:
    return [carried.images_NHWC.numpy().copy() for carried in executor.run(iter(plans))]


def by_torchvision(images_NHWC: npt.NDArray[np.uint8], plan: Plan) -> npt.NDArray[np.uint8]:
    wanted = images_NHWC.copy()
    for row in range(len(wanted)):
        reference.operate(wanted[row], plan=plan, row=row)
    return wanted


def mean_difference(one: npt.NDArray[np.uint8], other: npt.NDArray[np.uint8]) -> float:
    return float(np.abs(one.astype(int) - other).mean())


def test_the_operations_that_are_said_to_be_native_are_those_of_the_graph() -> None:
    assert set(dali_graph._NATIVE) == NATIVE_OPERATIONS == set(LIMITS)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("operation", sorted(NATIVE_OPERATIONS))
def test_an_operation_of_the_graph_is_that_of_torchvision(source: Source, operation: Operation, channels: int) -> None:
    plan = draw_plan(source, [*range(COUNT)], draw_operations(np.full((COUNT, 1), operation)))
    (plain,) = carry_out(build_executor(source, operations=frozenset(), num_slots=0, channels=channels), [plan])
    (found,) = carry_out(build_executor(source, operations=frozenset({operation}), channels=channels), [plan])
    if operation == Operation.SATURATION and channels == 1:
        assert np.array_equal(found, plain)
    else:
        assert mean_difference(found, plain) > 5 * LIMITS[operation]  # something was done
    assert mean_difference(found, by_torchvision(plain, plan)) < LIMITS[operation]


def test_factors_at_the_ends_of_their_ranges_are_those_of_torchvision(source: Source) -> None:
    blends = [Operation.BRIGHTNESS, Operation.CONTRAST, Operation.SATURATION]
    codes_NK = np.repeat(blends, 4)[:, None]
    values_NKP = np.zeros((12, 1, 6))
    values_NKP[:, 0, 0] = np.tile([0.0, 1.0, 1.5, 8.0], 3)
    plan = draw_plan(source, [*range(12)], Operations(codes_NK.astype(np.int8), values_NKP))
    (plain,) = carry_out(build_executor(source, operations=frozenset(), num_slots=0), [plan])
    (found,) = carry_out(build_executor(source), [plan])
    wanted = by_torchvision(plain, plan)
    for row in range(12):
        assert mean_difference(found[row], wanted[row]) < 2
    assert np.array_equal(found[[1, 5, 9]], plain[[1, 5, 9]])  # a factor of 1 changes nothing


def test_rows_have_operations_of_their_own_in_the_order_of_the_slots(source: Source) -> None:
    pairs = [(one, two) for one in NATIVE_OPERATIONS for two in NATIVE_OPERATIONS if one != two]
    codes_NK = np.array(pairs)  # every pair in both orders
    plan = draw_plan(source, [number % COUNT for number in range(len(pairs))], draw_operations(codes_NK))
    (plain,) = carry_out(build_executor(source, operations=frozenset(), num_slots=0), [plan])
    (found,) = carry_out(build_executor(source, num_slots=2), [plan])
    swapped = plan._replace(operations=Operations(codes_NK[:, ::-1], plan.operations.values_NKP[:, ::-1]))
    wanted, wrong = by_torchvision(plain, plan), by_torchvision(plain, swapped)
    for row, pair in enumerate(pairs):
        assert mean_difference(found[row], wanted[row]) < 2 * sum(LIMITS[each] for each in pair), pair
    assert mean_difference(found, wrong) > 1  # the order does matter


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_without_an_operation_keep_their_pixels(source: Source, channels: int) -> None:
    codes_NK = np.zeros((COUNT, 3), dtype=int)
    codes_NK[::3] = [Operation.CONTRAST, Operation.IDENTITY, Operation.AFFINE]
    plan = draw_plan(source, [*range(COUNT)], draw_operations(codes_NK), size_px=50)
    (plain,) = carry_out(build_executor(source, operations=frozenset(), num_slots=0, channels=channels), [plan])
    executor = build_executor(source, num_slots=3, channels=channels)
    found, nothing = carry_out(executor, [plan, plan._replace(operations=None)])
    changed = (found != plain).any(axis=(1, 2, 3))
    assert np.flatnonzero(changed).tolist() == [0, 3, 6, 9]
    assert np.array_equal(nothing, plain)


def test_two_views_have_operations_of_their_own(source: Source) -> None:
    codes_NK = np.repeat([[Operation.BRIGHTNESS], [Operation.AFFINE]], 5, axis=0)
    plan = draw_plan(source, [0, 1, 2, 3, 4], draw_operations(codes_NK), num_views=2)
    (plain,) = carry_out(build_executor(source, operations=frozenset(), num_slots=0), [plan])
    (found,) = carry_out(build_executor(source), [plan])
    wanted = by_torchvision(plain, plan)
    assert mean_difference(found[:5], wanted[:5]) < LIMITS[Operation.BRIGHTNESS]
    assert mean_difference(found[5:], wanted[5:]) < LIMITS[Operation.AFFINE]


def test_blur_reaches_as_far_as_the_size_of_each_batch_says(source: Source) -> None:
    codes_NK = np.full((COUNT, 1), Operation.GAUSSIAN_BLUR)
    operations = draw_operations(codes_NK)
    operations.values_NKP[:, 0, 0] = 8.0  # wider than any window
    plans = [draw_plan(source, [*range(COUNT)], operations, size_px=size_px) for size_px in (96, 40, 2, 1)]
    plains = carry_out(build_executor(source, operations=frozenset(), num_slots=0), plans)
    for plan, plain, found in zip(plans, plains, carry_out(build_executor(source), plans), strict=True):
        assert mean_difference(found, by_torchvision(plain, plan)) < LIMITS[Operation.GAUSSIAN_BLUR]


def draw_mixed_plans(source: Source, num_plans: int) -> list[Plan]:
    """Batches of 5, 3, 5, 3, ... rows, each with two operations of any kind, or none."""
    rng = np.random.default_rng(1)
    kinds = [Operation.IDENTITY, *sorted(NATIVE_OPERATIONS)]
    return [
        draw_plan(source, rng.permutation(COUNT)[:count].tolist(), draw_operations(rng.choice(kinds, (count, 2))))
        for count in ([5, 3] * num_plans)[:num_plans]
    ]


def test_an_epoch_continued_in_its_middle_has_the_same_pixels_to_the_bit(source: Source) -> None:
    plans = draw_mixed_plans(source, 7)
    whole = carry_out(build_executor(source, num_slots=2), plans)
    rest = carry_out(build_executor(source, num_slots=2), plans[3:])
    assert len(rest) == 4
    assert all(np.array_equal(one, two) for one, two in zip(whole[3:], rest, strict=True))


def test_a_file_that_cannot_be_read_leaves_the_operations_of_the_others_alone(source: Source) -> None:
    plans = draw_mixed_plans(source, 4)
    bad_id = int(plans[1].ids_N[1])
    wanted = carry_out(build_executor(source, num_slots=2), plans)
    Path(source.describe(bad_id)).write_bytes(b"no image")
    executor, num_bad = build_executor(source, num_slots=2), 0
    for plan, carried, right in zip(plans, executor.run(iter(plans)), wanted, strict=True):
        good = plan.ids_N != bad_id
        assert sorted(carried.bad) == np.flatnonzero(~good).tolist()
        assert np.array_equal(carried.images_NHWC.numpy()[good], right[good])
        num_bad += len(carried.bad)
    assert num_bad > 0


def spoil_for_dali(
    monkeypatch: pytest.MonkeyPatch, source: Source, spoilt: dict[int, Callable[[bytes], bytes]]
) -> list[dict[str, Any]]:
    """DALI alone gets other bytes of these images: read_image opens files. Gives what pipelines are built with."""
    read_jpeg, build_pipeline, built = type(source).read_jpeg, dali.build_pipeline, []

    def read(source: Source, sample_id: int, **arguments: Any) -> bytes | memoryview | None:
        jpeg = read_jpeg(source, sample_id, **arguments)
        return spoilt[sample_id](bytes(jpeg)) if sample_id in spoilt and jpeg is not None else jpeg

    def build(*arguments: Any, **named: Any) -> Any:
        built.append(named)
        return build_pipeline(*arguments, **named)

    monkeypatch.setattr(type(source), "read_jpeg", read)
    monkeypatch.setattr(dali, "build_pipeline", build)
    return built


def half(jpeg: bytes) -> bytes:
    return jpeg[: len(jpeg) // 2]


def headless(jpeg: bytes) -> bytes:
    return b"\xff\xd8 no header"


@pytest.fixture
def jpegs(tmp_path: Path) -> Source:
    return scan_folder(str(write_photographs(tmp_path, suffix=".jpg")), show_progress=False)["train"]


@pytest.mark.parametrize(("spoil", "said"), [(half, "an image, such as"), (headless, "one of 3 images, such as")])
def test_an_image_that_dali_fails_on_is_decoded_here_and_the_others_stay_as_they_are_to_the_bit(
    jpegs: Source, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes], said: str
) -> None:
    plans = [plan._replace(ids_N=plan.ids_N % (COUNT - 1)) for plan in draw_mixed_plans(jpegs, 5)]
    failing_id = COUNT - 1
    plans[1].ids_N[1] = failing_id
    wanted = carry_out(build_executor(jpegs, num_slots=2), plans)
    built = spoil_for_dali(monkeypatch, jpegs, {failing_id: spoil})
    executor = build_executor(jpegs, num_slots=2)
    with pytest.warns(UserWarning, match=f"DALI failed on {said} .*; what it fails on is decoded on the CPU"):
        found = carry_out(executor, plans)
    assert 2 <= len(built) <= 4, "a failure may be met by the batch before"
    for number, (one, two) in enumerate(zip(found, wanted, strict=True)):
        others = [row for row in range(len(one)) if (number, row) != (1, 1)]
        assert np.array_equal(one[others], two[others]), number
        assert mean_difference(one, two) < 1
    num_built = len(built)
    again = carry_out(executor, plans)
    assert len(built) == num_built, "it is known by now, and nothing more is said"
    assert all(np.array_equal(*pair) for pair in zip(again, found, strict=True))


@pytest.mark.parametrize("spoil", [half, headless])
def test_batch_after_batch_that_dali_fails_on_is_made_all_the_same(
    jpegs: Source, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[bytes], bytes]
) -> None:
    plans = draw_mixed_plans(jpegs, 7)
    wanted = carry_out(build_executor(jpegs, num_slots=2), plans)
    spoil_for_dali(monkeypatch, jpegs, dict.fromkeys(range(COUNT), spoil))
    with pytest.warns(UserWarning, match="DALI failed on"):
        found = carry_out(build_executor(jpegs, num_slots=2), plans)
    assert all(mean_difference(*pair) < 1 for pair in zip(found, wanted, strict=True))


class Failing:
    """A pipeline of DALI that fails from its third batch on, with these words: the first two are its priming."""

    def __init__(self, pipeline: Any, words: str, asked: list[int]) -> None:
        self._pipeline, self._words, self._asked, self._num_left = pipeline, words, asked, dali._DEPTH

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipeline, name)

    def share_outputs(self) -> Any:
        if self._num_left == 0:
            self._asked.append(1)
            raise RuntimeError(self._words)
        self._num_left -= 1
        return self._pipeline.share_outputs()


def fail_always(monkeypatch: pytest.MonkeyPatch, words: str) -> list[int]:
    """Every pipeline fails with these words; gives a list that grows by 1 for each time."""
    build_pipeline, asked = dali.build_pipeline, []
    monkeypatch.setattr(dali, "build_pipeline", lambda *a, **named: Failing(build_pipeline(*a, **named), words, asked))
    return asked


@pytest.mark.parametrize("words", ["CUDA allocation failed", "Failed to decode sample #1 : "])
def test_a_failure_that_is_no_images_fault_is_raised_as_dali_tells_it(
    source: Source, monkeypatch: pytest.MonkeyPatch, words: str
) -> None:
    """Of out of memory, too, a GPU's decoder says that it failed to decode a sample."""
    asked = fail_always(monkeypatch, words)
    plans = [draw_plan(source, [number, number + 1], None) for number in range(9)]
    with pytest.warns(UserWarning, match="DALI failed on"), pytest.raises(RuntimeError, match=re.escape(words)):
        carry_out(build_executor(source), plans)
    assert len(asked) <= 2 * dali._DEPTH + 1, "the last is its being given up"


def test_what_the_graph_was_not_made_for_is_not_passed_over_in_silence(source: Source) -> None:
    plan = draw_plan(source, [0, 1], draw_operations(np.full((2, 1), Operation.AFFINE)))
    with pytest.raises(AssertionError, match="AFFINE"):
        carry_out(build_executor(source, operations=frozenset({Operation.BRIGHTNESS})), [plan])
    shifted = plan._replace(shifts_N2=np.ones((2, 2), dtype=np.int64))
    with pytest.raises(AssertionError, match="after the shift"):
        carry_out(build_executor(source), [shifted])
    with pytest.raises(AssertionError, match="HUE"):
        build_executor(source, operations=frozenset({Operation.HUE}))
