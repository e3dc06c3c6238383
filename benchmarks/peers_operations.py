"""RandAugment and colour jitter in each peer's own words: what stands between its crop and its batch.

RandAugment: two of 14 operations, one after the other, magnitude 9 of 0..30, bilinear, black from outside. Colour
jitter: brightness, contrast and saturation by 0.6 to 1.4, hue by a tenth of the circle, in random order. Nobody is
given a probability: whatever is drawn is done. Where a peer's words mean something else, its function says so.
"""

import math
from typing import Any

from torchvision.transforms import v2

from benchmarks.peers_job import JITTER, MAGNITUDE, NUM_BINS, NUM_OPERATIONS, Augment

_LEVEL = MAGNITUDE / (NUM_BINS - 1)  # 0.3 of every operation's largest magnitude
_MAX_TRANSLATE_FRAC = 150 / 331  # torchvision's


def torchvision_operations(augment: Augment) -> list[v2.Transform]:
    """Torchvision's own, of tensors and of PIL images."""
    match augment:
        case "none":
            return []
        case "randaugment":
            bilinear = v2.InterpolationMode.BILINEAR
            return [v2.RandAugment(NUM_OPERATIONS, MAGNITUDE, NUM_BINS, interpolation=bilinear)]
        case "color_jitter":
            return [v2.ColorJitter(**JITTER)]


def albumentations_operations(albumentations: Any, augment: Augment, *, size_px: int) -> list[Any]:
    """Albumentations' transforms, for its Compose.

    RandAugment is SomeOf, which does what it chose in the order of the list; and magnitudes are drawn up to the one of
    RandAugment, for they are ranges here.
    """
    match augment:
        case "none":
            return []
        case "randaugment":
            operations = _albumentations_table(albumentations, size_px=size_px)
            return [albumentations.SomeOf(operations, n=NUM_OPERATIONS, replace=True, p=1)]
        case "color_jitter":
            return [albumentations.ColorJitter(**JITTER, p=1)]


def _albumentations_table(albumentations: Any, *, size_px: int) -> list[Any]:
    """As near to torchvision's 14 as there are: Sharpen never smooths, and Equalize is OpenCV's.

    Of ways for the same it has the quicker: at 224 px Affine and Rotate take 330 us, Equalize 152 (as Pillow's 284),
    AutoContrast as Pillow's 159 (by its own method 166; one core of an Intel Xeon, OpenCV 5.0.0, 2026-11-26).
    """
    shear_deg = math.degrees(math.atan(0.3 * _LEVEL))
    shift_px = int(_MAX_TRANSLATE_FRAC * size_px * _LEVEL)
    blend, still = 0.9 * _LEVEL, (0, 0)
    affine: list[dict[str, Any]] = [
        {"shear": {"x": (-shear_deg, shear_deg), "y": still}},
        {"shear": {"x": still, "y": (-shear_deg, shear_deg)}},
        {"translate_px": {"x": (-shift_px, shift_px), "y": still}},
        {"translate_px": {"x": still, "y": (-shift_px, shift_px)}},
        {"rotate": (-30 * _LEVEL, 30 * _LEVEL)},
    ]
    as_it_is = {"brightness": (1, 1), "contrast": (1, 1), "saturation": (1, 1), "hue": (0, 0)}
    blends = [as_it_is | {name: (1 - blend, 1 + blend)} for name in ("brightness", "saturation", "contrast")]
    return [
        albumentations.NoOp(p=1),
        *(albumentations.Affine(**arguments, p=1) for arguments in affine),  # bilinear, black: its defaults
        *(albumentations.ColorJitter(**arguments, p=1) for arguments in blends),
        albumentations.Sharpen(alpha=(0, blend), lightness=(1, 1), p=1),
        albumentations.Posterize(num_bits=8 - round(4 * _LEVEL), p=1),
        albumentations.Solarize(threshold_range=(1 - _LEVEL, 1 - _LEVEL), p=1),
        albumentations.AutoContrast(method="pil", p=1),
        albumentations.Equalize(p=1),
    ]


def timm_operations(augment: Augment) -> dict[str, Any]:
    """Arguments of timm's create_transform; its jitter is torchvision's, of PIL images.

    Its RandAugment has Invert and SolarizeAdd beside torchvision's operations, and no Identity. `p1`: it does half of
    what it draws, unless told otherwise; `m3`: of 10, as 9 of 30; `inc1`: larger magnitudes change more.
    """
    match augment:
        case "none":
            return {"color_jitter": 0.0}
        case "randaugment":
            level = round(10 * _LEVEL)
            return {"auto_augment": f"rand-m{level}-n{NUM_OPERATIONS}-mstd0-p1-inc1"}
        case "color_jitter":
            return {"color_jitter": tuple(JITTER.values())}


def dali_operations(images: Any, augment: Augment, *, size_px: int) -> Any:
    """DALI's, within a graph with conditionals, on uint8 (H, W, C).

    Its jitter is one operator, in an order that does not change, whose hue turns colours by a matrix.
    """
    from nvidia.dali import fn
    from nvidia.dali.auto_aug import rand_augment

    if augment == "randaugment":
        return rand_augment.rand_augment(
            images,
            n=NUM_OPERATIONS,
            m=MAGNITUDE,
            num_magnitude_bins=NUM_BINS,
            shape=(size_px, size_px),
            max_translate_rel=_MAX_TRANSLATE_FRAC,
            fill_value=0,
        )
    if augment == "color_jitter":
        factors = {
            name: fn.random.uniform(range=[1 - JITTER[name], 1 + JITTER[name]])
            for name in ("brightness", "contrast", "saturation")
        }
        hue_deg = fn.random.uniform(range=[-360 * JITTER["hue"], 360 * JITTER["hue"]])
        return fn.color_twist(images, **factors, hue=hue_deg)
    return images
