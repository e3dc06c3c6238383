"""The operations on pixels that a plan can name, and their parameters. Their meaning is torchvision v2's.

drawing.py -> Plan.operations -> reference.py (torchvision), kernels.py (numba, CPU), batched.py (torch, GPU)

They work on finished windows, uint8 (S, S, C): after crop, resize, shift and flip, before noise and normalising.

Legend of shape letters: N rows of a plan, K operations per row, one after the other, P = 6 parameters, S height and
width of the image in pixels.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

NUM_PARAMETERS = 6


class Operation(IntEnum):
    """What is done, and in parentheses its parameters, in the order in which they lie; all others are 0.

    IDENTITY: nothing.
    AFFINE (angle in degrees clockwise, translation right and down in pixels, scale, shear along x and y in degrees): by
        one matrix about the centre, resampled once, bilinear; what comes from outside is black.
    BRIGHTNESS (factor, at least 0): a blend with black, 1 = as it is.
    CONTRAST (factor, at least 0): a blend with the image's mean grey.
    SATURATION (factor, at least 0): a blend with the grey image.
    HUE (shift, -0.5 to 0.5 of the circle).
    RGB_SHIFT (red, green, blue, each -255 to 255): added; "colour casting".
    GRAYSCALE: the grey image, in as many channels.
    GAUSSIAN_BLUR (sigma in pixels, above 0): over `blur_radius` pixels to each side, border by reflection.
    POSTERIZE (bits that are kept, 0 to 8).
    SOLARIZE (threshold, 0 to 255): values from there on are inverted.
    EQUALIZE: the histogram of each channel made flat.
    AUTOCONTRAST: each channel stretched to 0..255.
    SHARPNESS (factor, at least 0): a blend with a smoothed image; the outermost pixels stay.
    INVERT: 255 minus each value.

    Saturation, hue and grayscale leave grey images (one channel) as they are.
    """

    IDENTITY = 0
    AFFINE = 1
    BRIGHTNESS = 2
    CONTRAST = 3
    SATURATION = 4
    HUE = 5
    RGB_SHIFT = 6
    GRAYSCALE = 7
    GAUSSIAN_BLUR = 8
    POSTERIZE = 9
    SOLARIZE = 10
    EQUALIZE = 11
    AUTOCONTRAST = 12
    SHARPNESS = 13
    INVERT = 14


PARAMETER_NAMES: dict[Operation, tuple[str, ...]] = {
    Operation.AFFINE: ("angle_deg", "right_px", "down_px", "scale", "shear_x_deg", "shear_y_deg"),
    Operation.BRIGHTNESS: ("factor",),
    Operation.CONTRAST: ("factor",),
    Operation.SATURATION: ("factor",),
    Operation.HUE: ("shift",),
    Operation.RGB_SHIFT: ("red", "green", "blue"),
    Operation.GAUSSIAN_BLUR: ("sigma_px",),
    Operation.POSTERIZE: ("bits",),
    Operation.SOLARIZE: ("threshold",),
    Operation.SHARPNESS: ("factor",),
}

# Those that DALI has with torchvision's meaning (pipelines/executors/dali_graph.py). Its graph may do a recipe's
# operations if all are among these and no window is shifted (augment.crop=pad): they come after the shift, which DALI
# does not have.
NATIVE_OPERATIONS = frozenset(
    {
        Operation.AFFINE,
        Operation.BRIGHTNESS,
        Operation.CONTRAST,
        Operation.SATURATION,
        Operation.GAUSSIAN_BLUR,
    }
)


class Operations(NamedTuple):
    """The operations of N rows, K each, carried out from the first to the last.

    codes_NK: int8 (N, K), values of `Operation`. values_NKP: float64 (N, K, 6), their parameters.
    """

    codes_NK: npt.NDArray[np.int8]
    values_NKP: npt.NDArray[np.float64]

    def rows(self, rows: list[int] | slice) -> "Operations":
        """Some of the rows."""
        return Operations(self.codes_NK[rows], self.values_NKP[rows])


def blur_radius(size_px: int) -> int:
    """How far GAUSSIAN_BLUR reaches to each side, in pixels: a kernel of a tenth of the image, as SimCLR's.

    Source: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020, A.
    """
    return min(max(1, round(size_px / 20)), size_px - 1)


def affine_matrices(values_NP: npt.NDArray[np.float64], *, size_px: int) -> npt.NDArray[np.float64]:
    """The inverse matrices of AFFINE, float64 (N, 6): a, b, c, d, e, f.

    Pixel (x, y) of the result, counted from 0, comes from (a x + b y + c, d x + e y + f) of the image.

    Args:
        values_NP: float64 (N, 6), the parameters of AFFINE.
        size_px: Height and width of the image.
    """
    angle, shear_x, shear_y = (np.radians(values_NP[:, column]) for column in (0, 4, 5))
    right, down, scale = (values_NP[:, column] for column in (1, 2, 3))
    # rotation * scale * shear along y * shear along x, as torchvision; its determinant without the scale is 1
    a, c = np.cos(angle - shear_y) / np.cos(shear_y), np.sin(angle - shear_y) / np.cos(shear_y)
    b, d = -(a * np.tan(shear_x) + np.sin(angle)), np.cos(angle) - c * np.tan(shear_x)
    inverse = np.stack([d, -b, -c, a]) / scale
    centre = (size_px - 1) / 2
    to_x = centre - inverse[0] * (centre + right) - inverse[1] * (centre + down)
    to_y = centre - inverse[2] * (centre + right) - inverse[3] * (centre + down)
    return np.stack([inverse[0], inverse[1], to_x, inverse[2], inverse[3], to_y], axis=1)
