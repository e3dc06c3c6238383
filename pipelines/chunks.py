"""Some samples of a plan, carried out on the CPU image by image: what one task of a thread or a process does.

samples of a plan -> read file -> decode the window -> for each view: resize, shift, flip, operate -> their rows
                    (one scratch per thread, no memory asked for per image)

The decoder, torch's resize and the operations leave the GIL free; what takes microseconds keeps it.
Pixels are those of `pipelines.geometry.carry_out`.

Legend of shape letters: N rows of a plan, M samples, V views of each, H height and W width of an image, S height and
width of the result, C channels; 2 and 8 the numbers that the code names.
"""

from threading import local
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from pipelines.decode import scale_of, scaled_window
from pipelines.execution import Operate
from pipelines.jpeg_window import Window
from pipelines.kernels import flip_image, shift_and_flip_image
from pipelines.plan import Plan
from pipelines.scratch import Scratch
from pipelines.source import Source, cut

_Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

_RESIZES = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.out,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.out,
}


class ChunkWork:
    """Carries out chunks of plans, for many threads at once; sent to another process, it works there too.

    Args:
        source: The images.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        operate: Does the plan's operations; None leaves them to others.
        decode: exact = at the stored size; scaled = JPEGs whose window is at least twice the result, at a half, a
            quarter or an eighth of it (of plans with one view).
    """

    def __init__(
        self,
        source: Source,
        *,
        channels: int,
        interpolation: str,
        operate: Operate | None,
        decode: Literal["exact", "scaled"] = "exact",
    ) -> None:
        self._source = source
        self._channels = channels
        self._interpolation = interpolation
        self._operate = operate
        self._decode = decode
        self._local = local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_local"}  # a thread's stays where it is

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _local=local())

    def carry_out(self, plan: Plan, samples: range, images_NHWC: Tensor) -> dict[int, str]:
        """Writes the images of some samples, all views, into their rows.

        Args:
            plan: The plan.
            samples: Some of its samples, by their rows in view 0.
            images_NHWC: uint8 (N, S, S, C), on the CPU, for the images of the whole plan.

        Returns:
            The rows that could not be read, and why; their pixels mean nothing.
        """
        scratch, out_NHWC = self._scratch(), images_NHWC.numpy()
        # by way of numpy: evaluation asks for batches in torch's inference mode, a thread is not in it, and torch does
        # not let it write into what was allocated there
        out_NCHW = torch.from_numpy(out_NHWC).permute(0, 3, 1, 2)
        first_row_of_view = range(0, len(plan.ids_N), len(plan.ids_N) // plan.num_views)
        rows_MV = np.add.outer(samples, first_row_of_view)
        flips_MV2 = np.stack([plan.flips_N[rows_MV], plan.vertical_flips_N[rows_MV]], axis=2)
        orders_MV8 = np.concatenate([plan.windows_N4[rows_MV], plan.shifts_N2[rows_MV], flips_MV2], axis=2)
        bad: dict[int, str] = {}
        rows_M, orders_M = rows_MV.tolist(), orders_MV8.tolist()
        windows_M = [_around(orders) for orders in orders_M]
        least_px_M = self._least_px(plan, rows_MV)
        pixels_M = self._source.read_windows(
            plan.ids_N[rows_MV[:, 0]].tolist(),
            windows_M,
            channels=self._channels,
            scratch=scratch,
            least_px=least_px_M,
        )
        for number, (rows, orders, around, pixels) in enumerate(
            zip(rows_M, orders_M, windows_M, pixels_M, strict=True)
        ):
            if isinstance(pixels, ValueError):
                bad |= dict.fromkeys(rows, str(pixels))
                continue
            for row, (top, left, height, width, down, right, *flips) in zip(rows, orders, strict=True):
                if least_px_M is None or pixels.shape[:2] == around[2:]:
                    image, box = cut(pixels, (top - around[0], left - around[1], height, width)), None
                else:
                    image, box = pixels, _box_within(around, scale_of(around, least_px_M[number]))
                out_SSC = out_NHWC[row]
                if down or right:
                    fitted_SSC = scratch.fitted(out_SSC.size)[: out_SSC.size].reshape(out_SSC.shape)
                    self._fit(image, box, fitted_SSC, plan=plan, row=row, scratch=scratch)
                    shift_and_flip_image(fitted_SSC, down, right, bool(flips[0]), bool(flips[1]), out_SSC)
                    continue
                if box is None and plan.letterbox is None and image.shape != out_SSC.shape:
                    _resize(image, out_NCHW[row : row + 1], interpolation=self._interpolation, scratch=scratch)
                else:
                    self._fit(image, box, out_SSC, plan=plan, row=row, scratch=scratch)
                flip_image(out_SSC, bool(flips[0]), bool(flips[1]))
        if self._operate is not None:
            for row in sorted(set(rows_MV.ravel().tolist()) - set(bad)):
                self._operate(out_NHWC[row], plan=plan, row=row)
        return bad

    def _least_px(self, plan: Plan, rows_MV: npt.NDArray[np.int64]) -> list[tuple[int, int]] | None:
        """The height and width below which windows must not be decoded; None = at their stored size."""
        if self._decode == "exact" or plan.num_views > 1:
            return None
        if plan.letterbox is None:
            return [(plan.size_px, plan.size_px)] * len(rows_MV)
        return [(height, width) for height, width in plan.letterbox.boxes_N4[rows_MV[:, 0], 2:].tolist()]

    def _fit(
        self,
        image: npt.NDArray[np.uint8],
        box: _Box | None,
        out_SSC: npt.NDArray[np.uint8],
        *,
        plan: Plan,
        row: int,
        scratch: Scratch,
    ) -> None:
        """Writes a window, uint8 (H, W, C), or the box in it, into `out_SSC` as the plan fits it there."""
        if plan.letterbox is not None:
            top, left, height, width = plan.letterbox.boxes_N4[row].tolist()
            if (height, width) != out_SSC.shape[:2]:
                # row by row: pixel by pixel it takes 160 us instead of 6 (224 x 224 x 3, Intel Xeon, numpy 2.4.6,
                # 2026-11-26)
                border = np.array(plan.letterbox.border, dtype=np.uint8)
                out_SSC.reshape(len(out_SSC), -1)[...] = np.tile(border, len(out_SSC))
                out_SSC = out_SSC[top : top + height, left : left + width]
        if box is not None:
            out_SSC[...] = _resize_box(image, box, out_SSC.shape, interpolation=self._interpolation)
            return
        if image.shape == out_SSC.shape:
            out_SSC[...] = image
            return
        resized = out_SSC
        if not out_SSC.flags.c_contiguous:  # a box within the letterbox
            resized = scratch.boxed(out_SSC.size)[: out_SSC.size].reshape(out_SSC.shape)
        _resize(
            image,
            torch.from_numpy(resized).permute(2, 0, 1).unsqueeze(0),
            interpolation=self._interpolation,
            scratch=scratch,
        )
        if resized is not out_SSC:
            out_SSC[...] = resized

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


def _box_within(window: Window, scale: int) -> _Box:
    """Where a window lies in one that was made smaller by `scale` and rounded outward."""
    outer_top, outer_left, _, _ = scaled_window(window, scale)
    top, left, height, width = window
    top_px, left_px = top / scale - outer_top, left / scale - outer_left
    return left_px, top_px, left_px + width / scale, top_px + height / scale


def _resize_box(
    image: npt.NDArray[np.uint8], box: _Box, shape: tuple[int, ...], *, interpolation: str
) -> npt.NDArray[np.uint8]:
    """What lies in a box with edges between pixels, antialiased, uint8 of `shape`; by Pillow: torch knows no box."""
    height, width, channels = image.shape
    left, top, right, bottom = box
    pillow = Image.fromarray(np.ascontiguousarray(image if channels == 3 else image[..., 0]))
    within = (left, top, min(right, width), min(bottom, height))  # the last pixel of a scale may stand for less
    resized = pillow.resize((shape[1], shape[0]), Image.Resampling[interpolation.upper()], box=within)
    return np.asarray(resized).reshape(shape)


def _resize(image: npt.NDArray[np.uint8], out_1CHW: Tensor, *, interpolation: str, scratch: Scratch) -> None:
    """Writes an image, uint8 (H, W, C), into another, whose memory is contiguous as (H, W, C), antialiased.

    It calls what `torch.nn.functional.interpolate` comes down to, which cannot be told where to write: 190 us instead
    of 220 for what becomes of a window of 300 x 250 (Intel Xeon, torch 2.14.1, 2026-11-26).
    """
    if not image.flags.carray:  # torch would copy it into new memory, which costs more
        window = scratch.window(image.size)[: image.size].reshape(image.shape)
        window[...] = image
        image = window
    from_1CHW = torch.from_numpy(image).permute(2, 0, 1).unsqueeze(0)
    _RESIZES[interpolation](from_1CHW, out_1CHW.shape[2:], False, None, None, out=out_1CHW)
