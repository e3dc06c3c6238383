"""How long a loader takes: its first batch, the start of an epoch, an epoch; and the memory of its workers.

build -> open_loader: one batch -> time_turn: epochs, as many as there is time for, the last perhaps in part -> Turn
"""

import contextlib
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

_LONGEST = 4  # times the seconds of a turn: then a slow loader is cut short, too
_PAGES = "/proc/{process}/smaps_rollup"  # of Linux; other systems do not tell


class Timed(Protocol):
    """What is timed: `pipelines.build.StudyLoader`."""

    steps_per_epoch: int
    images_per_step: int

    def batches(self, *, num_steps: int | None = None) -> Iterator[Any]:
        """The first batches of an epoch, or all."""
        ...


class Watch(NamedTuple):
    """now: seconds since whenever. synchronize: returns when a GPU has done what it was given."""

    now: Callable[[], float] = time.perf_counter
    synchronize: Callable[[], None] = lambda: None


class Opened(NamedTuple):
    """A loader that has made its first batch.

    first_batch_s: from nothing to that batch.
    """

    loader: Timed
    first_batch_s: float


class Turn(NamedTuple):
    """What one turn of a setting told.

    first_batch_s: from nothing to the first batch. epoch_start_s: from the start of a later epoch to its first batch.
    epoch_s: a later epoch, its start included. images_per_s: images of an epoch / epoch_s. workers_mib: memory that
    worker processes hold beyond what they share, in the midst of an epoch; None = there are none, or the system does
    not tell.
    """

    first_batch_s: float
    epoch_start_s: float
    epoch_s: float
    images_per_s: float
    workers_mib: float | None


class _Epoch(NamedTuple):
    """start_s: to its first batch. whole_s: all of it. is_whole: else it was broken off; num_bytes: workers' then."""

    start_s: float
    whole_s: float
    is_whole: bool
    num_bytes: int | None = None


def open_loader(build: Callable[[], Timed], *, watch: Watch) -> Opened:
    """Builds a loader and lets it make one batch; nothing is left on its way."""
    gc.collect()  # what an earlier loader held goes first
    start_s = watch.now()
    loader = build()
    for _ in loader.batches(num_steps=1):
        watch.synchronize()
    return Opened(loader, watch.now() - start_s)


def time_turn(opened: Opened, *, seconds: float, num_ahead: int, watch: Watch) -> Turn:
    """Epoch after epoch for about so many seconds; of one that does not end in time, the rest is reckoned.

    Args:
        opened: The loader.
        seconds: Until no further epoch begins, and one that is under way is broken off.
        num_ahead: Batches at the start of an epoch that arrive together and tell nothing of the rate.
        watch: The clock.
    """
    loader, end_s = opened.loader, watch.now() + seconds
    epochs: list[_Epoch] = []
    while not epochs or (epochs[-1].is_whole and watch.now() < end_s):
        epochs.append(_time_epoch(loader, seconds=end_s - watch.now(), num_ahead=num_ahead, watch=watch))
    whole = [epoch for epoch in epochs if epoch.is_whole] or epochs  # part of one is not needed beside whole ones
    epoch_s = statistics.mean(epoch.whole_s for epoch in whole)
    num_bytes = _bytes_in_an_epoch(loader, num_ahead=num_ahead) if epochs[-1].is_whole else epochs[-1].num_bytes
    return Turn(
        first_batch_s=opened.first_batch_s,
        epoch_start_s=statistics.median(epoch.start_s for epoch in epochs),
        epoch_s=epoch_s,
        images_per_s=loader.steps_per_epoch * loader.images_per_step / epoch_s,
        workers_mib=None if num_bytes is None else num_bytes / 2**20,
    )


def turn_estimate_s(*, seconds: float, num_ahead: int, batch_s: float) -> float:
    """About how long `time_turn` takes where batches arrive `batch_s` apart; at most what it allows itself."""
    return max(seconds, min(_LONGEST * seconds, (num_ahead + _least(num_ahead)) * batch_s))


def bytes_of_workers() -> int | None:
    """Bytes of worker processes that they share with nobody; None = there are none, or the system does not tell."""
    workers = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    try:
        return sum(_private_bytes(pid) for pid in workers) if workers else None
    except (OSError, ValueError, IndexError):  # another system, or a worker that just ended
        return None


def _private_bytes(process: int) -> int:
    lines = Path(_PAGES.format(process=process)).read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Private_"))


def _time_epoch(loader: Timed, *, seconds: float, num_ahead: int, watch: Watch) -> _Epoch:
    num_steps, start_s = loader.steps_per_epoch, watch.now()
    settled = max(num_ahead, 1)  # batches after which the rate shows
    first_s = settled_s = 0.0
    with _closing(loader.batches()) as batches:
        for number, _ in enumerate(batches, 1):
            if number in (1, settled):
                watch.synchronize()
                settled_s = watch.now() - start_s
                first_s = settled_s if number == 1 else first_s
            elapsed_s = watch.now() - start_s
            is_enough = elapsed_s >= (seconds if number >= settled + _least(num_ahead) else _LONGEST * seconds)
            if settled < number < num_steps and is_enough:
                watch.synchronize()
                step_s = (watch.now() - start_s - settled_s) / (number - settled)
                whole_s = settled_s + (num_steps - settled) * step_s
                return _Epoch(first_s, whole_s, is_whole=False, num_bytes=bytes_of_workers())
    watch.synchronize()
    return _Epoch(first_s, watch.now() - start_s, is_whole=True)


def _bytes_in_an_epoch(loader: Timed, *, num_ahead: int) -> int | None:
    """What workers hold in the midst of a short epoch."""
    with _closing(loader.batches()) as batches:
        for _ in zip(range(num_ahead), batches, strict=False):
            pass
        return bytes_of_workers()


def _least(num_ahead: int) -> int:
    """Batches after the settled ones that a rate needs: as many as arrive together, and two."""
    return max(num_ahead, 2)


@contextlib.contextmanager
def _closing(batches: Iterator[Any]) -> Generator[Iterator[Any], None, None]:
    """Ends an iteration that was broken off at once, not whenever it is collected."""
    try:
        yield batches
    finally:
        if isinstance(batches, Generator):
            batches.close()
