"""The meaning of operations, held against Pillow (and numpy, where Pillow has no such thing)."""

from collections.abc import Callable

import numpy as np
import pytest
from operation_cases import PARAMETERS, Pixels, draw_images, make_operations, plan_of
from PIL import Image, ImageChops, ImageEnhance, ImageFilter, ImageOps

from pipelines.operations.reference import OPERATIONS, operate
from pipelines.operations.vocabulary import Operation, affine_matrices

SIZE_PX = 64
Values = tuple[float, ...]


def by_affine(image: Image.Image, values: Values) -> Image.Image:
    matrix = affine_matrices(np.array([values], dtype=float), size_px=SIZE_PX)[0]
    matrix[[2, 5]] += 0.5 - 0.5 * (matrix[[0, 3]] + matrix[[1, 4]])  # Pillow counts from the corners of pixels
    return image.transform(image.size, Image.Transform.AFFINE, tuple(matrix), Image.Resampling.BILINEAR)


def by_hue(image: Image.Image, values: Values) -> Image.Image:
    hue, saturation, value = image.convert("HSV").split()
    shifted = hue.point(lambda step: (step + round(255 * values[0])) % 256)
    return Image.merge("HSV", (shifted, saturation, value)).convert("RGB")


def by_rgb_shift(image: Image.Image, values: Values) -> Image.Image:
    shifted = np.clip(np.asarray(image).astype(int) + np.array(values, dtype=int), 0, 255)
    return Image.fromarray(shifted.astype(np.uint8))


def by_posterize(image: Image.Image, values: Values) -> Image.Image:
    return ImageOps.posterize(image, int(values[0])) if values[0] else ImageChops.constant(image, 0).convert("RGB")


OTHERS: dict[Operation, Callable[[Image.Image, Values], Image.Image]] = {
    Operation.IDENTITY: lambda image, values: image,
    Operation.AFFINE: by_affine,
    Operation.BRIGHTNESS: lambda image, values: ImageEnhance.Brightness(image).enhance(values[0]),
    Operation.CONTRAST: lambda image, values: ImageEnhance.Contrast(image).enhance(values[0]),
    Operation.SATURATION: lambda image, values: ImageEnhance.Color(image).enhance(values[0]),
    Operation.HUE: by_hue,
    Operation.RGB_SHIFT: by_rgb_shift,
    Operation.GRAYSCALE: lambda image, values: image.convert("L").convert("RGB"),
    Operation.GAUSSIAN_BLUR: lambda image, values: image.filter(ImageFilter.GaussianBlur(values[0])),
    Operation.POSTERIZE: by_posterize,
    Operation.SOLARIZE: lambda image, values: ImageOps.solarize(image, values[0]),
    Operation.EQUALIZE: lambda image, values: ImageOps.equalize(image),
    Operation.AUTOCONTRAST: lambda image, values: ImageOps.autocontrast(image),
    Operation.SHARPNESS: lambda image, values: ImageEnhance.Sharpness(image).enhance(values[0]),
    Operation.INVERT: lambda image, values: ImageOps.invert(image),
}
# Mean difference of 255. Pillow leaves out pixels whose place is outside the image, has 256 hues, rounds grey.
MOST = dict.fromkeys(Operation, 1.0) | {Operation.AFFINE: 4.0, Operation.HUE: 2.0}


def soft_image() -> Pixels:
    return draw_images(2, size_px=SIZE_PX, channels=3)[1]


@pytest.mark.parametrize("operation", Operation)
def test_every_operation_is_near_pillows(operation: Operation) -> None:
    assert set(OPERATIONS) == set(OTHERS) == set(Operation)
    for values in PARAMETERS[operation]:
        if operation not in (Operation.RGB_SHIFT, Operation.SOLARIZE) and max(values, default=0) > 200:
            continue  # factors so large enlarge each rounding; a blur so wide is not cut off by Pillow
        image = soft_image()
        wanted = np.asarray(OTHERS[operation](Image.fromarray(image.copy()), values))
        operate(image, plan=plan_of(make_operations([[(operation, *values)]]), size_px=SIZE_PX), row=0)
        assert np.abs(image.astype(int) - wanted).mean() <= MOST[operation], values


def test_a_row_gets_its_own_operations_in_their_order_in_place() -> None:
    operations = make_operations(
        [
            [(Operation.IDENTITY,), (Operation.IDENTITY,)],
            [(Operation.INVERT,), (Operation.SOLARIZE, 100)],
            [(Operation.SOLARIZE, 100), (Operation.INVERT,)],
        ]
    )
    plan = plan_of(operations, size_px=SIZE_PX)
    before = soft_image()
    inverted = 255 - before
    wanted = [before, np.where(inverted >= 100, before, inverted), np.where(before >= 100, before, inverted)]
    for row in range(3):
        image = before.copy()
        operate(image, plan=plan, row=row)
        assert np.array_equal(image, wanted[row])
    image = before.copy()
    operate(image, plan=plan._replace(operations=None), row=0)
    assert np.array_equal(image, before)


def test_a_grey_image_has_no_colours_to_change() -> None:
    image = draw_images(2, size_px=9, channels=1)[1]
    slots = [(Operation.SATURATION, 0.0), (Operation.HUE, 0.3), (Operation.GRAYSCALE,)]
    changed = image.copy()
    operate(changed, plan=plan_of(make_operations([slots]), size_px=9), row=0)
    assert np.array_equal(changed, image)
    with pytest.raises(AssertionError, match="grey"):
        operate(image, plan=plan_of(make_operations([[(Operation.RGB_SHIFT, 1, 1, 1)]]), size_px=9), row=0)
