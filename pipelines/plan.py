"""Everything random about a sample, decided before any pixel is touched.

(seed, epoch, sample ids, image sizes) -> Plan -> an executor carries it out

Legend of shape letters: N rows of a plan, one per sample and view; 2 and 4 the numbers that a field's docstring names.

The geometry of every sample is the same three steps, so that one executor serves training and evaluation:

    window of the stored image -> resize to size x size -> shift (border by reflection) -> flip left-right, up-down

A letterboxed window is resized to fit into size x size and gets a border to fill it; then it goes on the same way.
"""

from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.counter import Stream, random_bits, random_uniform
from pipelines.operations.drawing import Step, draw_operations
from pipelines.operations.vocabulary import Operations

PLAN_VERSION = 1  # a change of any number drawn here or in order.py raises it: old positions are refused then

_NUM_CROP_TRIES = 10  # as torchvision's RandomResizedCrop


class Letterbox(NamedTuple):
    """Where in the output each window lies, and what lies around it.

    boxes_N4: int64 (N, 4), top, left, height, width in pixels of the output, which the resized window fills.
    border: The value of each channel beside the box, 0..255.
    """

    boxes_N4: npt.NDArray[np.int64]
    border: tuple[int, ...]

    def rows(self, rows: list[int]) -> "Letterbox":
        """Some of the rows."""
        return self._replace(boxes_N4=self.boxes_N4[rows])


class Plan(NamedTuple):
    """The geometry of N images, on the host.

    ids_N: int64 (N,), sample ids; with several views, first all samples for view 0, then all again for view 1, ...
    windows_N4: int64 (N, 4), top, left, height, width in pixels of the stored image.
    shifts_N2: int64 (N, 2), down and right, in pixels of the output.
    flips_N: bool (N,), left-right.
    vertical_flips_N: bool (N,), up-down.
    size_px: height and width of the output.
    num_views: views per sample; N = samples * num_views.
    operations: what is then done to the pixels; None = nothing.
    letterbox: where windows lie in the output; None = they fill it.
    own_seeds_N: int64 (N,), at least 0, what the user's own pipeline is seeded with; None = there is none.
    """

    ids_N: npt.NDArray[np.int64]
    windows_N4: npt.NDArray[np.int64]
    shifts_N2: npt.NDArray[np.int64]
    flips_N: npt.NDArray[np.bool_]
    vertical_flips_N: npt.NDArray[np.bool_]
    size_px: int
    num_views: int = 1
    operations: Operations | None = None
    letterbox: Letterbox | None = None
    own_seeds_N: npt.NDArray[np.int64] | None = None


class Fit(NamedTuple):
    """The window of evaluation: `fit` crop = centred square of `crop_frac` of the short side, else the whole image.

    squash stretches it to the output; letterbox keeps its shape, and `border` fills the rest.

    border: A value per channel, 0..255; read with letterbox alone.
    """

    fit: Literal["crop", "squash", "letterbox"]
    crop_frac: float
    border: tuple[int, ...] = ()


class Augmentation(NamedTuple):
    """How training images are drawn; the fields are those of configs.schema.AugmentConfig.

    operations: the steps that draw what is done to pixels.
    own_pipeline: whether seeds are drawn for a pipeline of the user's own.
    """

    crop: Literal["none", "pad", "rrc"] = "none"
    pad_px: int = 0
    rrc_scale: tuple[float, float] = (0.08, 1.0)
    rrc_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: Literal["none", "random", "alternating"] = "none"
    vertical_flip_prob: float = 0.0
    operations: tuple[Step, ...] = ()
    own_pipeline: bool = False


def plan_evaluation(ids_N: npt.NDArray[np.int64], *, sizes_N2: npt.NDArray[np.int32], fit: Fit, size_px: int) -> Plan:
    """The plan without chance.

    Args:
        ids_N: int64 (N,), sample ids.
        sizes_N2: int32 (N, 2), height and width of each stored image; 0, 0 (not known) counts as one pixel.
        fit: Which window to take.
        size_px: Height and width of the output.
    """
    count, sizes_N2 = len(ids_N), np.maximum(sizes_N2, 1)
    return Plan(
        ids_N=ids_N,
        windows_N4=_evaluation_windows(sizes_N2, fit=fit),
        shifts_N2=np.zeros((count, 2), dtype=np.int64),
        flips_N=np.zeros(count, dtype=np.bool_),
        vertical_flips_N=np.zeros(count, dtype=np.bool_),
        size_px=size_px,
        letterbox=Letterbox(_boxes(sizes_N2, size_px=size_px), fit.border) if fit.fit == "letterbox" else None,
    )


def plan_training(
    ids_N: npt.NDArray[np.int64],
    *,
    copies_N: npt.NDArray[np.int64],
    sizes_N2: npt.NDArray[np.int32],
    fit: Fit,
    augmentation: Augmentation,
    seed: int,
    epoch: int,
    size_px: int,
    num_views: int = 1,
) -> Plan:
    """The plan of an epoch for the samples `ids_N`; each row depends on (seed, epoch, its id, copy and view) alone.

    Args:
        ids_N: int64 (N,), sample ids; here N counts samples, and the plan has N * num_views rows.
        copies_N: int64 (N,), how often the sample has been met before in this epoch.
        sizes_N2: int32 (N, 2), height and width of each stored image; 0, 0 (not known) counts as one pixel.
        fit: The window where no crop is drawn.
        augmentation: What is drawn.
        seed: The run's.
        epoch: The epoch.
        size_px: Height and width of the output.
        num_views: Views per sample, each with draws of its own.
    """
    copies_N = np.concatenate([copies_N * num_views + view for view in range(num_views)])
    ids_N, sizes_N2 = np.tile(ids_N, num_views), np.maximum(np.tile(sizes_N2, (num_views, 1)), 1)
    plan = plan_evaluation(ids_N, sizes_N2=sizes_N2, fit=fit, size_px=size_px)._replace(num_views=num_views)
    flips_N = _draw_flips(ids_N, copies_N, flip=augmentation.flip, seed=seed, epoch=epoch)
    plan, keys_N = plan._replace(flips_N=flips_N), draw_keys(epoch, copies_N)
    if augmentation.vertical_flip_prob > 0:
        draws = random_uniform(seed, Stream.VERTICAL_FLIP, keys_N, ids_N)
        plan = plan._replace(vertical_flips_N=draws < augmentation.vertical_flip_prob)
    if augmentation.crop == "rrc":
        windows_N4 = _draw_rrc(ids_N, keys_N, sizes_N2, augmentation=augmentation, seed=seed)
        plan = plan._replace(windows_N4=windows_N4, letterbox=None)
    if augmentation.crop == "pad":
        span = 2 * augmentation.pad_px + 1
        draws = random_uniform(seed, Stream.SHIFT, keys_N[:, None], ids_N[:, None], np.arange(2))
        plan = plan._replace(shifts_N2=np.floor(draws * span).astype(np.int64) - augmentation.pad_px)
    if augmentation.operations:
        plan = plan._replace(
            operations=draw_operations(augmentation.operations, ids_N=ids_N, keys_N=keys_N, seed=seed, size_px=size_px)
        )
    if augmentation.own_pipeline:
        bits_N = random_bits(seed, Stream.OWN, keys_N, ids_N)
        plan = plan._replace(own_seeds_N=(bits_N >> np.uint64(1)).astype(np.int64))  # numpy takes no seed below 0
    return plan


def rows_of(plan: Plan, rows: list[int]) -> Plan:
    """Some rows of a plan as a plan of their own, of one view."""
    return plan._replace(
        ids_N=plan.ids_N[rows],
        windows_N4=plan.windows_N4[rows],
        shifts_N2=plan.shifts_N2[rows],
        flips_N=plan.flips_N[rows],
        vertical_flips_N=plan.vertical_flips_N[rows],
        num_views=1,
        operations=plan.operations and plan.operations.rows(rows),
        letterbox=plan.letterbox and plan.letterbox.rows(rows),
        own_seeds_N=None if plan.own_seeds_N is None else plan.own_seeds_N[rows],
    )


def draw_keys(epoch: int, copies_N: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The counter of (epoch, copy), int64 (N,): the copy stands above the lowest 32 bits, so copy 0 is the epoch."""
    return epoch + (copies_N << 32)


def _evaluation_windows(sizes_N2: npt.NDArray[np.int32], *, fit: Fit) -> npt.NDArray[np.int64]:
    heights, widths = sizes_N2[:, 0].astype(np.int64), sizes_N2[:, 1].astype(np.int64)
    if fit.fit != "crop":
        zeros = np.zeros_like(heights)
        return np.stack([zeros, zeros, heights, widths], axis=1)
    side = np.maximum(np.rint(np.minimum(heights, widths) * fit.crop_frac), 1).astype(np.int64)
    tops, lefts = (np.rint((length - side) / 2).astype(np.int64) for length in (heights, widths))  # as torchvision
    return np.stack([tops, lefts, side, side], axis=1)


def _boxes(sizes_N2: npt.NDArray[np.int32], *, size_px: int) -> npt.NDArray[np.int64]:
    """The largest box of each image's shape that fits into the output, in its centre, int64 (N, 4)."""
    long_sides_N1 = sizes_N2.max(axis=1, keepdims=True)
    sides_N2 = np.maximum(np.rint(size_px * sizes_N2.astype(np.int64) / long_sides_N1).astype(np.int64), 1)
    return np.concatenate([(size_px - sides_N2) // 2, sides_N2], axis=1)


def _draw_flips(
    ids_N: npt.NDArray[np.int64], copies_N: npt.NDArray[np.int64], *, flip: str, seed: int, epoch: int
) -> npt.NDArray[np.bool_]:
    if flip == "none":
        return np.zeros(len(ids_N), dtype=np.bool_)
    keys_N = draw_keys(epoch if flip == "random" else 0, copies_N)
    heads_N: npt.NDArray[np.bool_] = random_bits(seed, Stream.FLIP, keys_N, ids_N) >= np.uint64(2**63)
    return np.logical_xor(heads_N, flip == "alternating" and epoch % 2 == 1)


def _draw_rrc(
    ids_N: npt.NDArray[np.int64],
    keys_N: npt.NDArray[np.int64],
    sizes_N2: npt.NDArray[np.int32],
    *,
    augmentation: Augmentation,
    seed: int,
) -> npt.NDArray[np.int64]:
    """Random-resized-crop as torchvision draws it: ten tries, the first that fits, else the largest centred window."""
    heights, widths = sizes_N2[:, 0].astype(np.int64)[:, None], sizes_N2[:, 1].astype(np.int64)[:, None]
    tries = np.arange(_NUM_CROP_TRIES)[None, :, None]
    keys, ids = keys_N[:, None, None], ids_N[:, None, None]
    draws = random_uniform(seed, Stream.CROP, keys, ids, tries, np.arange(4)[None, None, :])
    low, high = augmentation.rrc_scale
    areas = heights * widths * (low + (high - low) * draws[..., 0])
    log_low, log_high = np.log(augmentation.rrc_ratio)
    ratios = np.exp(log_low + (log_high - log_low) * draws[..., 1])
    try_widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    try_heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (try_widths > 0) & (try_widths <= widths) & (try_heights > 0) & (try_heights <= heights)
    tops = np.floor(draws[..., 2] * (heights - try_heights + 1)).astype(np.int64)
    lefts = np.floor(draws[..., 3] * (widths - try_widths + 1)).astype(np.int64)
    windows = np.stack([tops, lefts, try_heights, try_widths], axis=2)
    chosen = windows[np.arange(len(ids_N)), fits.argmax(axis=1)]
    fallback = _widest_windows(heights[:, 0], widths[:, 0], ratio=augmentation.rrc_ratio)
    return np.where(fits.any(axis=1)[:, None], chosen, fallback)


def _widest_windows(
    heights: npt.NDArray[np.int64], widths: npt.NDArray[np.int64], *, ratio: tuple[float, float]
) -> npt.NDArray[np.int64]:
    """The largest centred window whose width / height lies within `ratio`, int64 (N, 4)."""
    image_ratio = widths / heights
    crop_heights = np.where(image_ratio < ratio[0], np.rint(widths / ratio[0]), heights).astype(np.int64)
    crop_widths = np.where(image_ratio > ratio[1], np.rint(heights * ratio[1]), widths).astype(np.int64)
    crop_heights, crop_widths = np.maximum(crop_heights, 1), np.maximum(crop_widths, 1)
    return np.stack([(heights - crop_heights) // 2, (widths - crop_widths) // 2, crop_heights, crop_widths], axis=1)
