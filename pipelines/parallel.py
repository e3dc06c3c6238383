"""Threads: many small reads in order with a progress bar, and rows of an array shared out."""

import itertools
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_MOST_THREADS = 64
_NUM_TIMED, _TIMED_S = 32, 0.2  # calls, and seconds, by which the number of threads is chosen
_CHUNK = 64  # items per task: one future per item costs as much as reading a small header
_BYTES_WORTH_A_THREAD = 2**18  # handing a part to a thread takes about as long (30 us) as a kernel takes for this

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def num_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def map_in_threads(
    function: Callable[[_Item], _Result],
    items: Sequence[_Item],
    *,
    title: str,
    unit: str,
    show_progress: bool,
    cores: int | None = None,
) -> Iterator[_Result]:
    """`function` of each item, in order, by as many threads as keep the cores busy.

    Those are as many threads as cores where files are at hand, and up to 64 where calls wait for a distant disk: the
    first calls are timed to know.

    Args:
        function: What to compute.
        items: Its arguments.
        title: What the progress bar says.
        unit: What the progress bar counts.
        show_progress: Whether to draw a bar (on a terminal).
        cores: How many cores the function can use: 1 where it holds the GIL, for more threads then only wait for it
            (Pillow's headers: 42 us each by one thread, 54 by two, 158 by sixteen; two cores, AMD EPYC, Python 3.11,
            2026-11-20). Default: all.
    """
    cores = cores or num_cores()
    with tqdm(total=len(items), desc=title, unit=unit, disable=not show_progress or None) as bar:
        start_s, busy_s, num_done = time.perf_counter(), time.thread_time(), 0
        while num_done < min(len(items), _NUM_TIMED) and time.perf_counter() < start_s + _TIMED_S:
            yield function(items[num_done])
            num_done += 1
            bar.update()
        waiting = (time.perf_counter() - start_s) / max(time.thread_time() - busy_s, 1e-6)
        chunk = max(1, min(_CHUNK, (len(items) - num_done) // (4 * _MOST_THREADS)))

        def compute(start: int) -> list[_Result]:
            return [function(item) for item in items[start : start + chunk]]

        pool = ThreadPoolExecutor(max_workers=min(_MOST_THREADS, max(cores, round(cores * waiting))))
        try:
            for results in pool.map(compute, range(num_done, len(items), chunk)):
                yield from results
                bar.update(len(results))
        finally:
            pool.shutdown(cancel_futures=True)  # after Ctrl-C nothing else is begun


class RowPool:
    """Threads that share out the rows of arrays. With one thread, or few rows, the caller does the work itself."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(max_workers=num_threads) if num_threads > 1 else None

    def run(self, function: Callable[[int, int], None], *, num_rows: int, bytes_per_row: int) -> None:
        """Calls `function(start, stop)` until all rows are covered; it must leave the GIL free to gain from it.

        A part that no thread has begun when the caller is done with its own is the caller's too: in training the cores
        are often taken by the network's threads, which still spin for a while after their work.
        """
        num_parts = min(self._num_threads, num_rows, 1 + num_rows * bytes_per_row // _BYTES_WORTH_A_THREAD)
        if self._pool is None or num_parts <= 1:
            function(0, num_rows)
            return
        bounds = [num_rows * part // num_parts for part in range(num_parts + 1)]
        others = {pair: self._pool.submit(function, *pair) for pair in itertools.pairwise(bounds[1:])}
        function(bounds[0], bounds[1])
        for pair, other in reversed(others.items()):
            if other.cancel():
                function(*pair)
        for other in others.values():
            if not other.cancelled():
                other.result()
