"""Data that fits: all images decoded once, held as uint8 on the device; crop and flip by a kernel or batched torch.

source -> decode all (threads) -> store (N, H, W, C) | plan -> gather, resize where windows vary, shift, flip

Legend of shape letters: N samples of a batch, M or N images of the store, H height, W width, C channels, S height and
width of the result, L length of a row or column.

Where the window of an image is the same in every epoch, the store holds the window already resized.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipelines.execution import Carried
from pipelines.geometry import carry_out, shift_and_flip
from pipelines.kernels import shift_and_flip_rows
from pipelines.parallel import RowPool, map_in_threads
from pipelines.plan import Plan
from pipelines.source import Source

_CUBIC_A = -0.5  # as Pillow and torch with antialias


class Store(NamedTuple):
    """Every image of a source.

    images_NHWC: uint8 (N, H, W, C); zeros where the image could not be read.
    bad: those samples, and why.
    """

    images_NHWC: Tensor
    bad: Mapping[int, str]


class ResidentExecutor:
    """Carries plans out on the device that holds the store.

    Args:
        store: The images, on the device.
        interpolation: bilinear or bicubic.
        windows: drawn = windows of the plan are cut from the store; stored = the store holds them, S x S.
        pool: Threads for the CPU's kernel.
    """

    def __init__(self, store: Store, *, interpolation: str, windows: Literal["drawn", "stored"], pool: RowPool) -> None:
        self._store = store.images_NHWC
        self._bad = store.bad
        self._bad_ids = np.array(sorted(store.bad), dtype=np.int64)
        self._interpolation = interpolation
        self._windows_are_stored = windows == "stored"
        self._pool = pool

    def run(self, plans: Iterable[Plan]) -> Iterator[Carried]:
        """Each plan carried out, images uint8 (N, S, S, C) on the device."""
        for plan in plans:
            rows = np.flatnonzero(np.isin(plan.ids_N, self._bad_ids)).tolist() if len(self._bad_ids) else []
            yield Carried(self._carry_out(plan), {row: self._bad[int(plan.ids_N[row])] for row in rows})

    def _carry_out(self, plan: Plan) -> Tensor:
        if self._windows_are_stored:
            images, rows_N = self._store, plan.ids_N
        else:
            images, rows_N = self._resize(plan).contiguous(), np.arange(len(plan.ids_N))
            if not (plan.shifts_N2.any() or plan.flips_N.any() or plan.vertical_flips_N.any()):
                return images
        if images.device.type == "cpu":
            return self._shift_and_flip_by_kernel(images, rows_N, plan)
        arrays = (np.array(rows_N), plan.shifts_N2, plan.flips_N, plan.vertical_flips_N)
        rows, shifts_N2, flips_N, vertical_flips_N = (torch.from_numpy(array).to(images.device) for array in arrays)
        return shift_and_flip(
            images, rows_N=rows, shifts_N2=shifts_N2, flips_N=flips_N, vertical_flips_N=vertical_flips_N
        )

    def _resize(self, plan: Plan) -> Tensor:
        device = self._store.device
        ids_N, windows_N4 = (torch.from_numpy(np.array(each)).to(device) for each in (plan.ids_N, plan.windows_N4))
        images = self._store[ids_N]
        if plan.letterbox is None:
            return resize_windows(images, windows_N4, sides_px=(plan.size_px,) * 2, interpolation=self._interpolation)
        boxed = torch.tensor(plan.letterbox.border, dtype=torch.uint8, device=device)
        boxed = boxed.repeat(len(images), plan.size_px, plan.size_px, 1)
        boxes, box_of_row_N = np.unique(plan.letterbox.boxes_N4, axis=0, return_inverse=True)
        for number, (top, left, height, width) in enumerate(boxes.tolist()):  # one: the store's images are of one size
            rows = torch.from_numpy(np.flatnonzero(box_of_row_N == number)).to(device)
            boxed[rows, top : top + height, left : left + width] = resize_windows(
                images[rows], windows_N4[rows], sides_px=(height, width), interpolation=self._interpolation
            )
        return boxed

    def _shift_and_flip_by_kernel(self, images: Tensor, rows_N: npt.NDArray[np.int64], plan: Plan) -> Tensor:
        stored, shifts_N2, flips_N = images.numpy(), plan.shifts_N2, plan.flips_N
        vertical_flips_N = plan.vertical_flips_N
        out = torch.empty((len(rows_N), *images.shape[1:]), dtype=torch.uint8)
        out_NHWC = out.numpy()

        def carry_out_rows(start: int, stop: int) -> None:
            part = slice(start, stop)
            shift_and_flip_rows(
                stored, rows_N[part], shifts_N2[part], flips_N[part], vertical_flips_N[part], out_NHWC[part]
            )

        self._pool.run(carry_out_rows, num_rows=len(rows_N), bytes_per_row=4 * images[0].numel())
        return out


def load_store(
    source: Source, *, channels: int, windows: Plan | None, interpolation: str, show_progress: bool
) -> Store:
    """Every image of the source, decoded by threads, on the CPU.

    Args:
        source: The images.
        channels: 1 or 3.
        windows: A plan for all samples in order, whose windows are stored resized; None stores images as they are.
        interpolation: bilinear or bicubic.
        show_progress: Whether to draw a progress bar.
    """
    num_samples = len(source.labels_N)
    height, width = source.sizes_N2.max(axis=0) if windows is None else (windows.size_px, windows.size_px)
    store = np.zeros((num_samples, height, width, channels), dtype=np.uint8)

    def load(sample_id: int) -> str | None:
        try:
            pixels = source.read_image(sample_id, channels=channels)
        except ValueError as error:
            return str(error)
        if windows is not None:
            pixels = carry_out(pixels, plan=windows, row=sample_id, interpolation=interpolation).numpy()
        store[sample_id] = pixels
        return None

    results = map_in_threads(load, range(num_samples), title="decoding", unit="image", show_progress=show_progress)
    bad = {sample_id: reason for sample_id, reason in enumerate(results) if reason is not None}
    return Store(torch.from_numpy(store), bad)


def resize_windows(images_NHWC: Tensor, windows_N4: Tensor, *, sides_px: tuple[int, int], interpolation: str) -> Tensor:
    """Each image's window, resized with antialiasing: columns, rounding (halves up), rows, rounding, as torch does.

    Args:
        images_NHWC: uint8 (N, H, W, C).
        windows_N4: int64 (N, 4), top, left, height, width.
        sides_px: Height and width of the result.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 (N, *sides_px, C).
    """
    tops_N, lefts_N, heights_N, widths_N = windows_N4.unbind(1)
    _, height, width, _ = images_NHWC.shape
    across = _filter_weights(lefts_N, widths_N, length=width, size_px=sides_px[1], interpolation=interpolation)
    down = _filter_weights(tops_N, heights_N, length=height, size_px=sides_px[0], interpolation=interpolation)
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
