"""The reference executor's worker processes: they persist between runs and stop with the executor."""

import gc
import multiprocessing
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.executors.reference import ReferenceExecutor
from pipelines.plan import Fit, Plan, plan_evaluation
from pipelines.source import Source
from pipelines.sources.scan import scan_folder


@pytest.fixture
def source(write_folder: Callable[..., Path]) -> Source:
    return scan_folder(str(write_folder({"train": {"a": 6, "b": 6}})), show_progress=False)["train"]


def build(source: Source, *, num_workers: int) -> ReferenceExecutor:
    return ReferenceExecutor(source, channels=3, interpolation="bilinear", num_workers=num_workers, pin_memory=False)


def plans_of(source: Source, *, batch_size: int = 2) -> list[Plan]:
    return [
        plan_evaluation(ids, sizes_N2=source.sizes_N2[ids], fit=Fit("crop", 1.0), size_px=16)
        for ids in np.split(np.arange(len(source.labels_N)), len(source.labels_N) // batch_size)
    ]


def workers() -> set[int]:
    """The processes that this one has started."""
    return {process.pid for process in multiprocessing.active_children() if process.pid}


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only reference counts free objects, so that a test sees what waits for the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def test_workers_persist_between_runs_and_without_workers_there_is_no_process(source: Source) -> None:
    before = workers()
    alone, helped = build(source, num_workers=0), build(source, num_workers=2)
    list(alone.run(plans_of(source)))
    assert workers() == before
    list(helped.run(plans_of(source)))
    first = workers() - before
    list(helped.run(plans_of(source)))
    assert len(first) == 2
    assert workers() - before == first


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("num_batches", [6, 1], ids=["after_a_whole_run", "after_a_run_stopped_early"])
def test_workers_stop_at_once_when_the_executor_is_let_go(source: Source, num_batches: int) -> None:
    before = workers()
    executor = build(source, num_workers=2)

    def plans_that_lead_back_to(executor: ReferenceExecutor) -> Iterator[Plan]:
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


def test_plans_are_drawn_ahead_but_batches_come_in_their_order(source: Source) -> None:
    drawn: list[int] = []

    def plans() -> Iterator[Plan]:
        for plan in plans_of(source):
            drawn.append(int(plan.ids_N[0]))
            yield plan

    running = build(source, num_workers=2).run(plans())
    first = next(running)
    assert len(drawn) > 1, "workers prefetch"
    batches = [first, *running]
    assert drawn == [0, 2, 4, 6, 8, 10]
    for plan, batch in zip(plans_of(source), batches, strict=True):
        stored = np.stack([source.read_image(int(sample_id), channels=3) for sample_id in plan.ids_N])
        assert torch.equal(batch.images_NHWC, torch.from_numpy(stored))
        assert batch.bad == {}


def test_an_image_that_a_worker_cannot_read_is_a_bad_row_and_the_executor_serves_on(source: Source) -> None:
    executor = build(source, num_workers=2)
    bad = Path(source.describe(7))
    content = bad.read_bytes()
    bad.write_bytes(b"nonsense")
    found = [dict(carried.bad) for carried in executor.run(plans_of(source))]
    assert found == [{}, {}, {}, {1: "not an image in any format that Pillow reads"}, {}, {}]
    bad.write_bytes(content)
    assert [carried.bad for carried in executor.run(plans_of(source))] == [{}] * 6
