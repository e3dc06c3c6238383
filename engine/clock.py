"""How fast training goes and how much of the time it waits for data, measured on the host."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from pipelines.batch import Batch


class Pace(NamedTuple):
    """Of this rank: seconds, images per second, and the share of the time spent waiting for data."""

    seconds: float
    images_per_s: float
    wait_frac: float


class Clock:
    """Measures, on the host, how long training takes and how much of that is waiting for data."""

    def __init__(self) -> None:
        self._now = self._at_epoch = self._at_lap = _Reading(time.perf_counter(), 0.0, 0)

    def watch(self, loader: Iterable[Batch]) -> Iterator[Batch]:
        """The loader's batches, the wait for each measured."""
        start = time.perf_counter()
        self._at_epoch = self._at_lap = self._now._replace(time_s=start)
        for batch in loader:
            waited_s = self._now.waited_s + time.perf_counter() - start
            self._now = _Reading(time.perf_counter(), waited_s, self._now.num_images + len(batch.labels_N))
            yield batch
            start = time.perf_counter()

    def lap(self) -> Pace:
        """The pace since the last lap."""
        now = self._now._replace(time_s=time.perf_counter())
        pace, self._at_lap = _pace_between(self._at_lap, now), now
        return pace

    def epoch(self) -> Pace:
        """The pace since the epoch began."""
        return _pace_between(self._at_epoch, self._now._replace(time_s=time.perf_counter()))


class _Reading(NamedTuple):
    time_s: float
    waited_s: float
    num_images: int


def _pace_between(before: _Reading, after: _Reading) -> Pace:
    seconds = max(after.time_s - before.time_s, 1e-9)
    return Pace(seconds, (after.num_images - before.num_images) / seconds, (after.waited_s - before.waited_s) / seconds)
