"""One image through its row of the plan, by torchvision: the meaning of a plan, in a few plain lines."""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from pipelines.plan import Plan


def carry_out(pixels: npt.NDArray[np.uint8], *, plan: Plan, row: int, size_px: int, interpolation: str) -> Tensor:
    """One image through row `row` of the plan: window, resize (antialiased), shift by reflection, flip.

    Args:
        pixels: uint8 (H, W, C), the stored image.
        plan: The plan.
        row: Which row of it.
        size_px: Height and width of the result.
        interpolation: bilinear or bicubic.

    Returns:
        uint8 (size_px, size_px, C), on the CPU.
    """
    image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    top, left, height, width = (int(value) for value in plan.windows_N4[row])
    if (top, left, height, width) != (0, 0, *image.shape[1:]):
        image = tv.crop(image, top, left, height, width)
    if (height, width) != (size_px, size_px):
        image = tv.resize(image, [size_px, size_px], interpolation=InterpolationMode(interpolation), antialias=True)
    down, right = (int(value) for value in plan.shifts_N2[row])
    if down or right:
        border = max(abs(down), abs(right))
        padded = tv.pad(image, [border], padding_mode="reflect")
        image = tv.crop(padded, border + down, border + right, size_px, size_px)
    if plan.flips_N[row]:
        image = tv.horizontal_flip(image)
    return image.permute(1, 2, 0).contiguous()
