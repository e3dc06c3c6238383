"""NVIDIA DALI carries plans out: one graph, on the CPU here and on a GPU where there is one.

plan -> threads: read files -> external_source(bytes, window, size, flips) -> decode the window -> resize -> flip
                                                                        -> (shift, batched torch) -> zero-copy to torch

What DALI's decoder does not take as the others do (everything but upright JPEG) is decoded here and handed to it as
uncompressed PNM. DALI itself passes JPEGs with flipped bits without a word: whoever builds this executor has the images
verified beforehand (pipelines/sources/folder.py, `verify`).

Legend of shape letters: N rows of a plan, S height and width of the result, C channels.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipelines.decode import encode_pnm
from pipelines.execution import Carried
from pipelines.geometry import carry_out_plan, shift_and_flip
from pipelines.kernels import shift_and_flip_rows
from pipelines.plan import Plan
from pipelines.scratch import Arena
from pipelines.source import Source

_INTERPOLATIONS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
_DEPTH = 2  # batches within DALI: one that it works on, one that is handed out
_CHUNK = 16  # files per reading task
_PLACEHOLDER = np.frombuffer(encode_pnm(np.zeros((1, 1, 1), dtype=np.uint8)), dtype=np.uint8)
_FAILED_SAMPLE = re.compile(r"sample #(\d+)")

_Encoded = npt.NDArray[np.uint8]


class _Files(NamedTuple):
    """Encoded bytes of some rows, most of them in `arena`; of a row in `bad` they are a placeholder."""

    encoded: list[_Encoded]
    bad: dict[int, str]
    arena: Arena


class _Job(NamedTuple):
    """A plan on its way; the bytes must live as long as DALI works on them."""

    plan: Plan
    chunks: list[Future[_Files]]


class DaliExecutor:
    """Carries plans out in a DALI pipeline, some batches ahead.

    Args:
        source: The images.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        device: cpu or cuda; where decoding and resizing happen, and where images lie.
        num_threads: DALI's CPU threads, and as many that read files.
        num_prefetched: Batches whose files are read ahead.
    """

    def __init__(
        self,
        source: Source,
        *,
        channels: int,
        interpolation: str,
        device: torch.device,
        num_threads: int,
        num_prefetched: int,
    ) -> None:
        self._source = source
        self._channels = channels
        self._interpolation = interpolation
        self._device = device
        self._num_threads = num_threads
        self._num_prefetched = num_prefetched
        self._readers = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="read")
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._decoded_here: set[int] = set()  # what DALI failed on once
        self._arenas: deque[Arena] = deque()
        self._pipeline: Any = None
        self._most_rows = 0
        self._border: tuple[int, ...] | None = None  # of what the pipeline letterboxes; None = nothing

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the device; on the CPU in DALI's own memory.

        Raises:
            RuntimeError: DALI failed, and not at an image.
        """
        coming = iter(plans)
        read: deque[_Job] = deque()
        inside: deque[_Job] = deque()  # given to DALI
        try:
            while True:
                while len(read) + len(inside) < _DEPTH + self._num_prefetched:
                    if (plan := next(coming, None)) is None:
                        break
                    read.append(self._start_reading(plan))
                while read and len(inside) < _DEPTH and (not inside or self._suits(read[0].plan)):
                    self._feed(read.popleft(), inside)
                if not inside:
                    return
                yield from self._take(inside)
        finally:
            self._drain(inside)
            for job in read:
                for chunk in job.chunks:
                    chunk.cancel()

    def _take(self, inside: deque[_Job]) -> Iterator[Carried]:
        """The oldest batch within DALI; if it failed, the same by the reference, and a new pipeline for the rest."""
        plan, chunks = inside[0]
        bad = {row: reason for chunk in chunks for row, reason in chunk.result().bad.items()}
        try:
            (output,) = self._pipeline.share_outputs()
        except (RuntimeError, IndexError) as error:
            failed = _FAILED_SAMPLE.findall(str(error))
            if not failed:  # not an image's fault: out of memory, for example
                raise
            self._decoded_here.update(int(plan.ids_N[int(row)]) for row in failed)
            inside.popleft()
            self._rebuild(self._most_rows, inside)
            carried = carry_out_plan(
                plan, source=self._source, channels=self._channels, interpolation=self._interpolation
            )
            yield carried._replace(images_NHWC=carried.images_NHWC.to(self._device))
            return
        try:
            yield Carried(self._finish(output, plan), bad)
        finally:
            inside.popleft()
            self._pipeline.release_outputs()
            self._arenas.extend(chunk.result().arena for chunk in chunks)

    def _drain(self, inside: deque[_Job]) -> None:
        """Waits for batches that nobody asks for any more: DALI works on their bytes, which are about to be freed."""
        try:
            while inside:
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
                inside.popleft()
        except (RuntimeError, IndexError, AttributeError):  # it has failed, or Python has taken it down at its exit
            self._pipeline = None

    def _feed(self, job: _Job, inside: deque[_Job]) -> None:
        num_rows = len(job.plan.ids_N)
        if self._pipeline is None or num_rows > self._most_rows or not self._suits(job.plan):
            self._border = job.plan.letterbox and job.plan.letterbox.border
            self._rebuild(max(num_rows, self._most_rows), inside)
        self._give(job)
        inside.append(job)

    def _suits(self, plan: Plan) -> bool:
        """Whether the pipeline can take the plan, as far as borders are concerned."""
        return self._border == (plan.letterbox and plan.letterbox.border)

    def _give(self, job: _Job) -> None:
        plan = job.plan
        windows_N4 = plan.windows_N4.astype(np.int32)
        windows_N4[[row for chunk in job.chunks for row in chunk.result().bad]] = (0, 0, 1, 1)
        flips_N2 = np.stack([plan.flips_N, plan.vertical_flips_N], axis=1) & (not _is_shifted(plan))
        boxes_N4 = plan.letterbox and plan.letterbox.boxes_N4
        inputs = {
            "start": windows_N4[:, :2],
            "shape": windows_N4[:, 2:],
            "size": np.full((len(plan.ids_N), 2), plan.size_px) if boxes_N4 is None else boxes_N4[:, 2:],
            "flip": flips_N2[:, 0],
            "vertical_flip": flips_N2[:, 1],
        }
        if boxes_N4 is not None:
            inputs |= {"box_start": -boxes_N4[:, :2], "box_shape": np.full((len(boxes_N4), 2), plan.size_px)}
        self._feed_inputs([each for chunk in job.chunks for each in chunk.result().encoded], inputs)
        self._pipeline.schedule_run()

    def _feed_inputs(self, encoded: list[_Encoded], inputs: dict[str, npt.NDArray[Any]]) -> None:
        self._pipeline.feed_input("encoded", encoded)
        for name, values in inputs.items():
            dtype = np.float32 if name == "size" else np.int32
            self._pipeline.feed_input(name, np.ascontiguousarray(values, dtype=dtype))

    def _rebuild(self, num_rows: int, inside: deque[_Job]) -> None:
        """A new pipeline, which is given again what the one before it had not handed out."""
        self._most_rows = num_rows
        on_gpu = self._device.type == "cuda"
        self._pipeline = _graph(
            channels=self._channels,
            interpolation=self._interpolation,
            border=self._border,
            on_gpu=on_gpu,
            batch_size=num_rows,
            num_threads=self._num_threads,
            device_id=(self._device.index or 0) if on_gpu else None,
            prefetch_queue_depth=_DEPTH,
        )
        self._pipeline.build()
        self._prime()
        for job in inside:
            self._give(job)

    def _prime(self) -> None:
        """The first call of `schedule_run` runs as many batches as the pipeline is deep: let these be empty ones."""
        pixel = np.ones((1, 2))
        inputs = {"start": 0 * pixel, "shape": pixel, "size": pixel, "flip": np.zeros(1), "vertical_flip": np.zeros(1)}
        if self._border is not None:
            inputs |= {"box_start": 0 * pixel, "box_shape": pixel}
        for _ in range(_DEPTH):
            self._feed_inputs([_PLACEHOLDER], inputs)
        self._pipeline.schedule_run()
        for _ in range(_DEPTH):
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()

    def _finish(self, output: Any, plan: Plan) -> Tensor:
        """DALI's output as a tensor, shifted where the plan says so."""
        images: Tensor = from_dlpack(output.as_tensor())
        if self._copies is not None:
            with torch.cuda.stream(self._copies):
                images = images.clone()  # DALI takes its memory back when asked for the next batch
            self._copies.synchronize()  # of decoding and this copy alone, not of the network's work
            images.record_stream(torch.cuda.current_stream(self._device))
        return _shift_and_flip(images, plan) if _is_shifted(plan) else images

    def _start_reading(self, plan: Plan) -> _Job:
        starts = range(0, len(plan.ids_N), _CHUNK)
        return _Job(
            plan, [self._readers.submit(self._read, plan, range(len(plan.ids_N))[s : s + _CHUNK]) for s in starts]
        )

    def _read(self, plan: Plan, rows: range) -> _Files:
        encoded: list[_Encoded] = []
        bad: dict[int, str] = {}
        arena = self._free_arena()
        for row in rows:
            try:
                encoded.append(np.frombuffer(self._encoded(int(plan.ids_N[row]), arena), dtype=np.uint8))
            except ValueError as error:
                encoded.append(_PLACEHOLDER)
                bad[row] = str(error)
        return _Files(encoded, bad, arena)

    def _free_arena(self) -> Arena:
        try:
            arena = self._arenas.popleft()
        except IndexError:
            return Arena()
        arena.clear()
        return arena

    def _encoded(self, sample_id: int, arena: Arena) -> bytes | memoryview:
        """Bytes that DALI decodes to the pixels of `source.read_image`."""
        if sample_id not in self._decoded_here and (self._channels == 3 or self._source.is_grey):
            jpeg = self._source.read_jpeg(sample_id, scratch=arena)
            if jpeg is not None:
                return jpeg
        return encode_pnm(self._source.read_image(sample_id, channels=self._channels))


def _is_shifted(plan: Plan) -> bool:
    return bool(plan.shifts_N2.any())


def _shift_and_flip(images: Tensor, plan: Plan) -> Tensor:
    rows_N = np.arange(len(plan.ids_N))
    if images.device.type == "cpu":
        shifted = torch.empty_like(images)
        shift_and_flip_rows(
            images.numpy(), rows_N, plan.shifts_N2, plan.flips_N, plan.vertical_flips_N, shifted.numpy()
        )
        return shifted
    arrays = (rows_N, plan.shifts_N2, plan.flips_N, plan.vertical_flips_N)
    rows, shifts_N2, flips_N, vertical_flips_N = (torch.from_numpy(array).to(images.device) for array in arrays)
    return shift_and_flip(images, rows_N=rows, shifts_N2=shifts_N2, flips_N=flips_N, vertical_flips_N=vertical_flips_N)


@pipeline_def  # type: ignore[untyped-decorator]  # DALI has no types
def _graph(*, channels: int, interpolation: str, border: tuple[int, ...] | None, on_gpu: bool) -> Any:
    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    vertical_flip = fn.external_source(name="vertical_flip", dtype=types.INT32, ndim=0)
    images = fn.decoders.image_slice(
        encoded,
        start=start,
        shape=shape,
        axes=[0, 1],
        device="mixed" if on_gpu else "cpu",
        output_type=types.GRAY if channels == 1 else types.RGB,
        adjust_orientation=False,
        jpeg_fancy_upsampling=True,  # as libjpeg does; the GPU's default is not
    )
    images = fn.resize(images, size=size, interp_type=_INTERPOLATIONS[interpolation], antialias=True)
    if border is not None:
        images = fn.slice(
            images,
            start=fn.external_source(name="box_start", dtype=types.INT32, ndim=1),
            shape=fn.external_source(name="box_shape", dtype=types.INT32, ndim=1),
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=list(border),
        )
    return fn.flip(images, horizontal=flip, vertical=vertical_flip)
