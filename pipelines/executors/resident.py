"""Data that fits: all images decoded once, held as uint8 on the device; crop and flip are batched torch.

source -> decode all (threads) -> store (N, H, W, C) | plan -> gather, resize where windows vary, shift, flip

Legend of shape letters: N samples of a batch, M or N images of the store, H height, W width, C channels, S height and
width of the result, L length of a row or column.

Where the window of an image is the same in every epoch, the store holds the window already resized.
"""

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from pipelines.geometry import carry_out
from pipelines.parallel import map_in_threads
from pipelines.plan import Plan
from pipelines.source import Source

_NUM_NAMED = 5  # how many unreadable images an error names
_CUBIC_A = -0.5  # as Pillow and torch with antialias


class ResidentExecutor:
    """Carries plans out on the device that holds the store.

    Args:
        store_NHWC: uint8 (N, H, W, C) on the device.
        size_px: Height and width of the images handed out.
        interpolation: bilinear or bicubic.
        windows: drawn = windows of the plan are cut from the store; stored = the store holds them, S x S.
    """

    def __init__(
        self, store_NHWC: Tensor, *, size_px: int, interpolation: str, windows: Literal["drawn", "stored"]
    ) -> None:
        self._store = store_NHWC
        self._size_px = size_px
        self._interpolation = interpolation
        self._windows_are_stored = windows == "stored"

    def run(self, plans: Iterable[Plan]) -> Iterator[Tensor]:
        """The images of each plan in turn, uint8 (N, S, S, C) on the device."""
        for plan in plans:
            yield self._carry_out(plan)

    def _carry_out(self, plan: Plan) -> Tensor:
        device = self._store.device
        ids_N = torch.from_numpy(np.array(plan.ids_N)).to(device)
        if self._windows_are_stored:
            images, rows_N = self._store, ids_N
        else:
            windows_N4 = torch.from_numpy(plan.windows_N4).to(device)
            images = resize_windows(
                self._store[ids_N], windows_N4, size_px=self._size_px, interpolation=self._interpolation
            )
            rows_N = torch.arange(len(ids_N), device=device)
        if not plan.shifts_N2.any() and not plan.flips_N.any():
            return images[rows_N] if self._windows_are_stored else images
        shifts_N2 = torch.from_numpy(plan.shifts_N2).to(device)
        flips_N = torch.from_numpy(plan.flips_N).to(device)
        return shift_and_flip(images, rows_N=rows_N, shifts_N2=shifts_N2, flips_N=flips_N)


def load_store(
    source: Source, *, channels: int, windows: Plan | None, size_px: int, interpolation: str, show_progress: bool
) -> Tensor:
    """Every image of the source, decoded by threads.

    Args:
        source: The images.
        channels: 1 or 3.
        windows: A plan for all samples in order, whose windows are stored resized; None stores images as they are.
        size_px: Height and width of resized windows.
        interpolation: bilinear or bicubic.
        show_progress: Whether to draw a progress bar.

    Returns:
        uint8 (N, H, W, C) on the CPU.

    Raises:
        ValueError: Images that cannot be read, named.
    """
    num_samples = len(source.labels_N)
    height, width = source.sizes_N2[0] if windows is None else (size_px, size_px)
    store = np.empty((num_samples, height, width, channels), dtype=np.uint8)

    def load(sample_id: int) -> str | None:
        try:
            pixels = source.read_image(sample_id, channels=channels)
        except ValueError as error:
            return str(error)
        if windows is not None:
            pixels = carry_out(
                pixels, plan=windows, row=sample_id, size_px=size_px, interpolation=interpolation
            ).numpy()
        store[sample_id] = pixels
        return None

    errors = map_in_threads(load, range(num_samples), title="decoding", unit="image", show_progress=show_progress)
    bad = [error for error in errors if error is not None]
    if bad:
        raise ValueError(
            f"{len(bad)} of {num_samples} images cannot be read:\n  "
            + "\n  ".join(bad[:_NUM_NAMED] + ["..."] * (len(bad) > _NUM_NAMED))
            + "\nRemove or replace them."
        )
    return torch.from_numpy(store)


def shift_and_flip(images_MHWC: Tensor, *, rows_N: Tensor, shifts_N2: Tensor, flips_N: Tensor) -> Tensor:
    """Rows of `images_MHWC`, shifted (border by reflection), then flipped left-right.

    Args:
        images_MHWC: uint8 (M, S, S, C).
        rows_N: int64 (N,), which image each result is made from.
        shifts_N2: int64 (N, 2), down and right, each below S.
        flips_N: bool (N,).

    Returns:
        uint8 (N, S, S, C), on the device of the images.
    """
    size = images_MHWC.shape[1]
    line = torch.arange(size, device=images_MHWC.device)
    ys_NS = _reflect(line + shifts_N2[:, :1], size=size)
    xs_NS = _reflect(line + shifts_N2[:, 1:], size=size)
    xs_NS = torch.where(flips_N[:, None], xs_NS.flip(1), xs_NS)
    return images_MHWC[rows_N[:, None, None], ys_NS[:, :, None], xs_NS[:, None, :]]


def resize_windows(images_NHWC: Tensor, windows_N4: Tensor, *, size_px: int, interpolation: str) -> Tensor:
    """Each image's window, resized with antialiasing: columns, rounding (halves up), rows, rounding, as torch does.

    Args:
        images_NHWC: uint8 (N, H, W, C).
        windows_N4: int64 (N, 4), top, left, height, width.
        size_px: Height and width of the result.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 (N, size_px, size_px, C).
    """
    tops_N, lefts_N, heights_N, widths_N = windows_N4.unbind(1)
    _, height, width, _ = images_NHWC.shape
    across = _filter_weights(lefts_N, widths_N, length=width, size_px=size_px, interpolation=interpolation)
    down = _filter_weights(tops_N, heights_N, length=height, size_px=size_px, interpolation=interpolation)
    columns = torch.einsum("nhwc,nsw->nhsc", images_NHWC.float(), across).add_(0.5).floor_().clamp_(0, 255)
    return torch.einsum("nhsc,nth->ntsc", columns, down).add_(0.5).floor_().clamp_(0, 255).to(torch.uint8)


def _filter_weights(starts_N: Tensor, spans_N: Tensor, *, length: int, size_px: int, interpolation: str) -> Tensor:
    """float32 (N, size_px, length): how much each stored pixel counts in each pixel of the result."""
    device = starts_N.device
    scale_N11 = (spans_N.double() / size_px)[:, None, None]
    centres_NS1 = (torch.arange(size_px, device=device).double() + 0.5)[None, :, None] * scale_N11
    places_N1L = torch.arange(length, device=device)[None, None, :] - starts_N[:, None, None]
    distance_NSL = (places_N1L + 0.5 - centres_NS1) / scale_N11.clamp(min=1.0)
    weights_NSL = _cubic(distance_NSL) if interpolation == "bicubic" else (1 - distance_NSL.abs()).clamp(min=0)
    inside_N1L = (places_N1L >= 0) & (places_N1L < spans_N[:, None, None])
    weights_NSL = weights_NSL * inside_N1L
    return (weights_NSL / weights_NSL.sum(2, keepdim=True)).float()


def _cubic(distance: Tensor) -> Tensor:
    x = distance.abs()
    near = ((_CUBIC_A + 2) * x - (_CUBIC_A + 3)) * x * x + 1
    far = ((_CUBIC_A * x - 5 * _CUBIC_A) * x + 8 * _CUBIC_A) * x - 4 * _CUBIC_A
    return torch.where(x < 1, near, torch.where(x < 2, far, torch.zeros_like(x)))


def _reflect(places: Tensor, *, size: int) -> Tensor:
    """Indices mirrored at the borders, the border pixel itself not repeated."""
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)
