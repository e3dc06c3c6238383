"""What was drawn for training images, in words and numbers: for people who look at augmentation before they train.

a row of Plan and Effects -> list_drawn -> Drawn, one after the other as they are carried out
many rows                 -> count_drawn -> how often each was drawn, and how large

Something new that a plan can draw needs a function like `_flip` in `_LISTED`, and its name in `list_names`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pipelines.effects import Effects, EffectSettings
from pipelines.operations.drawing import operations_of
from pipelines.operations.vocabulary import NUM_PARAMETERS, PARAMETER_NAMES, Operation
from pipelines.plan import Augmentation, Plan


class Drawn(NamedTuple):
    """A thing that was drawn for an image.

    name: such as `flip` or `gaussian blur`. words: with its parameters, `brightness x1.31`. values: those, by names
    that end in their unit where they have one; of affine only what differs from nothing.
    """

    name: str
    words: str
    values: Mapping[str, float] = {}


class Range(NamedTuple):
    """What a parameter was over the images for which it was drawn."""

    num_images: int
    smallest: float
    mean: float
    largest: float


class Count(NamedTuple):
    """num_images: for how many images a thing was drawn, once or several times. ranges: of its parameters, by name."""

    name: str
    num_images: int
    ranges: Mapping[str, Range]


_FORMATS: dict[str, Callable[[float], str]] = {  # of the parameters in PARAMETER_NAMES
    "angle_deg": lambda value: f"rotate {_number(value)} deg",
    "right_px": lambda value: f"right {_number(value)} px",
    "down_px": lambda value: f"down {_number(value)} px",
    "scale": lambda value: f"scale x{value:.2f}",
    "shear_x_deg": lambda value: f"shear x {_number(value)} deg",
    "shear_y_deg": lambda value: f"shear y {_number(value)} deg",
    "factor": lambda value: f"x{value:.2f}",
    "shift": lambda value: f"{value:+.2f}",
    "red": lambda value: f"{value:+.0f}",
    "green": lambda value: f"{value:+.0f}",
    "blue": lambda value: f"{value:+.0f}",
    "sigma_px": lambda value: f"{value:.2f} px",
    "bits": lambda value: f"{value:.0f} bits",
    "threshold": lambda value: f"{value:.0f}",
}
_NEUTRAL_AFFINE = (0.0, 0.0, 0.0, 1.0, 0.0, 0.0)


def list_names(augmentation: Augmentation, settings: EffectSettings) -> list[str]:
    """The name of everything that may be drawn for an image, in the order in which it is carried out."""
    mixing = settings.mixing
    mixes_by = {"mixup": mixing.mixup_alpha > 0, "CutMix": mixing.cutmix_alpha > 0}
    may_be_drawn = {
        "crop": augmentation.crop == "rrc",
        "shift": augmentation.crop == "pad" and augmentation.pad_px > 0,
        "flip": augmentation.flip != "none",
        "vertical flip": augmentation.vertical_flip_prob > 0,
        "own pipeline": augmentation.own_pipeline,
        **{_title(one): True for one in sorted(operations_of(augmentation.operations))},
        "noise": settings.noise_std > 0,
        "erase": settings.erasing.prob > 0,
        "cutout": settings.cutout_px > 0,
        **{name: settings.mixes and is_on for name, is_on in mixes_by.items()},
    }
    return [name for name, is_on in may_be_drawn.items() if is_on]


def list_drawn(
    plan: Plan,
    effects: Effects,
    row: int,
    *,
    sizes_N2: npt.NDArray[np.int32] | None,
    name_sample: Callable[[int], str] = str,
) -> list[Drawn]:
    """What was drawn for row `row` of a plan of one view, as it is carried out.

    Args:
        plan: Geometry and operations.
        effects: What the tail does.
        row: Which row.
        sizes_N2: int32 (N, 2), height and width of the stored images, where windows are drawn; None where they are not.
        name_sample: What to call the sample that is mixed in, by its id.
    """
    found = [] if sizes_N2 is None else [_crop(plan, row, size=sizes_N2[row])]
    for listed in _LISTED:
        found += listed(plan, row)
    found += _effects(effects, row, size_px=plan.size_px)
    return found + _mix(plan, effects, row, name_sample=name_sample)


def count_drawn(images: Iterable[Sequence[Drawn]], *, names: Sequence[str]) -> list[Count]:
    """How often each thing was drawn, and the ranges of its parameters.

    Args:
        images: What was drawn for each image.
        names: What may be drawn: the first in the list, drawn or not.
    """
    counts = dict.fromkeys(names, 0)
    values: dict[str, dict[str, list[list[float]]]] = {}  # name -> parameter -> image -> each time it was drawn
    for drawn in images:
        for name in dict.fromkeys(one.name for one in drawn):
            counts[name] = counts.get(name, 0) + 1
            met: dict[str, list[float]] = {}
            for one in drawn:
                for parameter, value in one.values.items() if one.name == name else ():
                    met.setdefault(parameter, []).append(value)
            for parameter, several in met.items():
                values.setdefault(name, {}).setdefault(parameter, []).append(several)
    places = {name: place for place, name in enumerate(_FORMATS)}
    ordered = {
        name: sorted(
            found.items(), key=lambda item: places.get(item[0], -1)
        )  # affine's in the order of PARAMETER_NAMES
        for name, found in values.items()
    }
    return [
        Count(name, count, {parameter: _range(each) for parameter, each in ordered.get(name, ())})
        for name, count in counts.items()
    ]


def _range(values: list[list[float]]) -> Range:
    flat = [value for several in values for value in several]
    return Range(len(values), min(flat), sum(flat) / len(flat), max(flat))


# --- geometry


def _crop(plan: Plan, row: int, *, size: npt.NDArray[np.int32]) -> Drawn:
    top, left, height, width = plan.windows_N4[row].tolist()
    area = max(int(size[0]) * int(size[1]), 1)  # 0: the size is not known
    values = {"area_frac": height * width / area, "width_over_height": width / height}
    return Drawn("crop", f"crop {width}x{height} at ({left}, {top})", values)


def _shift(plan: Plan, row: int) -> list[Drawn]:
    right, down = (-int(value) for value in plan.shifts_N2[row, ::-1])  # the window goes one way, the image the other
    if not right and not down:
        return []
    across = [f"{abs(right)} {'right' if right > 0 else 'left'}"] * bool(right)
    along = [f"{abs(down)} {'down' if down > 0 else 'up'}"] * bool(down)
    return [Drawn("shift", f"shift {', '.join(across + along)}", {"right_px": right, "down_px": down})]


def _flip(plan: Plan, row: int) -> list[Drawn]:
    return [Drawn("flip", "flip")] if plan.flips_N[row] else []


def _vertical_flip(plan: Plan, row: int) -> list[Drawn]:
    return [Drawn("vertical flip", "vertical flip")] if plan.vertical_flips_N[row] else []


def _own_pipeline(plan: Plan, row: int) -> list[Drawn]:
    return [] if plan.own_seeds_N is None else [Drawn("own pipeline", f"own pipeline {plan.own_seeds_N[row]:x}")]


def _operations(plan: Plan, row: int) -> list[Drawn]:
    if plan.operations is None:
        return []
    codes, values = plan.operations.codes_NK[row].tolist(), plan.operations.values_NKP[row].tolist()
    pairs = zip((Operation(code) for code in codes), values, strict=True)
    return [_operation(one, parameters) for one, parameters in pairs if one != Operation.IDENTITY]


_LISTED = (_shift, _flip, _vertical_flip, _own_pipeline, _operations)  # as they are carried out


def _operation(operation: Operation, parameters: Sequence[float]) -> Drawn:
    neutral = _NEUTRAL_AFFINE if operation == Operation.AFFINE else (None,) * NUM_PARAMETERS
    names = PARAMETER_NAMES.get(operation, ())
    values = {
        name: value
        for name, value, nothing in zip(names, parameters, neutral, strict=False)  # six numbers, fewer names
        if value != nothing
    }
    words = ", ".join(_FORMATS[name](value) for name, value in values.items())
    return Drawn(_title(operation), f"{_title(operation)} {words}".rstrip(), values)


def _title(operation: Operation) -> str:
    return operation.name.lower().replace("_", " ")


def _number(value: float) -> str:
    return f"{round(value, 1) + 0.0:.1f}".removesuffix(".0")  # + 0.0: no -0


# --- effects


def _effects(effects: Effects, row: int, *, size_px: int) -> list[Drawn]:
    found = [Drawn("noise", f"noise {effects.noise_std:g}")] if effects.noise_keys_N is not None else []
    for name, boxes_N4 in (("erase", effects.erase_N4), ("cutout", effects.cutout_N4)):
        if boxes_N4 is not None and boxes_N4[row, 2] > 0:
            top, left, height, width = boxes_N4[row].tolist()
            words = f"{name} {width}x{height} at ({left}, {top})"
            found.append(Drawn(name, words, {"area_frac": height * width / size_px**2}))
    return found


def _mix(plan: Plan, effects: Effects, row: int, *, name_sample: Callable[[int], str]) -> list[Drawn]:
    if effects.mix is None or effects.mix.kinds_B[row] == 0:
        return []
    weight, partner = float(effects.mix.weights_B[row]), name_sample(int(plan.ids_N[row ^ 1]))
    if effects.mix.kinds_B[row] == 1:
        return [Drawn("mixup", f"mixup {weight:.2f} with {partner}", {"weight": weight})]
    return [Drawn("CutMix", f"CutMix {100 * (1 - weight):.0f} % of {partner}", {"area_frac": 1 - weight})]
