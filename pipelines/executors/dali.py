"""NVIDIA DALI carries plans out: one graph, on the CPU here and on a GPU where there is one.

plan -> threads: read files -> external_source(bytes, window, size, flips) -> the graph of dali_graph.py
                                                     -> (shift and flip, where the plan shifts) -> zero-copy to torch

What DALI's decoder does not take as the others do (everything but upright JPEG) is decoded here and handed to it as
uncompressed PNM. DALI itself passes JPEGs with flipped bits without a word: whoever builds this executor has the images
verified beforehand (pipelines/sources/folder.py, `verify`).

Legend of shape letters: N rows of a plan, S height and width of the result, C channels.
"""

import re
import warnings
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from pipelines.decode import encode_pnm
from pipelines.execution import Carried
from pipelines.executors.dali_graph import GpuDecoder, GraphSettings, build_pipeline, inputs_of
from pipelines.geometry import shift_and_flip
from pipelines.kernels import shift_and_flip_rows
from pipelines.operations.vocabulary import NATIVE_OPERATIONS, Operation
from pipelines.plan import Fit, Letterbox, Plan, plan_evaluation
from pipelines.scratch import Arena
from pipelines.source import Source
from pipelines.sources.packed import JpegPart, PackedSource

_DEPTH = 2  # batches within DALI: one that it works on, one that is handed out
_CHUNK = 16  # files per reading task
_HINT_QUANTILE = 0.99  # of the images: memory for a batch of the very largest would be gigabytes
_MOST_HINT_BYTES = 2**30
_PLACEHOLDER = np.frombuffer(encode_pnm(np.zeros((1, 1, 1), dtype=np.uint8)), dtype=np.uint8)
_ONE_PIXEL = plan_evaluation(
    np.zeros(1, dtype=np.int64), sizes_N2=np.ones((1, 2), dtype=np.int32), fit=Fit("squash", 1.0), size_px=1
)
_FAILED_SAMPLE = re.compile(r"sample #(\d+)")

_Encoded = npt.NDArray[np.uint8]


class _Files(NamedTuple):
    """Encoded bytes of some rows, most of them in `arena`; of a row in `bad` they are a placeholder.

    begins: of rows whose bytes are a part of the image, where that begins: top, left.
    """

    encoded: list[_Encoded]
    bad: dict[int, str]
    begins: dict[int, tuple[int, int]]
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
        hw_decoder_load: The part of a batch, 0..1, that a GPU's JPEG decoder takes, where it has one.
        operations: Those that the graph carries out, of NATIVE_OPERATIONS: all that a plan can name, or none.
        num_slots: How many of them, one after the other, a plan has in each row.
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
        hw_decoder_load: float = 1.0,
        operations: frozenset[Operation] = frozenset(),
        num_slots: int = 0,
    ) -> None:
        assert operations <= NATIVE_OPERATIONS, operations
        assert bool(operations) == bool(num_slots), (operations, num_slots)
        self._source = source
        self._channels = channels
        self._interpolation = interpolation
        self._settings = GraphSettings(channels, interpolation, operations, num_slots)
        self._device = device
        self._num_threads = num_threads
        self._num_prefetched = num_prefetched
        self._hw_decoder_load = hw_decoder_load
        self._readers = ThreadPoolExecutor(max_workers=num_threads, thread_name_prefix="read")
        self._copies = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._decoded_here: set[int] = set()  # what DALI failed on once
        self._failed_plan: Plan | None = None  # of the oldest batch when DALI failed last
        self._arenas: deque[Arena] = deque()
        self._pipeline: Any = None
        self._most_rows = 0
        self._is_running = False

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the device; on the CPU in DALI's own memory.

        Raises:
            RuntimeError: DALI failed, and not at an image; or an earlier run is neither through nor closed.
        """
        if self._is_running:  # both would take batches out of one pipeline, each the other's
            raise RuntimeError(
                "this loader is iterated a second time while its first iterator is not through; finish or close() that "
                "one, or build another loader."
            )
        self._is_running = True
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
            self._is_running = False
            self._drain(inside)
            for job in read:
                for chunk in job.chunks:
                    chunk.cancel()

    def _take(self, inside: deque[_Job]) -> Iterator[Carried]:
        """The oldest batch within DALI; or, if DALI failed, none yet: it has been given all of them anew."""
        plan, chunks = inside[0]
        try:
            (output,) = self._pipeline.share_outputs()
        except (RuntimeError, IndexError) as error:
            self._note_failure(inside, error)
            again = [self._start_reading(job.plan) for job in inside]
            inside.clear()
            inside.extend(again)
            self._rebuild(self._most_rows, inside)
            return
        bad = {row: reason for chunk in chunks for row, reason in chunk.result().bad.items()}
        try:
            yield Carried(self._finish(output, plan), bad)
        finally:
            inside.popleft()
            self._pipeline.release_outputs()
            self._arenas.extend(chunk.result().arena for chunk in chunks)

    def _note_failure(self, inside: deque[_Job], error: Exception) -> None:
        """Marks images to be decoded here from now on, so that DALI gets by; says so the first time.

        It names the first sample of a batch that it cannot decode, but none whose header it cannot read. So the sample
        that it names is marked, and if it fails on that batch again, or names none, the whole batch; and where all of
        it is decoded here, the one behind it, whose failure it may have met too soon.

        Raises:
            RuntimeError: DALI, as it said; with all images decoded here, it is none of theirs: out of memory, say.
        """
        named = [int(row) for row in _FAILED_SAMPLE.findall(str(error))]
        oldest = inside[0].plan
        suspects = (
            [] if oldest is self._failed_plan else [oldest.ids_N[[row for row in named if row < len(oldest.ids_N)]]]
        )
        suspects += [job.plan.ids_N for job in inside]
        marked = next((ids for ids_N in suspects if not self._decoded_here.issuperset(ids := ids_N.tolist())), None)
        if marked is None:
            raise error
        if not self._decoded_here:
            names = "an image" if len(marked) == 1 else f"one of {len(marked)} images"
            warnings.warn(
                f"DALI failed on {names}, such as {self._source.describe(marked[0])}; what it fails on is decoded on "
                "the CPU, from now on each time.",
                stacklevel=2,
            )
        self._failed_plan = oldest
        self._decoded_here.update(marked)

    def _drain(self, inside: deque[_Job]) -> None:
        """Waits for batches that nobody asks for any more: DALI works on their bytes, which are about to be freed."""
        try:
            while inside:
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
                inside.popleft()
        except (RuntimeError, IndexError, StopIteration, AttributeError):
            self._pipeline = None  # it has failed, or Python has taken it down at its exit

    def _feed(self, job: _Job, inside: deque[_Job]) -> None:
        num_rows = len(job.plan.ids_N)
        if self._pipeline is None or num_rows > self._most_rows or not self._suits(job.plan):
            self._settings = self._settings._replace(border=job.plan.letterbox and job.plan.letterbox.border)
            self._rebuild(max(num_rows, self._most_rows), inside)
        self._give(job)
        inside.append(job)

    def _suits(self, plan: Plan) -> bool:
        """Whether the pipeline can take the plan, as far as borders are concerned."""
        return self._settings.border == (plan.letterbox and plan.letterbox.border)

    def _give(self, job: _Job) -> None:
        plan = job.plan
        windows_N4 = plan.windows_N4.copy()
        windows_N4[[row for chunk in job.chunks for row in chunk.result().bad]] = (0, 0, 1, 1)
        for chunk in job.chunks:
            for row, begin in chunk.result().begins.items():
                windows_N4[row, :2] -= begin
        plan = plan._replace(windows_N4=windows_N4)
        if _is_shifted(plan):
            assert not self._settings.operations, "operations come after the shift, and the graph does not shift"
            unflipped_N = np.zeros_like(plan.flips_N)
            plan = plan._replace(flips_N=unflipped_N, vertical_flips_N=unflipped_N)
        self._feed_inputs([each for chunk in job.chunks for each in chunk.result().encoded], plan)
        self._pipeline.schedule_run()

    def _feed_inputs(self, encoded: list[_Encoded], plan: Plan) -> None:
        self._pipeline.feed_input("encoded", encoded)
        for name, values in inputs_of(plan, settings=self._settings).items():
            self._pipeline.feed_input(name, values)

    def _rebuild(self, num_rows: int, inside: deque[_Job]) -> None:
        """A new pipeline, which is given again what the one before it had not handed out."""
        self._most_rows = num_rows
        self._pipeline = None  # before another one takes memory
        self._pipeline = build_pipeline(
            self._settings,
            device=self._device,
            decoder=GpuDecoder(self._hw_decoder_load, *decoder_hint(self._source.sizes_N2, num_rows=num_rows)),
            batch_size=num_rows,
            num_threads=self._num_threads,
            depth=_DEPTH,
        )
        self._prime()
        for job in inside:
            self._give(job)

    def _prime(self) -> None:
        """The first call of `schedule_run` runs as many batches as the pipeline is deep: let these be empty ones."""
        border = self._settings.border
        letterbox = None if border is None else Letterbox(_ONE_PIXEL.windows_N4, border)
        for _ in range(_DEPTH):
            self._feed_inputs([_PLACEHOLDER], _ONE_PIXEL._replace(letterbox=letterbox))
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
        begins: dict[int, tuple[int, int]] = {}
        arena = self._free_arena()
        for row in rows:
            try:
                part = self._part(int(plan.ids_N[row]), plan.windows_N4[row], arena)
                if part is not None:
                    begins[row] = part.top, part.left
                content = self._encoded(int(plan.ids_N[row]), arena) if part is None else part.encoded
                encoded.append(np.frombuffer(content, dtype=np.uint8))
            except ValueError as error:
                encoded.append(_PLACEHOLDER)
                bad[row] = str(error)
        return _Files(encoded, bad, begins, arena)

    def _part(self, sample_id: int, window_4: npt.NDArray[np.int64], arena: Arena) -> JpegPart | None:
        """The part of an image that holds its window, of a packed one with restart markers."""
        source = self._source
        if not isinstance(source, PackedSource) or sample_id in self._decoded_here:
            return None
        if self._channels != 3 and not source.is_grey:
            return None
        top, left, height, width = window_4.tolist()
        return source.read_jpeg_part(sample_id, (top, left, height, width), scratch=arena)

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


def decoder_hint(sizes_N2: npt.NDArray[np.int32], *, num_rows: int) -> tuple[int, int]:
    """Height and width that 99 of 100 images have at most, made smaller where a batch of such would take over a GiB.

    Args:
        sizes_N2: int32 (N, 2), height and width; 0 where not known.
        num_rows: Images of a batch, 1 or more.
    """
    known_N2 = sizes_N2[(sizes_N2 > 0).all(axis=1)]
    if len(known_N2) == 0:
        return 1, 1
    height, width = np.quantile(known_N2, _HINT_QUANTILE, axis=0, method="higher")
    factor = min(1.0, (_MOST_HINT_BYTES / (3.0 * num_rows * height * width)) ** 0.5)
    return max(1, int(factor * height)), max(1, int(factor * width))


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
