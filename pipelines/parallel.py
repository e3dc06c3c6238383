"""Many small reads by threads, in order, with a progress bar."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tqdm import tqdm

_CHUNK = 64  # items per task: one future per item costs as much as reading a small header

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
