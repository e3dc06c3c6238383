"""The CPU path for real work: a pool of threads that decode, resize and write into batches allocated once.

plan -> chunks of 8 samples -> thread: read file -> decode the window
                                       -> for each view: resize, letterbox, shift, flip, operate -> slot
                               (one scratch per thread, no memory asked for per image)

The decoder, torch's resize and the kernels leave the GIL free. Pixels are those of `pipelines.geometry.carry_out`.

Legend of shape letters: N rows of a plan, H height and W width of an image, S height and width of the result,
C channels.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Barrier, local
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pipelines.execution import Carried, Operate
from pipelines.jpeg_window import Window
from pipelines.kernels import shift_and_flip_image
from pipelines.plan import Plan
from pipelines.scratch import Scratch
from pipelines.source import Source, cut

_CHUNK = 8  # samples per task: few enough that no thread is left alone with the end of a batch


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
    ) -> None:
        self._operate = operate
        self._source = source
        self._channels = channels
        self._interpolation = interpolation
        self._num_prefetched = num_prefetched
        self._pin_memory = pin_memory
        self._pool = _start_threads(num_threads)
        self._local = local()
        self._free: list[Tensor] = []

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the CPU, in a slot that is used again."""
        coming = iter(plans)
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

    def _start(self, plan: Plan) -> _Job:
        num_samples = len(plan.ids_N) // plan.num_views
        shape = (len(plan.ids_N), plan.size_px, plan.size_px, self._channels)
        slot = self._slot(int(np.prod(shape)))
        images = slot[: int(np.prod(shape))].view(shape)
        starts = range(0, num_samples, _CHUNK)
        chunks = [
            self._pool.submit(self._carry_out_chunk, plan, range(start, min(start + _CHUNK, num_samples)), images)
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

    def _carry_out_chunk(self, plan: Plan, samples: range, images_NHWC: Tensor) -> dict[int, str]:
        """One task: writes the images of some samples, all views; gives the rows that could not be read."""
        scratch, out_NHWC = self._scratch(), images_NHWC.numpy()
        first_row_of_view = range(0, len(plan.ids_N), len(plan.ids_N) // plan.num_views)
        rows_MV = np.add.outer(samples, first_row_of_view)
        flips_MV2 = np.stack([plan.flips_N[rows_MV], plan.vertical_flips_N[rows_MV]], axis=2)
        orders_MV8 = np.concatenate([plan.windows_N4[rows_MV], plan.shifts_N2[rows_MV], flips_MV2], axis=2)
        bad: dict[int, str] = {}
        for sample_id, rows, orders in zip(
            plan.ids_N[rows_MV[:, 0]].tolist(), rows_MV.tolist(), orders_MV8.tolist(), strict=True
        ):
            around = _around(orders)
            try:
                pixels = self._source.read_image(sample_id, channels=self._channels, scratch=scratch, window=around)
            except ValueError as error:
                bad |= dict.fromkeys(rows, str(error))
                continue
            for row, (top, left, height, width, down, right, *flips) in zip(rows, orders, strict=True):
                image = cut(pixels, (top - around[0], left - around[1], height, width))
                image = self._fitted(image, plan=plan, row=row, scratch=scratch)
                shift_and_flip_image(image, down, right, bool(flips[0]), bool(flips[1]), out_NHWC[row])
                if self._operate is not None:
                    self._operate(out_NHWC[row], plan=plan, row=row)
        return bad

    def _fitted(self, image: npt.NDArray[np.uint8], *, plan: Plan, row: int, scratch: Scratch) -> npt.NDArray[np.uint8]:
        """A window, uint8 (H, W, C), as it lies in the output, uint8 (S, S, C)."""
        size_px, letterbox = plan.size_px, plan.letterbox
        top, left, height, width = (0, 0, size_px, size_px) if letterbox is None else letterbox.boxes_N4[row].tolist()
        if image.shape[:2] != (height, width):
            image = _resize(image, height_px=height, width_px=width, interpolation=self._interpolation, scratch=scratch)
        if letterbox is None or (height, width) == (size_px, size_px):
            return image
        num_values = size_px * size_px * self._channels
        boxed = scratch.window(num_values)[:num_values].reshape(size_px, size_px, self._channels)
        # row by row: pixel by pixel it takes 160 us instead of 6 (224 x 224 x 3, Intel Xeon, numpy 2.4.6, 2026-11-26)
        boxed.reshape(size_px, -1)[...] = np.tile(np.array(letterbox.border, dtype=np.uint8), size_px)
        boxed[top : top + height, left : left + width] = image
        return boxed

    def _scratch(self) -> Scratch:
        if not hasattr(self._local, "scratch"):
            self._local.scratch = Scratch()
        scratch: Scratch = self._local.scratch
        return scratch


def _around(windows: list[list[int]]) -> Window:
    """The smallest window that holds them all; each begins with top, left, height, width."""
    top, left, height, width = windows[0][:4]
    if len(windows) == 1:
        return top, left, height, width
    top, left = min(window[0] for window in windows), min(window[1] for window in windows)
    bottom = max(window[0] + window[2] for window in windows)
    right = max(window[1] + window[3] for window in windows)
    return top, left, bottom - top, right - left


def _resize(
    image: npt.NDArray[np.uint8], *, height_px: int, width_px: int, interpolation: str, scratch: Scratch
) -> npt.NDArray[np.uint8]:
    """uint8 (H, W, C), antialiased, made from another. torch's fast path takes whole channels_last images only."""
    if not image.flags.carray:
        window = scratch.window(image.size)[: image.size].reshape(image.shape)
        window[...] = image
        image = window
    image_1CHW = torch.from_numpy(image)[None].permute(0, 3, 1, 2)
    resized = F.interpolate(image_1CHW, size=(height_px, width_px), mode=interpolation, antialias=True)
    return resized[0].permute(1, 2, 0).numpy()


def _start_threads(num_threads: int) -> ThreadPoolExecutor:
    """Threads that run torch without threads of their own: else each would start a team for every resize."""
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
