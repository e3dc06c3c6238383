"""Threads: many small reads in order with a progress bar, and rows of an array shared out."""

import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_CHUNK = 64  # items per task: one future per item costs as much as reading a small header

_BYTES_WORTH_A_THREAD = 2**18  # handing a part to a thread takes about as long (30 us) as a kernel takes for this

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def map_in_threads(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, title: str, unit: str, show_progress: bool
) -> Iterator[_Result]:
    """`function` of each item, in order, computed by as many threads as the process may use CPU cores.

    Args:
        function: What to compute; it gains from threads where it reads files or decodes.
        items: Its arguments.
        title: What the progress bar says.
        unit: What the progress bar counts.
        show_progress: Whether to draw a bar (on a terminal).
    """

    def compute(start: int) -> list[_Result]:
        return [function(item) for item in items[start : start + _CHUNK]]

    num_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    with ThreadPoolExecutor(max_workers=num_cores) as pool:
        chunks = pool.map(compute, range(0, len(items), _CHUNK))
        with tqdm(total=len(items), desc=title, unit=unit, disable=not show_progress or None) as bar:
            for chunk in chunks:
                yield from chunk
                bar.update(len(chunk))


class RowPool:
    """Threads that share out the rows of arrays. With one thread, or few rows, the caller does the work itself."""

    def __init__(self, num_threads: int) -> None:
        self._num_threads = num_threads
        self._pool = ThreadPoolExecutor(max_workers=num_threads) if num_threads > 1 else None

    def run(self, function: Callable[[int, int], None], *, num_rows: int, bytes_per_row: int) -> None:
        """Calls `function(start, stop)` until all rows are covered; it must leave the GIL free to gain from it."""
        num_parts = min(self._num_threads, num_rows, 1 + num_rows * bytes_per_row // _BYTES_WORTH_A_THREAD)
        if self._pool is None or num_parts <= 1:
            function(0, num_rows)
            return
        bounds = [num_rows * part // num_parts for part in range(num_parts + 1)]
        others = [self._pool.submit(function, *pair) for pair in itertools.pairwise(bounds[1:])]
        function(bounds[0], bounds[1])
        for other in others:
            other.result()
