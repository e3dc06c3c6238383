"""The threads executor's own ways: slots, threads, what each image costs, and runs that are left."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from pipelines.executors.threads import ThreadsExecutor
from pipelines.geometry import carry_out
from pipelines.jpeg_window import JpegWindowDecoder
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import ArraySource, Source
from pipelines.sources.scan import scan_folder

COUNT, SIZE = 48, 12
SHIFT_FLIP = Augmentation(crop="pad", pad_px=3, flip="random")


@dataclass(frozen=True, kw_only=True)
class WatchedSource(ArraySource):
    """Notes each image that is read, takes its time for it, and raises `failure` for one."""

    reads: list[int] = field(default_factory=list)
    threads: set[str] = field(default_factory=set)
    delay_s: float = 0.0
    failing: int = -1
    failure: Exception = field(default_factory=lambda: ValueError("burnt"))

    def read_image(self, sample_id: int, *, channels: int, **options: object) -> npt.NDArray[np.uint8]:
        time.sleep(self.delay_s)
        self.reads.append(sample_id)
        self.threads.add(threading.current_thread().name)
        if sample_id == self.failing:
            raise self.failure
        return super().read_image(sample_id, channels=channels, **options)


def make_source(**changes: object) -> WatchedSource:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
    return WatchedSource(class_names=("a",), labels_N=np.zeros(COUNT, dtype=np.int64), images_NHWC=images, **changes)


def build(source: Source, *, num_threads: int = 2, num_prefetched: int = 2) -> ThreadsExecutor:
    return ThreadsExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        num_threads=num_threads,
        num_prefetched=num_prefetched,
        pin_memory=False,
    )


def plans_of(
    source: Source,
    *,
    batch_size: int = 12,
    num_views: int = 1,
    size_px: int = SIZE,
    num_samples: int = COUNT,
    augmentation: Augmentation = SHIFT_FLIP,
) -> list[Plan]:
    return [
        plan_training(
            ids,
            copies_N=np.zeros_like(ids),
            sizes_N2=source.sizes_N2[ids],
            fit=Fit("crop", 1.0),
            augmentation=augmentation,
            seed=0,
            epoch=0,
            size_px=size_px,
            num_views=num_views,
        )
        for ids in np.split(np.arange(num_samples), range(batch_size, num_samples, batch_size))
    ]


def wanted(source: WatchedSource, plan: Plan) -> torch.Tensor:
    images = source.images_NHWC[plan.ids_N]
    return torch.stack(
        [carry_out(image, plan=plan, row=row, interpolation="bilinear") for row, image in enumerate(images)]
    )


@pytest.mark.parametrize("num_prefetched", [1, 2, 5])
def test_slots_are_used_again_in_turn_from_run_to_run(num_prefetched: int) -> None:
    source = make_source()
    executor = build(source, num_prefetched=num_prefetched)
    addresses = [
        carried.images_NHWC.data_ptr() for _ in range(4) for carried in executor.run(plans_of(source, batch_size=4))
    ]
    assert len(addresses) == 48
    assert len(set(addresses)) == num_prefetched + 1


def test_what_is_handed_out_stays_until_the_next_is_asked_for() -> None:
    source = make_source()
    executor = build(source, num_threads=4, num_prefetched=3)
    for plan, carried in zip(plans_of(source, batch_size=4), executor.run(plans_of(source, batch_size=4)), strict=True):
        first = carried.images_NHWC.clone()
        time.sleep(0.003)  # the threads go on with other batches meanwhile
        assert torch.equal(carried.images_NHWC, first)
        assert torch.equal(first, wanted(source, plan))


def test_a_larger_batch_gets_a_larger_slot_and_a_smaller_one_a_part_of_it() -> None:
    source = make_source()
    executor = build(source)
    for size_px in (SIZE, SIZE // 2, 2 * SIZE, SIZE):
        plans = plans_of(source, batch_size=20, size_px=size_px)
        shapes = [tuple(carried.images_NHWC.shape) for carried in executor.run(plans)]
        assert shapes == [(count, size_px, size_px, 3) for count in (20, 20, 8)]


def test_plans_are_taken_as_far_ahead_as_asked_and_no_further() -> None:
    source = make_source()
    taken = []

    def plans() -> Iterator[Plan]:
        for plan in plans_of(source, batch_size=4):
            taken.append(plan)
            yield plan

    running = build(source, num_prefetched=3).run(plans())
    for number in range(1, 13):
        next(running)
        assert len(taken) == min(number + 3, 12)


def test_what_will_be_read_is_announced_some_batches_before_and_plans_keep_their_order() -> None:
    source = make_source()
    announced: list[int] = []
    executor = ThreadsExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        num_threads=1,
        num_prefetched=1,
        pin_memory=False,
        expect=lambda ids_N: announced.extend(ids_N.tolist()),
    )
    plans = plans_of(source, batch_size=2, num_views=2)
    assert len(plans) > 12
    running = executor.run(iter(plans))
    first = next(running).images_NHWC.clone()
    ids = [int(sample_id) for plan in plans for sample_id in plan.ids_N[:2]]
    assert announced[:8] == ids[:8], "each image once, in turn"
    batches = [first, *(carried.images_NHWC.clone() for carried in running)]
    assert announced == ids
    wanted = [carried.images_NHWC.clone() for carried in build(source).run(plans)]
    assert all(torch.equal(one, other) for one, other in zip(batches, wanted, strict=True))


def test_building_it_leaves_the_number_of_torch_threads_as_it_was() -> None:
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            executor = build(make_source(), num_threads=4)
            assert torch.get_num_threads() == count
            from_new_thread: list[int] = []
            thread = threading.Thread(target=lambda seen=from_new_thread: seen.append(torch.get_num_threads()))
            thread.start()
            thread.join()
            assert from_new_thread == [count], "threads of others, such as autograd's, keep theirs too"
            del executor
    finally:
        torch.set_num_threads(before)


def test_its_own_threads_run_torch_on_one_thread_and_all_of_them_work() -> None:
    source = make_source()
    executor = build(source, num_threads=4)
    assert [future.result() for future in [executor._pool.submit(torch.get_num_threads) for _ in range(16)]] == [1] * 16
    list(executor.run(plans_of(source)))
    assert all(name.startswith("decode") for name in source.threads)


@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_all_views_of_an_image_cost_one_reading(num_views: int) -> None:
    source = make_source()
    for plan, carried in zip(
        plans_of(source, num_views=num_views), build(source).run(plans_of(source, num_views=num_views)), strict=True
    ):
        assert torch.equal(carried.images_NHWC, wanted(source, plan))
    assert sorted(source.reads) == list(range(COUNT))


@pytest.mark.parametrize("num_taken", [0, 1, 2, 4])
def test_a_run_that_is_left_gives_its_slots_back_and_the_next_is_right(num_taken: int) -> None:
    source = make_source()
    executor = build(source)
    for _ in range(3):
        running = executor.run(plans_of(source))
        for _ in range(num_taken):
            next(running)
        running.close()  # type: ignore[attr-defined]
    assert len(executor._free) == 3 * (num_taken > 0)
    assert len({slot.data_ptr() for slot in executor._free}) == len(executor._free), "no slot is free twice"
    for plan, carried in zip(plans_of(source), executor.run(plans_of(source)), strict=True):
        assert torch.equal(carried.images_NHWC, wanted(source, plan))
    assert len(executor._free) == 3


def test_a_run_is_left_only_when_no_thread_writes_into_its_slots_any_more() -> None:
    source = make_source(delay_s=0.005)
    running = build(source, num_threads=1).run(plans_of(source))
    next(running)
    running.close()  # type: ignore[attr-defined]
    done = len(source.reads)
    time.sleep(0.05)
    assert len(source.reads) == done
    assert done <= 12 + 2 * 8, "of what was asked for ahead, no chunk was begun any more"


def test_an_error_that_is_no_bad_image_reaches_the_caller_and_frees_the_slots() -> None:
    source = make_source(failing=17, failure=MemoryError("none left"))
    executor = build(source)
    running = executor.run(plans_of(source))
    next(running)
    with pytest.raises(MemoryError, match="none left"):
        next(running)
    assert len(executor._free) == 3


@pytest.mark.parametrize("num_views", [1, 2])
def test_bad_rows_are_told_with_the_reason_in_every_view_and_the_others_are_right(num_views: int) -> None:
    source = make_source(failing=17)
    plans = plans_of(source, num_views=num_views)
    found = []
    for plan, carried in zip(plans, build(source).run(plans), strict=True):
        found.append(dict(carried.bad))
        good = [row for row in range(len(plan.ids_N)) if row not in carried.bad]
        assert torch.equal(carried.images_NHWC[good], wanted(source, plan)[good])
    assert found == [{}, {5 + 12 * view: "burnt" for view in range(num_views)}, {}, {}]


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_a_file_that_has_changed_its_size_since_it_was_indexed_is_bad(
    write_folder: Callable[..., Path], suffix: str
) -> None:
    root = write_folder({"train": {"a": 6, "b": 6}}, sizes=[(SIZE, SIZE)])
    for path in sorted(root.rglob("*.png")):
        with Image.open(path) as image:
            image.save(path.with_suffix(suffix))
        if suffix != ".png":
            path.unlink()
    source = scan_folder(str(root), show_progress=False)["train"]
    Image.new("RGB", (SIZE + 8, SIZE)).save(source.describe(7))
    (carried,) = build(source).run(plans_of(source, num_samples=12))
    wanted = (
        f"it is {SIZE} x {SIZE + 8} pixels (height x width), but was {SIZE} x {SIZE} when it was indexed; "
        "use --data.rescan true"
    )
    assert carried.bad == {7: wanted}


@pytest.mark.parametrize("num_views", [1, 3])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_windows_decoded_alone_make_the_same_batches_as_whole_images(
    tmp_path: Path, num_views: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = rng.integers(0, 256, (60 + number, 90 - number, 3), dtype=np.uint8)
        Image.fromarray(noise).convert(mode).save(path)
    source = scan_folder(str(tmp_path), show_progress=False)["train"]
    plans = plans_of(
        source,
        num_views=num_views,
        size_px=32,
        num_samples=24,
        augmentation=Augmentation(crop="rrc", rrc_scale=(0.05, 0.3), flip="random"),
    )
    decoded: list[bool] = []
    decode = JpegWindowDecoder.decode

    def watch(self: JpegWindowDecoder, *arguments: object, **options: object) -> object:
        pixels = decode(self, *arguments, **options)
        decoded.append(pixels is not None)
        return pixels

    monkeypatch.setattr(JpegWindowDecoder, "decode", watch)
    executor = build(source)
    whole, again = ([carried.images_NHWC.clone() for carried in executor.run(plans)] for _ in range(2))
    for first, second in zip(whole, again, strict=True):
        assert torch.equal(first, second)
    if DALI_IS_EXPECTED:
        assert decoded == [True] * 24
