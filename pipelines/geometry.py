"""Images through their rows of the plan, by torchvision: the meaning of a plan, in a few plain lines."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from pipelines.execution import Carried, Operate
from pipelines.plan import Plan
from pipelines.source import Source


def carry_out_plan(
    plan: Plan, *, source: Source, channels: int, interpolation: str, operate: Operate | None = None
) -> Carried:
    """A whole plan in this process: read, decode, `carry_out`, `operate`.

    Args:
        plan: The plan.
        source: The images.
        channels: 1 or 3.
        interpolation: bilinear or bicubic.
        operate: Does the plan's operations; None leaves them to others.

    Returns:
        uint8 (N, S, S, C), on the CPU, and the rows that could not be read.
    """
    images = torch.zeros(len(plan.ids_N), plan.size_px, plan.size_px, channels, dtype=torch.uint8)
    bad: dict[int, str] = {}
    for row, sample_id in enumerate(plan.ids_N.tolist()):
        try:
            pixels = source.read_image(sample_id, channels=channels)
        except ValueError as error:
            bad[row] = str(error)
        else:
            images[row] = carry_out(pixels, plan=plan, row=row, interpolation=interpolation)
            if operate is not None:
                operate(images[row].numpy(), plan=plan, row=row)
    return Carried(images, bad)


def carry_out(pixels: npt.NDArray[np.uint8], *, plan: Plan, row: int, interpolation: str) -> Tensor:
    """One image through row `row` of the plan: window, resize (antialiased), letterbox, shift by reflection, flips.

    Args:
        pixels: uint8 (H, W, C), the stored image.
        plan: The plan.
        row: Which row of it.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 (S, S, C), S = plan.size_px, on the CPU.
    """
    size_px = plan.size_px
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    top, left, height, width = (int(value) for value in plan.windows_N4[row])
    if (top, left, height, width) != (0, 0, *image.shape[1:]):
        image = tv.crop(image, top, left, height, width)
    sides = [size_px, size_px] if plan.letterbox is None else plan.letterbox.boxes_N4[row, 2:].tolist()
    if [height, width] != sides:
        image = tv.resize(image, sides, interpolation=InterpolationMode(interpolation), antialias=True)
    if sides != [size_px, size_px]:
        image = _with_border(image, plan=plan, row=row)
    down, right = (int(value) for value in plan.shifts_N2[row])
    if down or right:
        border = max(abs(down), abs(right))
        padded = tv.pad(image, [border], padding_mode="reflect")
        image = tv.crop(padded, border + down, border + right, size_px, size_px)
    if plan.flips_N[row]:
        image = tv.horizontal_flip(image)
    if plan.vertical_flips_N[row]:
        image = tv.vertical_flip(image)
    return image.permute(1, 2, 0).contiguous()


def _with_border(image: Tensor, *, plan: Plan, row: int) -> Tensor:
    """A resized window, uint8 (C, H, W), in its place within (C, S, S)."""
    assert plan.letterbox is not None, "else it fills its place"
    top, left, height, width = plan.letterbox.boxes_N4[row].tolist()
    beside = [left, top, plan.size_px - left - width, plan.size_px - top - height]
    padded: Tensor = tv.pad(image, beside, fill=list(plan.letterbox.border))
    return padded


def shift_and_flip(
    images_MHWC: Tensor, *, rows_N: Tensor, shifts_N2: Tensor, flips_N: Tensor, vertical_flips_N: Tensor
) -> Tensor:
    """Rows of `images_MHWC`, shifted (border by reflection), then flipped left-right and up-down.

    Args:
        images_MHWC: uint8 (M, S, S, C).
        rows_N: int64 (N,), which image each result is made from.
        shifts_N2: int64 (N, 2), down and right, each below S.
        flips_N: bool (N,), left-right.
        vertical_flips_N: bool (N,), up-down.

    Returns:
        uint8 (N, S, S, C), on the device of the images.
    """
    size = images_MHWC.shape[1]
    line = torch.arange(size, device=images_MHWC.device)
    ys_NS = _reflect(line + shifts_N2[:, :1], size=size)
    xs_NS = _reflect(line + shifts_N2[:, 1:], size=size)
    xs_NS = torch.where(flips_N[:, None], xs_NS.flip(1), xs_NS)
    ys_NS = torch.where(vertical_flips_N[:, None], ys_NS.flip(1), ys_NS)
    return images_MHWC[rows_N[:, None, None], ys_NS[:, :, None], xs_NS[:, None, :]]


def _reflect(places: Tensor, *, size: int) -> Tensor:
    """Indices mirrored at the borders, the border pixel itself not repeated."""
    places = places.abs()
    return torch.where(places >= size, 2 * (size - 1) - places, places)
