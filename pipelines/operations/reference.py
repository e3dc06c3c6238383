"""The operations by torchvision v2, one image at a time: this is the meaning of an operation.

Every other way of doing them (kernels.py, batched.py, an executor's own) is tested against this file.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from pipelines.operations.vocabulary import Operation, blur_radius
from pipelines.plan import Plan


def operate(image_SSC: npt.NDArray[np.uint8], *, plan: Plan, row: int) -> None:
    """Does the operations of row `row` of the plan, in their order, to a finished image, in place.

    Args:
        image_SSC: uint8 (S, S, C), 0..255; C is 1 or 3.
        plan: The plan; one without operations changes nothing.
        row: Which row of it.
    """
    if plan.operations is None:
        return
    image = torch.from_numpy(image_SSC).permute(2, 0, 1).contiguous()
    codes_K, values_KP = plan.operations.codes_NK[row], plan.operations.values_NKP[row]
    for code, values in zip(codes_K.tolist(), values_KP.tolist(), strict=True):
        image = OPERATIONS[Operation(code)](image, values)
    image_SSC[...] = image.permute(1, 2, 0).numpy()


def _affine(image: Tensor, values: list[float]) -> Tensor:
    angle, right, down, scale, shear_x, shear_y = values
    interpolation = InterpolationMode.BILINEAR
    result: Tensor = tv.affine(image, angle, [right, down], scale, [shear_x, shear_y], interpolation=interpolation)
    return result


def _rgb_shift(image: Tensor, values: list[float]) -> Tensor:
    """The one that torchvision does not have."""
    assert len(image) == 3, "configurations for grey images have no RGB_SHIFT"
    shifts = torch.tensor(values[:3], dtype=torch.int32)
    return (image + shifts[:, None, None]).clamp(0, 255).to(torch.uint8)


def _gaussian_blur(image: Tensor, values: list[float]) -> Tensor:
    result: Tensor = tv.gaussian_blur(image, 2 * blur_radius(image.shape[1]) + 1, values[0])
    return result


# What each operation does: image, uint8 (C, S, S), and its parameters -> uint8 (C, S, S). The image itself is not
# changed; it may be given back where there is nothing to do.
OPERATIONS: dict[Operation, Callable[[Tensor, list[float]], Tensor]] = {
    Operation.IDENTITY: lambda image, values: image,
    Operation.AFFINE: _affine,
    Operation.BRIGHTNESS: lambda image, values: tv.adjust_brightness(image, values[0]),
    Operation.CONTRAST: lambda image, values: tv.adjust_contrast(image, values[0]),
    Operation.SATURATION: lambda image, values: tv.adjust_saturation(image, values[0]),
    Operation.HUE: lambda image, values: tv.adjust_hue(image, values[0]),
    Operation.RGB_SHIFT: _rgb_shift,
    Operation.GRAYSCALE: lambda image, values: tv.rgb_to_grayscale(image, num_output_channels=len(image)),
    Operation.GAUSSIAN_BLUR: _gaussian_blur,
    Operation.POSTERIZE: lambda image, values: tv.posterize(image, int(values[0])),
    Operation.SOLARIZE: lambda image, values: tv.solarize(image, values[0]),
    Operation.EQUALIZE: lambda image, values: tv.equalize(image),
    Operation.AUTOCONTRAST: lambda image, values: tv.autocontrast(image),
    Operation.SHARPNESS: lambda image, values: tv.adjust_sharpness(image, values[0]),
    Operation.INVERT: lambda image, values: tv.invert(image),
}
