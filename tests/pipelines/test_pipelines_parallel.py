"""Many small tasks by threads: in order, complete, and an error comes through; rows shared out."""

import threading
import time

import numpy as np
import pytest

from pipelines import parallel
from pipelines.parallel import RowPool, map_in_threads


@pytest.mark.parametrize("count", [0, 1, 63, 64, 65, 1000])
def test_results_come_in_the_order_of_the_items(count: int) -> None:
    results = list(map_in_threads(lambda x: x * x, range(count), title="t", unit="u", show_progress=False))
    assert results == [x * x for x in range(count)]


def test_the_work_after_the_timed_calls_is_done_by_other_threads() -> None:
    threads = list(
        map_in_threads(lambda _: threading.get_ident(), range(200), title="t", unit="u", show_progress=False)
    )
    assert set(threads[:32]) == {threading.get_ident()}
    assert threading.get_ident() not in threads[32:]


def test_an_error_of_one_item_reaches_the_caller() -> None:
    def fail_at_70(item: int) -> int:
        if item == 70:
            raise ValueError("item 70 is bad")
        return item

    with pytest.raises(ValueError, match="item 70 is bad"):
        list(map_in_threads(fail_at_70, range(200), title="t", unit="u", show_progress=False))


def test_no_bar_is_drawn_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    list(map_in_threads(str, range(200), title="t", unit="u", show_progress=True))
    assert capsys.readouterr() == ("", "")


LARGE = 2**20  # bytes a row: worth a thread each


@pytest.mark.parametrize("num_threads", [1, 2, 3, 8])
@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 64, 1000])
@pytest.mark.parametrize("bytes_per_row", [1, 10_000, LARGE])
def test_every_row_is_worked_on_once(num_threads: int, num_rows: int, bytes_per_row: int) -> None:
    counts = np.zeros(num_rows, dtype=np.int64)

    def count(start: int, stop: int) -> None:
        counts[start:stop] += 1

    pool = RowPool(num_threads)
    for _ in range(3):
        pool.run(count, num_rows=num_rows, bytes_per_row=bytes_per_row)
    assert counts.tolist() == [3] * num_rows


def parts_of(pool: RowPool, *, num_rows: int, bytes_per_row: int) -> dict[tuple[int, int], int]:
    """Which thread worked on which rows."""
    parts: dict[tuple[int, int], int] = {}
    pool.run(
        lambda start, stop: parts.update({(start, stop): threading.get_ident()}),
        num_rows=num_rows,
        bytes_per_row=bytes_per_row,
    )
    return parts


def test_large_work_is_shared_in_equal_parts_and_the_caller_does_one_of_them() -> None:
    parts: dict[tuple[int, int], int] = {}
    all_have_begun = threading.Barrier(4, timeout=60)

    def work(start: int, stop: int) -> None:
        all_have_begun.wait()
        parts[start, stop] = threading.get_ident()

    RowPool(4).run(work, num_rows=10, bytes_per_row=LARGE)
    assert sorted(parts) == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert parts[0, 2] == threading.get_ident()
    assert len(set(parts.values())) == 4


def test_the_caller_does_the_parts_that_no_thread_has_begun() -> None:
    pool, is_over = RowPool(3), threading.Event()
    assert pool._pool is not None
    for _ in range(3):
        pool._pool.submit(is_over.wait, 60)
    parts = parts_of(pool, num_rows=9, bytes_per_row=LARGE)
    is_over.set()
    assert parts == dict.fromkeys([(0, 3), (3, 6), (6, 9)], threading.get_ident())


@pytest.mark.parametrize(("num_threads", "num_rows", "bytes_per_row"), [(1, 100, LARGE), (4, 100, 8), (4, 1, LARGE)])
def test_work_that_is_not_worth_a_thread_is_done_by_the_caller(
    num_threads: int, num_rows: int, bytes_per_row: int
) -> None:
    parts = parts_of(RowPool(num_threads), num_rows=num_rows, bytes_per_row=bytes_per_row)
    assert parts == {(0, num_rows): threading.get_ident()}


@pytest.mark.parametrize("failing", [0, 9])
def test_an_error_in_any_part_reaches_the_caller(failing: int) -> None:
    def fail(start: int, stop: int) -> None:
        if start <= failing < stop:
            raise ValueError(f"row {failing} is bad")

    pool = RowPool(3)
    with pytest.raises(ValueError, match=f"row {failing} is bad"):
        pool.run(fail, num_rows=10, bytes_per_row=LARGE)
    assert len(parts_of(pool, num_rows=10, bytes_per_row=LARGE)) == 3, "it serves on"


@pytest.mark.parametrize("num_items", [0, 1, 31, 32, 33, 5000])
@pytest.mark.parametrize("timed_s", [0.0, 60.0])
def test_waiting_threads_give_every_result_once_and_in_order(
    monkeypatch: pytest.MonkeyPatch, num_items: int, timed_s: float
) -> None:
    monkeypatch.setattr(parallel, "_TIMED_S", timed_s)
    results = map_in_threads(lambda x: x * x, range(num_items), title="t", unit="u", show_progress=False)
    assert list(results) == [x * x for x in range(num_items)]


def test_calls_that_wait_are_made_by_many_threads_and_calls_that_compute_by_one() -> None:
    waiting, computing = set(), set()

    def wait(_: int) -> None:
        time.sleep(0.005)
        waiting.add(threading.get_ident())

    def compute(_: int) -> None:
        sum(range(2000))
        computing.add(threading.get_ident())

    for function in (wait, compute):
        list(map_in_threads(function, range(2000), title="t", unit="u", show_progress=False, cores=1))
    assert len(waiting) > 10
    assert len(computing) < 10  # two, where nothing else runs
