"""The processes executor: the pixels of threads to the bit, by workers that persist and stop with it."""

import gc
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from executor_builders import EXECUTORS, Setting
from PIL import Image

from pipelines.executors.processes import ProcessesExecutor
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import Source
from pipelines.sources.scan import scan_folder

NUM_BATCHES = 6
OWN_PROCESS = os.getpid()


@pytest.fixture
def source(tmp_path: Path) -> Source:
    rng = np.random.default_rng(0)
    for number in range(24):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (60 + number, 90 - number, 3), dtype=np.uint8)).save(path)
    return scan_folder(str(tmp_path), show_progress=False)["train"]


def build(source: Source, *, num_workers: int = 2, num_prefetched: int = 2) -> ProcessesExecutor:
    return ProcessesExecutor(
        source,
        channels=3,
        interpolation="bicubic",
        num_workers=num_workers,
        num_prefetched=num_prefetched,
        pin_memory=False,
    )


def plans_of(source: Source, *, num_views: int = 1) -> list[Plan]:
    return [
        plan_training(
            ids,
            copies_N=np.zeros_like(ids),
            sizes_N2=source.sizes_N2[ids],
            fit=Fit("crop", 1.0),
            augmentation=Augmentation(crop="rrc", flip="random"),
            seed=0,
            epoch=0,
            size_px=32,
            num_views=num_views,
        )
        for ids in np.split(np.arange(24), NUM_BATCHES)
    ]


def test_what_one_worker_has_found_whole_no_other_decodes_whole_again(source: Source) -> None:
    assert not source.whole_N.any()
    list(build(source).run(plans_of(source)))
    assert source.whole_N.all(), "this process and workers that it starts know it, too"


def workers() -> set[int]:
    """The processes that this one has started."""
    return {process.pid for process in multiprocessing.active_children() if process.pid}


def scramble(image_SSC: npt.NDArray[np.uint8], *, plan: Plan, row: int) -> None:
    image_SSC[...] = image_SSC ^ np.uint8(plan.ids_N[row])


@pytest.mark.parametrize("num_views", [1, 2])
@pytest.mark.parametrize("name", ["processes_0", "processes_2"])
def test_pixels_are_those_of_threads_to_the_bit(source: Source, name: str, num_views: int) -> None:
    setting = Setting(interpolation="bicubic", operate=scramble)
    plans = plans_of(source, num_views=num_views)
    wanted = [carried.images_NHWC.clone() for carried in EXECUTORS["threads_2"](source, setting).run(plans)]
    executor = EXECUTORS[name](source, setting)
    for _ in range(2):
        found = [carried.images_NHWC for carried in executor.run(plans)]
        assert len(found) == NUM_BATCHES
        assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    plain = next(iter(EXECUTORS[name](source, setting._replace(operate=None)).run(plans)))
    assert not torch.equal(plain.images_NHWC, wanted[0])


def only_elsewhere(image_SSC: npt.NDArray[np.uint8], *, plan: Plan, row: int) -> None:
    image_SSC[...] = os.getpid() != OWN_PROCESS


def test_the_work_is_done_by_the_workers(source: Source) -> None:
    for name, elsewhere in (("processes_2", True), ("processes_0", False)):
        executor = EXECUTORS[name](source, Setting(operate=only_elsewhere))
        assert {bool(carried.images_NHWC.all()) for carried in executor.run(plans_of(source))} == {elsewhere}


@pytest.mark.parametrize(("num_prefetched", "num_drawn"), [(1, 3), (2, 5)])
def test_each_worker_works_as_many_batches_ahead_as_asked(source: Source, num_prefetched: int, num_drawn: int) -> None:
    drawn = []

    def plans() -> Iterator[Plan]:
        for plan in plans_of(source):
            drawn.append(int(plan.ids_N[0]))
            yield plan

    running = build(source, num_prefetched=num_prefetched).run(plans())
    next(running)
    assert len(drawn) == num_drawn, "two workers, and one for the batch that was handed out"
    assert len(list(running)) == NUM_BATCHES - 1
    assert drawn == [0, 4, 8, 12, 16, 20]


def test_workers_persist_between_runs_and_without_workers_there_is_no_process(source: Source) -> None:
    before = workers()
    list(build(source, num_workers=0).run(plans_of(source)))
    assert workers() == before
    executor = build(source)
    list(executor.run(plans_of(source)))
    first = workers() - before
    list(executor.run(plans_of(source)))
    assert len(first) == 2
    assert workers() - before == first


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only reference counts free objects, so that a test sees what waits for the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("num_batches", [NUM_BATCHES, 1], ids=["after_a_whole_run", "after_a_run_stopped_early"])
def test_workers_stop_at_once_when_the_executor_is_let_go(source: Source, num_batches: int) -> None:
    before = workers()
    executor = build(source)

    def plans_that_lead_back_to(executor: ProcessesExecutor) -> Iterator[Plan]:
        yield from plans_of(source)
        assert executor  # as a loader's plans do

    running = executor.run(plans_that_lead_back_to(executor))
    for _ in range(num_batches):
        next(running)
    assert len(workers() - before) == 2
    running.close()  # type: ignore[attr-defined]
    start = time.perf_counter()
    del executor, running
    assert workers() == before, "workers are left to the garbage collector"
    assert time.perf_counter() - start < 5  # torch waits 5 s for a worker that was not told to stop


def test_a_file_cut_short_is_a_bad_row_and_the_executor_serves_on(source: Source) -> None:
    executor = build(source)
    bad = Path(source.describe(7))
    content = bad.read_bytes()
    bad.write_bytes(b"nonsense")
    found = [sorted(carried.bad) for carried in executor.run(plans_of(source))]
    assert found == [[], [3], [], [], [], []]
    bad.write_bytes(content)
    assert [carried.bad for carried in executor.run(plans_of(source))] == [{}] * NUM_BATCHES
