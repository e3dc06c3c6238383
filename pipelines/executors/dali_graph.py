"""The graph that NVIDIA DALI runs, and what it is fed: the only file that knows DALI's operators.

bytes -> decode the window -> resize -> (border) -> flips -> slot 0: each row's own operation, or none -> slot 1 -> ...

A row passes only through the operations that the plan names for it (DALI's conditionals); the others cost it nothing
but the passing on. Measured on 2 CPU cores, 64 images of 224 px, DALI 2.4, 2026-11-26: brightness, contrast and
saturation in 3 slots take 1.5 ms per image and core; done to every row with neutral parameters, 4.2 ms.

Legend of shape letters: N rows of a plan, K slots, P = 6 parameters of an operation, C channels.
"""

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types

from pipelines.affinity import cores_near, threads_start_on
from pipelines.operations.vocabulary import NUM_PARAMETERS, Operation, Operations, affine_matrices, blur_radius
from pipelines.plan import Plan

_INTERPOLATIONS = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
_GREY_WEIGHTS = (0.2989, 0.587, 0.114)  # torchvision's
_TO_FLOOR = -0.4999  # DALI rounds, torchvision cuts off; whole numbers, even where float32 is a little below, stay

_Floats = npt.NDArray[np.float64]


class GraphSettings(NamedTuple):
    """What the graph does.

    channels: 1 or 3. interpolation: bilinear or bicubic. operations: those that plans can name. num_slots: K of them.
    border: of what plans letterbox, a value per channel; None = they letterbox nothing.
    """

    channels: int
    interpolation: str
    operations: frozenset[Operation] = frozenset()
    num_slots: int = 0
    border: tuple[int, ...] | None = None

    @property
    def carried_out(self) -> list[Operation]:
        """The operations that do anything to images of so many channels."""
        return sorted(self.operations - ({Operation.SATURATION} if self.channels == 1 else set()))

    @property
    def slots(self) -> range:
        """The slots in which there is anything to do."""
        return range(self.num_slots if self.carried_out else 0)


class GpuDecoder(NamedTuple):
    """How JPEGs are decoded on a GPU; on the CPU nothing of it is read.

    load_frac: the part of a batch, 0..1, that the GPU's JPEG decoder takes, where it has one. height_px, width_px: of
    the images for a batch of which that decoder keeps memory from the start.
    """

    load_frac: float
    height_px: int
    width_px: int


def build_pipeline(
    settings: GraphSettings,
    *,
    device: torch.device,
    decoder: GpuDecoder,
    batch_size: int,
    num_threads: int,
    depth: int,
) -> Any:
    """A DALI pipeline, built, whose one output is images uint8 (N, S, S, C).

    Args:
        settings: What it does.
        device: cpu or cuda; where decoding and all that follows happen.
        decoder: Of a GPU.
        batch_size: The most rows of a batch.
        num_threads: DALI's CPU threads; beside a GPU on those cores of this process that are near it.
        depth: Batches that it works on at once.
    """
    pipeline = define_pipeline(
        settings, device=device, decoder=decoder, batch_size=batch_size, num_threads=num_threads, depth=depth
    )
    with warnings.catch_warnings():
        # NPP and cuFFT, which DALI looks for beside a GPU; of its operators remap, debayer and spectrogram need them
        warnings.filterwarnings("ignore", message=".* is no longer shipped with CUDA runtime")
        with threads_start_on(cores_near(device)):
            pipeline.build()
    return pipeline


def define_pipeline(
    settings: GraphSettings,
    *,
    device: torch.device,
    decoder: GpuDecoder,
    batch_size: int,
    num_threads: int,
    depth: int,
) -> Any:
    """The same, not built: for a GPU it can be made where there is none."""
    on_gpu = device.type == "cuda"
    define = pipeline_def(enable_conditionals=bool(settings.operations))(_graph)
    return define(
        settings=settings,
        decoder=decoder if on_gpu else None,
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=_index_of(device) if on_gpu else None,
        prefetch_queue_depth=depth,
    )


def _index_of(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index


def inputs_of(plan: Plan, *, settings: GraphSettings) -> dict[str, npt.NDArray[Any]]:
    """What the graph reads of a plan, by the names of its inputs; all but the images' bytes.

    Args:
        plan: The plan; its shifts are not looked at.
        settings: The graph's; the plan names no operations but `settings.operations`, in `num_slots` slots.
    """
    inputs: dict[str, npt.NDArray[Any]] = {
        "start": np.ascontiguousarray(plan.windows_N4[:, :2], dtype=np.int32),
        "shape": np.ascontiguousarray(plan.windows_N4[:, 2:], dtype=np.int32),
        "size": np.full((len(plan.ids_N), 2), plan.size_px, dtype=np.float32),
        "flip": plan.flips_N.astype(np.int32),
        "vertical_flip": plan.vertical_flips_N.astype(np.int32),
    }
    if plan.letterbox is not None:
        boxes_N4 = plan.letterbox.boxes_N4.astype(np.int32)
        inputs["box_start"], inputs["box_shape"] = -boxes_N4[:, :2], inputs["size"].astype(np.int32)
        inputs["size"] = boxes_N4[:, 2:].astype(np.float32)
    operations = _operations_of(plan, settings=settings)
    for slot in settings.slots:
        inputs[f"code_{slot}"] = operations.codes_NK[:, slot].astype(np.int32)
        for operation in settings.carried_out:
            arguments = _arguments(operations, slot=slot, operation=operation, size_px=plan.size_px)
            inputs[f"{operation.name}_{slot}"] = arguments
    return inputs


def _operations_of(plan: Plan, *, settings: GraphSettings) -> Operations:
    if plan.operations is None or not settings.operations:
        shape = (len(plan.ids_N), settings.num_slots)
        return Operations(np.zeros(shape, dtype=np.int8), np.zeros((*shape, NUM_PARAMETERS)))
    codes_NK = plan.operations.codes_NK
    assert codes_NK.shape[1] == settings.num_slots, (codes_NK.shape, settings)
    named = {Operation(code) for code in np.unique(codes_NK)}
    assert named <= {Operation.IDENTITY, *settings.operations}, (named, settings)
    return plan.operations


def _arguments(operations: Operations, *, slot: int, operation: Operation, size_px: int) -> npt.NDArray[np.float32]:
    """What DALI needs to do `operation` in a slot, float32 (N, ...); 0 in rows that do something else."""
    native = _NATIVE[operation]
    rows_N = operations.codes_NK[:, slot] == operation
    arguments = np.zeros((len(rows_N), *native.shape), dtype=np.float32)
    arguments[rows_N] = native.arguments(operations.values_NKP[rows_N, slot], size_px)
    return arguments


def _graph(*, settings: GraphSettings, decoder: GpuDecoder | None) -> Any:
    images = _finished_windows(settings, decoder=decoder)
    for slot in settings.slots:
        code = fn.external_source(name=f"code_{slot}", dtype=types.INT32, ndim=0)
        for operation in settings.carried_out:
            native = _NATIVE[operation]
            name = f"{operation.name}_{slot}"
            argument = fn.external_source(name=name, dtype=types.FLOAT, ndim=len(native.shape))
            if code == int(operation):
                images = native.carry_out(images, argument=argument, channels=settings.channels)
    return images


def _finished_windows(settings: GraphSettings, *, decoder: GpuDecoder | None) -> Any:
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
        output_type=types.GRAY if settings.channels == 1 else types.RGB,
        adjust_orientation=False,
        **_where_to_decode(decoder),
    )
    interpolation = _INTERPOLATIONS[settings.interpolation]
    images = fn.resize(images, size=size, interp_type=interpolation, antialias=True)
    if settings.border is not None:
        images = fn.slice(
            images,
            start=fn.external_source(name="box_start", dtype=types.INT32, ndim=1),
            shape=fn.external_source(name="box_shape", dtype=types.INT32, ndim=1),
            axes=[0, 1],
            out_of_bounds_policy="pad",
            fill_values=list(settings.border),
        )
    return fn.flip(images, horizontal=flip, vertical=vertical_flip)


def _where_to_decode(decoder: GpuDecoder | None) -> dict[str, Any]:
    """DALI's arguments for a GPU's decoder, or for the CPU."""
    if decoder is None:
        return {"device": "cpu"}
    return {
        "device": "mixed",
        "affine": False,  # its threads stay where build_pipeline starts them; by NVML they would ignore visible devices
        "jpeg_fancy_upsampling": True,  # as libjpeg does; the GPU's default is not
        "hw_decoder_load": decoder.load_frac,
        "preallocate_height_hint": decoder.height_px,
        "preallocate_width_hint": decoder.width_px,
    }


def _affine(images: Any, *, argument: Any, channels: int) -> Any:
    return fn.warp_affine(images, matrix=argument, fill_value=0)


def _brightness(images: Any, *, argument: Any, channels: int) -> Any:
    return fn.brightness(images, brightness=argument, brightness_shift=_TO_FLOOR / 255)


def _contrast(images: Any, *, argument: Any, channels: int) -> Any:
    if channels == 1:
        centre = fn.reductions.mean(images).cpu()
    else:  # this grey is rounded, torchvision's cut off: half a value less in the mean
        grey = fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)
        centre = fn.reductions.mean(grey).cpu() - 0.5
    return fn.brightness_contrast(images, contrast=argument, contrast_center=centre, brightness_shift=_TO_FLOOR / 255)


def _saturation(images: Any, *, argument: Any, channels: int) -> Any:
    """By a matrix: fn.saturation takes as long, and rounds with another grey."""
    return fn.coord_transform(images, MT=argument, dtype=types.UINT8)


def _gaussian_blur(images: Any, *, argument: Any, channels: int) -> Any:
    return fn.gaussian_blur(images, sigma=argument[0], window_size=fn.cast(argument[1], dtype=types.INT32))


def _factors(values_NP: _Floats, size_px: int) -> _Floats:
    return values_NP[:, 0]


def _matrices(values_NP: _Floats, size_px: int) -> _Floats:
    """For DALI, which counts from the corner of the first pixel, not from its centre."""
    matrices = affine_matrices(values_NP, size_px=size_px).reshape(-1, 2, 3)
    matrices[:, :, 2] += 0.5 - 0.5 * (matrices[:, :, 0] + matrices[:, :, 1])
    return matrices


def _colour_matrices(values_NP: _Floats, size_px: int) -> _Floats:
    """Each colour blended with grey; torchvision's grey is cut off, which makes it half a value less in the mean."""
    factors_N11 = values_NP[:, 0, None, None]
    matrices = factors_N11 * np.eye(3) + (1 - factors_N11) * np.tile(_GREY_WEIGHTS, (3, 1))
    offsets = np.tile(_TO_FLOOR - 0.5 * (1 - factors_N11), (1, 3, 1))
    return np.concatenate([matrices, offsets], axis=2)


def _sigmas_and_windows(values_NP: _Floats, size_px: int) -> _Floats:
    window = 2 * blur_radius(size_px) + 1
    return np.stack([values_NP[:, 0], np.full(len(values_NP), window)], axis=1)


class _Native(NamedTuple):
    """An operation in DALI: from its parameters float64 (N, P) an argument (N, *shape), and from that the pixels."""

    shape: tuple[int, ...]
    arguments: Callable[[_Floats, int], _Floats]
    carry_out: Callable[..., Any]


_NATIVE = {  # pipelines.operations.vocabulary.NATIVE_OPERATIONS
    Operation.AFFINE: _Native((2, 3), _matrices, _affine),
    Operation.BRIGHTNESS: _Native((), _factors, _brightness),
    Operation.CONTRAST: _Native((), _factors, _contrast),
    Operation.SATURATION: _Native((3, 4), _colour_matrices, _saturation),
    Operation.GAUSSIAN_BLUR: _Native((2,), _sigmas_and_windows, _gaussian_blur),
}
