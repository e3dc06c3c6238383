"""Loaders whose batches end on a device, normalised in half precision, each written as its own people write it.

JPEG files -> RandomResizedCrop, flip -> normalised -> float16 (N, C, H, W) on the device

A builder imports what it needs and says what is to happen; only the first epoch builds pipelines and starts threads or
processes, so that memory on a GPU can be told from one turn to the next. What is handed out is valid until the next
batch is asked for.

Legend of shape letters: N images of a batch, C channels, H and W height and width.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from benchmarks.peers_job import Epoch, ImagenetJob

if TYPE_CHECKING:
    from pipelines.execution import Executor
    from pipelines.source import Source
    from pipelines.tail import Tail

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_AHEAD = 2  # batches within a DALI pipeline: its own default, and what pipelines/executors/dali.py takes
_NUM_PREFETCHED = 2  # batches that ours prepare ahead: the default of loader.prefetch_batches
_LOADS = (0, 65, 80, 90, 100)  # percent of a batch
_SUFFIX = re.compile(r"(?:(?P<base>.+)_)?threads_(?P<num>[1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class GpuJob:
    """JPEG files -> RandomResizedCrop (bilinear, antialiased), flip -> normalised float16 batches on the device.

    images: what is cut out of which files, each named once. tree: an image folder of the same files.
    device: cpu or cuda, with its index. num_batches: of an epoch, which goes over the files as often as it takes.
    """

    images: ImagenetJob
    tree: Path
    device: torch.device
    num_batches: int

    @property
    def on_gpu(self) -> bool:
        """Whether batches end on a GPU."""
        return self.device.type == "cuda"

    @property
    def ids_N(self) -> npt.NDArray[np.int64]:
        """The files of an epoch, by their places in `images.paths`."""
        return np.arange(self.num_batches * self.images.batch_size) % len(self.images.paths)


# --- DALI, written by hand


class HandWritten:
    """Epochs of a DALI pipeline, which is built and made warm when the first one is asked for.

    Args:
        job: Of which batch size, threads and device are read.
        graph: Makes the graph, of one output.
        feed: Gives a pipeline the inputs of one more batch; None = its graph reads files itself.
    """

    def __init__(self, job: GpuJob, graph: Callable[[], Any], *, feed: Callable[[Any], None] | None = None) -> None:
        from nvidia.dali import pipeline_def

        define: Any = pipeline_def(graph)
        device_id = job.device.index if job.on_gpu else None
        images = job.images
        self.pipeline = define(batch_size=images.batch_size, num_threads=images.num_threads, device_id=device_id)
        self._num_batches = job.num_batches
        self._feed = feed
        self._is_warm = False

    def __call__(self) -> Iterator[Tensor]:
        """The batches of one epoch, in DALI's own memory."""
        if not self._is_warm:
            self._warm_up()
        # Not pipeline.run(): it goes on with the next epoch, so that two batches of the next one would cost nothing.
        for _ in range(min(_AHEAD, self._num_batches)):
            self._schedule()
        for batch in range(self._num_batches):
            (output,) = self.pipeline.share_outputs()
            yield from_dlpack(output.as_tensor())
            self.pipeline.release_outputs()
            if batch + _AHEAD < self._num_batches:
                self._schedule()

    def _warm_up(self) -> None:
        """The first call of `schedule_run` runs as many batches as DALI works ahead, and only that one."""
        self.pipeline.build()
        for _ in range(_AHEAD):
            self._feed_one()
        self.pipeline.schedule_run()
        for _ in range(_AHEAD):
            self.pipeline.share_outputs()
            self.pipeline.release_outputs()
        self._is_warm = True

    def _schedule(self) -> None:
        self._feed_one()
        self.pipeline.schedule_run()

    def _feed_one(self) -> None:
        if self._feed is not None:
            self._feed(self.pipeline)


def build_hand(job: GpuJob, **decoder: Any) -> HandWritten:
    """As NVIDIA's ImageNet examples have it; `decoder` are options of its decoder, by their names there."""
    return HandWritten(job, lambda: _normalise(_decode_windows(_read_files(job), job, **decoder)))


def build_hand_full(job: GpuJob) -> HandWritten:
    """The same, but it decodes whole images and crops afterwards."""
    return HandWritten(job, lambda: _normalise(_decode_whole(_read_files(job), job)))


def build_hand_fed(job: GpuJob) -> HandWritten:
    """The same, but fed from Python, with the bytes of files that lie in memory already."""
    from nvidia.dali import fn, types

    files = [np.fromfile(path, dtype=np.uint8) for path in job.images.paths]
    rng = np.random.default_rng(0)

    def graph() -> Any:
        encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
        return _normalise(_decode_windows(encoded, job))

    def feed(pipeline: Any) -> None:
        chosen = rng.integers(len(files), size=job.images.batch_size)
        pipeline.feed_input("encoded", [files[place] for place in chosen])

    return HandWritten(job, graph, feed=feed)


def build_hand_tail(job: GpuJob) -> Epoch:
    """The same, but bytes come out of DALI, and the tail of ours normalises them."""
    from nvidia.dali import fn

    def graph() -> Any:
        return fn.flip(_decode_windows(_read_files(job), job), horizontal=fn.random.coin_flip())

    return partial(_normalised_by_tail, HandWritten(job, graph), _build_tail(job), device=job.device)


def _normalised_by_tail(images_NHWC: Epoch, tail: "Tail", *, device: torch.device) -> Iterator[Tensor]:
    from pipelines.effects import Effects

    for bytes_NHWC in images_NHWC():
        (images_NCHW,) = tail(bytes_NHWC, Effects())
        halves_NCHW = images_NCHW.half()
        if device.type == "cuda":
            torch.cuda.current_stream(device).synchronize()  # DALI is about to write into `bytes_NHWC` again
        yield halves_NCHW


def _read_files(job: GpuJob) -> Any:
    from nvidia.dali import fn

    encoded, _ = fn.readers.file(files=list(job.images.paths), random_shuffle=True)
    return encoded


def _decode_windows(encoded: Any, job: GpuJob, **decoder: Any) -> Any:
    """uint8 (S, S, C), of which nothing but the window was decoded, where the decoder can."""
    from nvidia.dali import fn

    images = job.images
    windows = fn.decoders.image_random_crop(
        encoded,
        device=_where(job),
        random_area=list(images.area_frac),
        random_aspect_ratio=list(images.aspect_ratio),
        **decoder,
    )
    return fn.resize(windows, size=[images.size_px, images.size_px])  # bilinear, antialiased


def _decode_whole(encoded: Any, job: GpuJob) -> Any:
    from nvidia.dali import fn

    images = job.images
    return fn.random_resized_crop(
        fn.decoders.image(encoded, device=_where(job)),
        size=[images.size_px, images.size_px],
        random_area=list(images.area_frac),
        random_aspect_ratio=list(images.aspect_ratio),
    )


def _normalise(images: Any) -> Any:
    from nvidia.dali import fn, types

    return fn.crop_mirror_normalize(
        images,
        dtype=types.FLOAT16,
        output_layout="CHW",
        mean=[255 * value for value in MEAN],
        std=[255 * value for value in STD],
        mirror=fn.random.coin_flip(),
    )


def _where(job: GpuJob) -> str:
    return "mixed" if job.on_gpu else "cpu"  # mixed: bytes on the CPU, pixels on the GPU


# --- ours


def build_dali(job: GpuJob, *, hw_decoder_load: float = 1.0) -> Epoch:
    """DALI told what to do by the plan, on the device of the batches; then the tail."""
    return _build_dali(job, _load_source(job), device=job.device, hw_decoder_load=hw_decoder_load)


def build_dali_packed(job: GpuJob) -> Epoch:
    """The same from shards, made now: JPEG at its size, quality 90, with restart markers."""
    from benchmarks.ours import pack_images

    packed = pack_images(replace(job.images, num_threads=min(4, job.images.num_threads)))
    return _build_dali(job, packed.take(job.ids_N), device=job.device)


def build_dali_cpu(job: GpuJob) -> Epoch:
    """DALI on the CPU, told what to do by the plan; then the transfer, and the tail on the device."""
    return _build_dali(job, _load_source(job), device=torch.device("cpu"))


def build_threads(job: GpuJob) -> Epoch:
    """Threads on the CPU; then the transfer, and the tail on the device."""
    from pipelines.executors.threads import ThreadsExecutor

    source = _load_source(job)
    executor = ThreadsExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        num_threads=job.images.num_threads,
        num_prefetched=_NUM_PREFETCHED,
        pin_memory=job.on_gpu,
    )
    return _finished(job, source, executor)


def build_feeding_only(job: GpuJob) -> Epoch:
    """No loader but what Python does for `dali`: plans, files read, inputs fed; its graph decodes nothing.

    Batches are int32 (N, 8), sizes of files and what else was fed, on the CPU.
    """
    from benchmarks.ours import plan_images
    from pipelines.executors.dali import DaliExecutor

    source, cpu = _load_source(job), torch.device("cpu")
    executor = DaliExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        device=cpu,
        num_threads=job.images.num_threads,
        num_prefetched=_NUM_PREFETCHED,
    )
    # The executor's own reading and feeding are to be timed, so its pipeline is another one from the start.
    executor._pipeline = HandWritten(replace(job, device=cpu), _pass_inputs_on).pipeline
    executor._pipeline.build()
    executor._most_rows = job.images.batch_size
    executor._prime()
    plans = plan_images(source, job.images)
    return lambda: (carried.images_NHWC for carried in executor.run(plans()))


def _pass_inputs_on() -> Any:
    """The inputs of pipelines/executors/dali_graph.py -> int32 (8,) for each image, its bytes' size first."""
    from nvidia.dali import fn, types

    encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1, no_copy=True)
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    size = fn.cast(fn.external_source(name="size", dtype=types.FLOAT, ndim=1), dtype=types.INT32)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    vertical_flip = fn.external_source(name="vertical_flip", dtype=types.INT32, ndim=0)
    return fn.cat(encoded.shape(dtype=types.INT32), start, shape, size, fn.stack(flip + vertical_flip))


def _load_source(job: GpuJob) -> "Source":
    """The files of an epoch, each as often as it comes."""
    from pipelines.sources.scan import scan_folder

    return scan_folder(str(job.tree), show_progress=False)["train"].take(job.ids_N)


def _build_dali(job: GpuJob, source: "Source", *, device: torch.device, hw_decoder_load: float = 1.0) -> Epoch:
    from pipelines.executors.dali import DaliExecutor

    executor = DaliExecutor(
        source,
        channels=3,
        interpolation="bilinear",
        device=device,
        num_threads=job.images.num_threads,
        num_prefetched=_NUM_PREFETCHED,
        hw_decoder_load=hw_decoder_load,
    )
    return _finished(job, source, executor)


def _finished(job: GpuJob, source: "Source", executor: "Executor") -> Epoch:
    """Plans, what an executor makes of them, transfer and tail, as in pipelines/loader.py."""
    from benchmarks.ours import plan_images
    from pipelines.effects import Effects
    from pipelines.transfer import Transfer

    plans, transfer, tail = plan_images(source, job.images), Transfer(job.device), _build_tail(job)

    def batches() -> Iterator[Tensor]:
        for carried in executor.run(plans()):
            assert not carried.bad, "the files are whole"
            (images_NCHW,) = tail(transfer.start(carried.images_NHWC), Effects())
            transfer.mark_read()
            try:
                yield images_NCHW.half()
            finally:
                transfer.wait_for_copy()

    return batches


def _build_tail(job: GpuJob) -> "Tail":
    from pipelines.parallel import RowPool
    from pipelines.tail import Tail

    pool = RowPool(1 if job.on_gpu else job.images.num_threads)
    return Tail(mean=MEAN, std=STD, device=job.device, dtype=torch.float32, pool=pool)


# --- timm


def build_timm(job: GpuJob) -> Epoch:
    """Timm's dataset and loader, as its train.py calls them (with --pin-mem and float16 on a GPU)."""
    import timm.data

    timm_data: Any = timm.data
    dataset = timm_data.ImageDataset(str(job.tree / "train"))
    samples = dataset.reader.samples
    dataset.reader.samples = [samples[place] for place in job.ids_N]
    images = job.images
    loader = timm_data.create_loader(
        dataset,
        input_size=(3, images.size_px, images.size_px),
        batch_size=images.batch_size,
        is_training=True,
        scale=images.area_frac,
        ratio=images.aspect_ratio,
        color_jitter=None,
        interpolation="bilinear",
        mean=MEAN,
        std=STD,
        num_workers=images.num_threads,
        pin_memory=job.on_gpu,
        img_dtype=torch.float16,
        device=job.device,
        use_prefetcher=job.on_gpu,  # it normalises on the GPU; without it the workers do, in float32
        persistent_workers=True,
    )
    return lambda: (images_NCHW.half() for images_NCHW, _ in loader)


# --- all of them

CONTENDERS: dict[str, Callable[[GpuJob], Epoch]] = {
    "hand": build_hand,
    "hand_tail": build_hand_tail,
    "hand_fed": build_hand_fed,
    "hand_full": build_hand_full,
    **{f"hand_load_{percent}": partial(build_hand, hw_decoder_load=percent / 100) for percent in _LOADS},
    "hand_fancy": partial(build_hand, jpeg_fancy_upsampling=True),
    "dali": build_dali,
    "dali_load_65": partial(build_dali, hw_decoder_load=0.65),
    "dali_load_90": partial(build_dali, hw_decoder_load=0.9),
    "dali_packed": build_dali_packed,
    "dali_cpu": build_dali_cpu,
    "threads": build_threads,
    "timm": build_timm,
    "feeding_only": build_feeding_only,
}
CPU_BOUND = ("threads", "dali_cpu")  # as fast as there are threads, whatever the device
NO_IMAGES = ("feeding_only",)  # hands no images out


def split_name(name: str) -> tuple[str, int | None]:
    """The contender and its number of threads, None = as many as the others: threads_4, dali_cpu_threads_4.

    Raises:
        ValueError: There is no such contender.
    """
    from configs.nearest import nearest

    if name in CONTENDERS:
        return name, None
    match = _SUFFIX.fullmatch(name)
    base = "" if match is None else match["base"] or "threads"
    if match is None or base not in CONTENDERS:
        valid = nearest(name, list(CONTENDERS), if_many=None)
        raise ValueError(f"there is no contender {name!r}; {valid}; or one of these with threads, as dali_threads_4.")
    return base, int(match["num"])
