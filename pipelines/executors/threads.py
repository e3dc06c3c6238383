"""The CPU path for real work: a pool of threads that decode, resize and write into batches allocated once.

plan -> chunks of 8 samples -> thread: read, decode, resize, shift, flip, operate (pipelines/chunks.py) -> slot

Legend of shape letters: N rows of a plan, S height and width of the result, C channels.
"""

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.chunks import ChunkWork
from pipelines.execution import Carried, Operate
from pipelines.plan import Plan
from pipelines.source import Source

_READ_AHEAD = 8  # batches
# A thread that is done decoding waits so long, at most, for one that holds the GIL, instead of Python's 5 ms: 6,860 ->
# 7,235 images/s stored as pixels, 3,648 -> 3,656 as JPEG (two threads, Intel Xeon, Python 3.11.7, 2026-11-26)
_SWITCH_S = 0.001
_CHUNK = 16  # samples per task: few enough that no thread is left alone with the end of a batch


class _Job(NamedTuple):
    """A plan on its way: the slot that holds its images, and what each chunk will say is bad."""

    slot: Tensor
    images_NHWC: Tensor
    chunks: list[Future[dict[int, str]]]


class ThreadsExecutor:
    """Carries plans out by threads, some batches ahead.

    Args:
        source: The images.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        num_threads: Threads that decode.
        num_prefetched: Batches that are worked on ahead of the one handed out.
        pin_memory: Whether slots lie in pinned memory, for copies to a GPU.
        operate: Does the plan's operations, in many threads at once; None leaves them to others.
        decode: See `pipelines.chunks.ChunkWork`.
        expect: Told the sample ids of plans some batches before they are worked on, so that the system can fetch what
            is to be read from a disk; None = nobody is.
    """

    def __init__(
        self,
        source: Source,
        *,
        channels: int,
        interpolation: str,
        num_threads: int,
        num_prefetched: int,
        pin_memory: bool,
        operate: Operate | None = None,
        decode: Literal["exact", "scaled"] = "exact",
        expect: Callable[[npt.NDArray[np.int64]], None] | None = None,
    ) -> None:
        self._work = ChunkWork(source, channels=channels, interpolation=interpolation, operate=operate, decode=decode)
        self._channels = channels
        self._num_prefetched = num_prefetched
        self._pin_memory = pin_memory
        self._expect = expect
        self._pool = _start_threads(num_threads)
        self._free: list[Tensor] = []

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the CPU, in a slot that is used again."""
        coming = iter(plans) if self._expect is None else self._announced(plans, self._expect)
        jobs: deque[_Job] = deque()
        try:
            while True:
                while len(jobs) <= self._num_prefetched and (plan := next(coming, None)) is not None:
                    jobs.append(self._start(plan))
                if not jobs:
                    return
                bad: dict[int, str] = {}
                for chunk in jobs[0].chunks:
                    bad |= chunk.result()
                yield Carried(jobs[0].images_NHWC, bad)
                self._free.append(jobs.popleft().slot)
        finally:
            self._abandon(jobs)

    def _announced(self, plans: Iterable[Plan], expect: Callable[[npt.NDArray[np.int64]], None]) -> Iterator[Plan]:
        """The plans, drawn so much earlier that a disk has time to find what they need."""
        waiting: deque[Plan] = deque()
        for plan in plans:
            self._pool.submit(expect, plan.ids_N[: len(plan.ids_N) // plan.num_views])
            waiting.append(plan)
            if len(waiting) > _READ_AHEAD:
                yield waiting.popleft()
        yield from waiting

    def _start(self, plan: Plan) -> _Job:
        num_samples = len(plan.ids_N) // plan.num_views
        shape = (len(plan.ids_N), plan.size_px, plan.size_px, self._channels)
        slot = self._slot(int(np.prod(shape)))
        images = slot[: int(np.prod(shape))].view(shape)
        starts = range(0, num_samples, _CHUNK)
        chunks = [
            self._pool.submit(self._work.carry_out, plan, range(start, min(start + _CHUNK, num_samples)), images)
            for start in starts
        ]
        return _Job(slot, images, chunks)

    def _slot(self, num_bytes: int) -> Tensor:
        slot = self._free.pop() if self._free else torch.empty(0, dtype=torch.uint8)
        if slot.numel() >= num_bytes:
            return slot
        return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=self._pin_memory)

    def _abandon(self, jobs: deque[_Job]) -> None:
        """Slots of unfinished jobs are free only when no thread writes into them any more."""
        for job in jobs:
            for chunk in job.chunks:
                chunk.cancel()
        for job in jobs:
            for chunk in job.chunks:
                if not chunk.cancelled():
                    chunk.exception()
            self._free.append(job.slot)


def _start_threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads that run torch without threads of their own: else each would start a team for every resize."""
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_S))
    all_there = Barrier(num_threads + 1)
    before = torch.get_num_threads()

    def start() -> None:
        torch.set_num_threads(1)
        all_there.wait()

    pool = ThreadPoolExecutor(max_workers=num_threads, initializer=start, thread_name_prefix="decode")
    for number in range(num_threads):
        try:
            pool.submit(int)
        except RuntimeError as error:
            all_there.abort()  # or those that are there would wait for ever, and the program with them
            pool.shutdown(wait=False, cancel_futures=True)
            raise ValueError(f"loader.num_threads={num_threads}: only {number} could be started; use less.") from error
    all_there.wait()
    torch.set_num_threads(before)  # the call in the threads changed what later threads begin with
    return pool
