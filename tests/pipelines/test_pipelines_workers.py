"""Worker processes of executors: they persist between runs, work ahead, and stop with their owner."""

import gc
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event

import numpy as np
import pytest
import torch

from pipelines.execution import Carried
from pipelines.plan import Fit, Plan, plan_evaluation
from pipelines.workers import PlanWorkers, _heed_only_the_parent, _signals_held

NUM_PLANS = 6
OWN_PROCESS = os.getpid()


def plans() -> list[Plan]:
    return [
        plan_evaluation(ids, sizes_N2=np.full((2, 2), 16), fit=Fit("crop", 1.0), size_px=16)
        for ids in np.split(np.arange(2 * NUM_PLANS), NUM_PLANS)
    ]


def write_ids(plan: Plan) -> Carried:
    images = torch.empty(2, 16, 16, 1, dtype=torch.uint8)
    images[...] = torch.from_numpy(plan.ids_N)[:, None, None, None]
    return Carried(images, {0: "not read"} if plan.ids_N[0] == 4 else {})


def write_whether_elsewhere(plan: Plan) -> Carried:
    return Carried(torch.full((2, 16, 16, 1), os.getpid() != OWN_PROCESS), {})


def refuse(plan: Plan) -> Carried:
    raise ValueError(f"sample {plan.ids_N[0]} is not there")


def build(*, num_workers: int = 2, num_prefetched: int | None = None) -> PlanWorkers:
    return PlanWorkers(write_ids, num_workers=num_workers, num_prefetched=num_prefetched, pin_memory=False)


def processes() -> set[int]:
    """Those that this one has started."""
    return {process.pid for process in multiprocessing.active_children() if process.pid}


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Only reference counts free objects, so that a test sees what waits for the garbage collector."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_carried_out_comes_in_the_order_of_the_plans_in_every_run(num_workers: int) -> None:
    workers = build(num_workers=num_workers)
    for _ in range(2):
        found = list(workers.run(plans()))
        assert [carried.images_NHWC[:, 3, 5, 0].tolist() for carried in found] == [[n, n + 1] for n in range(0, 12, 2)]
        assert [dict(carried.bad) for carried in found] == [{}, {}, {0: "not read"}, {}, {}, {}]


def test_processes_persist_between_runs_and_without_workers_there_is_none() -> None:
    before = processes()
    alone, helped = build(num_workers=0), build(num_workers=2)
    list(alone.run(plans()))
    assert processes() == before
    list(helped.run(plans()))
    first = processes() - before
    list(helped.run(plans()))
    assert len(first) == 2
    assert processes() - before == first


def test_processes_that_are_not_to_persist_live_for_one_run() -> None:
    before = processes()
    workers = PlanWorkers(write_ids, num_workers=2, num_prefetched=None, pin_memory=False, persistent=False)
    seen = []
    for _ in range(2):
        running = workers.run(plans())
        found = [next(running)]
        seen.append(processes() - before)
        found += running
        assert [carried.images_NHWC[0, 3, 5, 0].item() for carried in found] == list(range(0, 12, 2))
        assert processes() == before
    assert [len(each) for each in seen] == [2, 2]
    assert not seen[0] & seen[1]


@pytest.mark.parametrize(("num_workers", "elsewhere"), [(0, False), (2, True)])
def test_the_work_is_done_by_the_workers(num_workers: int, elsewhere: bool) -> None:
    workers = PlanWorkers(write_whether_elsewhere, num_workers=num_workers, num_prefetched=None, pin_memory=False)
    assert {bool(carried.images_NHWC.all()) for carried in workers.run(plans())} == {elsewhere}


@pytest.mark.parametrize(("num_prefetched", "num_drawn"), [(1, 3), (2, 5), (None, 5)])
def test_each_worker_works_as_many_batches_ahead_as_asked(num_prefetched: int | None, num_drawn: int) -> None:
    drawn = []

    def watched() -> Iterator[Plan]:
        for plan in plans():
            drawn.append(int(plan.ids_N[0]))
            yield plan

    running = build(num_prefetched=num_prefetched).run(watched())
    next(running)
    assert len(drawn) == num_drawn, "two workers, and one for the batch that was handed out"
    assert len(list(running)) == NUM_PLANS - 1
    assert drawn == [0, 2, 4, 6, 8, 10]


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("num_batches", [NUM_PLANS, 1], ids=["after_a_whole_run", "after_a_run_stopped_early"])
def test_processes_stop_at_once_when_their_owner_is_let_go(num_batches: int) -> None:
    before = processes()
    workers = build()

    def plans_that_lead_back_to(workers: PlanWorkers) -> Iterator[Plan]:
        yield from plans()
        assert workers  # as a loader's plans do

    running = workers.run(plans_that_lead_back_to(workers))
    for _ in range(num_batches):
        next(running)
    assert len(processes() - before) == 2
    running.close()  # type: ignore[attr-defined]
    start = time.perf_counter()
    del workers, running
    assert processes() == before, "they are left to the garbage collector"
    assert time.perf_counter() - start < 5  # torch waits 5 s for a worker that was not told to stop


def live_as_a_worker(begun: Event) -> None:
    _heed_only_the_parent(0)
    begun.set()
    time.sleep(60)


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_worker_ends_by_the_sigterm_of_who_started_it_and_no_other(method: str) -> None:
    context = multiprocessing.get_context(method)
    begun = context.Event()
    worker = context.Process(target=live_as_a_worker, args=(begun,), daemon=True)  # type: ignore[attr-defined]
    with _signals_held():
        worker.start()
    try:
        assert begun.wait(60)
        subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
        worker.join(0.5)
        assert worker.is_alive()
        worker.terminate()
        worker.join(10)
        assert worker.exitcode == 0
    finally:
        worker.kill()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_reads_as_if_it_had_been_raised_here(num_workers: int) -> None:
    workers = PlanWorkers(refuse, num_workers=num_workers, num_prefetched=None, pin_memory=False)
    with pytest.raises(ValueError, match=r"^sample 0 is not there$") as raised:
        list(workers.run(plans()))
    assert "in refuse" in str(raised.value.__cause__), "where it happened, for those who ask"
