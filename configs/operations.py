"""The steps of `augment.operations`: what can stand in that list, with every field's meaning, limits and default.

    augment:
      operations:
        - randaugment: {n: 2, m: 9}
        - color_jitter: {brightness: 0.4, hue: 0.1, prob: 0.8}
        - equalize: {prob: 0.2}
        - trivial_augment

-> `read_operations` -> dataclasses, checked

Steps follow one another; each is drawn anew for each image. A range is a pair [low, high] or one number: x stands for
1 - x to 1 + x of a factor (from 0, where 1 - x is below it) or a scale, -x to x of an angle, a part or a shift, and for
x itself elsewhere.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from configs.nearest import nearest

Range = tuple[float, float]
Centre = Literal[0, 1, None]  # what one number x lies around: 0 = -x to x, 1 = 1 - x to 1 + x, None = x itself


def _range(*, around: Centre, least: float, most: float, default: Range | None = None) -> Any:
    metadata = {"around": around, "least": least, "most": most}
    return field(metadata=metadata) if default is None else field(default=default, metadata=metadata)


def _number(default: float, *, least: float, most: float) -> Any:
    return field(default=default, metadata={"least": least, "most": most})


def _prob() -> Any:
    return _number(1.0, least=0, most=1)


def _factor(default: Range | None = None) -> Any:
    return _range(around=1, least=0, most=100, default=default)


@dataclass(frozen=True, kw_only=True)
class RandAugment:
    """n operations, each drawn from torchvision's table of 14, at magnitude m (Cubuk et al., NeurIPS 2020).

    Attributes:
        n: How many, one after the other.
        m: Magnitude, 0 to num_bins - 1.
        m_std: Standard deviation of the magnitude, as timm's mstd.
        num_bins: The scale of m: 31 as torchvision, 11 as timm and the paper.
        prob: Probability of each operation; timm's is 0.5.
    """

    n: int = _number(2, least=1, most=16)
    m: float = _number(9, least=0, most=1000)
    m_std: float = _number(0, least=0, most=1000)
    num_bins: int = _number(31, least=2, most=1001)
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class TrivialAugment:
    """One operation, drawn from torchvision's wide table of 14, at any magnitude (Mueller and Hutter, ICCV 2021).

    Attributes:
        num_bins: How many magnitudes there are.
        prob: Probability.
    """

    num_bins: int = _number(31, least=2, most=1001)
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Brightness, contrast, saturation and hue in random order, as torchvision's ColorJitter.

    Attributes:
        brightness: Range of the factor.
        contrast: Range of the factor.
        saturation: Range of the factor.
        hue: Range of the shift, in parts of the colour circle, at most 0.5.
        prob: Probability that there is any jitter.
    """

    brightness: Range = _factor((1.0, 1.0))
    contrast: Range = _factor((1.0, 1.0))
    saturation: Range = _factor((1.0, 1.0))
    hue: Range = _range(around=0, least=-0.5, most=0.5, default=(0.0, 0.0))
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class Affine:
    """Rotation, translation, scale and shear about the centre in one resampling; black comes in from outside.

    Attributes:
        degrees: Range of the angle, clockwise.
        translate: Range of the translation along x and y, in parts of the image.
        scale: Range of the scale.
        shear_x: Range of the shear along x, in degrees.
        shear_y: Range of the shear along y, in degrees.
        prob: Probability.
    """

    degrees: Range = _range(around=0, least=-360, most=360, default=(0.0, 0.0))
    translate: Range = _range(around=0, least=-1, most=1, default=(0.0, 0.0))
    scale: Range = _range(around=1, least=0.01, most=100, default=(1.0, 1.0))
    shear_x: Range = _range(around=0, least=-85, most=85, default=(0.0, 0.0))
    shear_y: Range = _range(around=0, least=-85, most=85, default=(0.0, 0.0))
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class Blend:
    """A blend with black (brightness), the mean grey (contrast), the grey image (saturation), a smooth one (sharpness).

    Attributes:
        factor: Range of the factor; 1 = as it is, 0 = the other image alone, above 1 = away from it.
        prob: Probability.
    """

    factor: Range = _factor()
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class Hue:
    """All hues turned by one angle.

    Attributes:
        shift: Range of the shift, in parts of the colour circle, at most 0.5.
        prob: Probability.
    """

    shift: Range = _range(around=0, least=-0.5, most=0.5)
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class RgbShift:
    """A whole number added to each channel ("colour casting").

    Attributes:
        most: Largest shift up or down, of 255.
        prob: Probability.
    """

    most: int = _number(20, least=1, most=255)
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class GaussianBlur:
    """Gaussian blur, its kernel a tenth of the image.

    Attributes:
        sigma: Range of the standard deviation, in pixels.
        prob: Probability.
    """

    sigma: Range = _range(around=None, least=0.01, most=1000, default=(0.1, 2.0))
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class Posterize:
    """Fewer bits per channel.

    Attributes:
        bits: Range of the number of bits that are kept.
        prob: Probability.
    """

    bits: tuple[int, int] = _range(around=None, least=0, most=8, default=(4, 8))
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class Solarize:
    """Values from a threshold on are inverted.

    Attributes:
        threshold: Range of the threshold, of 255.
        prob: Probability.
    """

    threshold: Range = _range(around=None, least=0, most=255, default=(128.0, 128.0))
    prob: float = _prob()


@dataclass(frozen=True, kw_only=True)
class Plain:
    """The grey image; each channel's histogram made flat; each channel stretched to 0..255; 255 minus each value.

    Attributes:
        prob: Probability.
    """

    prob: float = _prob()


STEPS: dict[str, type] = {
    "randaugment": RandAugment,
    "trivial_augment": TrivialAugment,
    "color_jitter": ColorJitter,
    "affine": Affine,
    "brightness": Blend,
    "contrast": Blend,
    "saturation": Blend,
    "hue": Hue,
    "rgb_shift": RgbShift,
    "grayscale": Plain,
    "gaussian_blur": GaussianBlur,
    "posterize": Posterize,
    "solarize": Solarize,
    "equalize": Plain,
    "autocontrast": Plain,
    "sharpness": Blend,
    "invert": Plain,
}


def read_operations(entries: Sequence[Any]) -> tuple[tuple[str, Any], ...]:
    """The steps of `augment.operations`: pairs of a name and its dataclass.

    Args:
        entries: Names, or mappings of one name to its fields.

    Raises:
        ValueError: No list, an unknown name or field, or a value beyond its limits.
    """
    if not isinstance(entries, list | tuple):
        raise ValueError(refuse_no_list(repr(entries)))
    return tuple(_read_step(entry, place=f"augment.operations[{number}]") for number, entry in enumerate(entries))


def refuse_no_list(shown: str) -> str:
    """What is said where `augment.operations` is no list; `shown`: what it is."""
    return (
        f"augment.operations is {shown}, and must be a list of steps; write each on a line of its own behind a dash, "
        "as in - randaugment, or all of them as [randaugment, {equalize: {prob: 0.2}}]."
    )


def _read_step(entry: Any, *, place: str) -> tuple[str, Any]:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ValueError(
            f"{place} is {entry!r}; each entry is a name, or a name with its fields, as in "
            "- color_jitter: {brightness: 0.4, prob: 0.8}; begin each step with a dash of its own."
        )
    name, fields = next(iter(entry.items()))
    if name not in STEPS:
        raise ValueError(f"{place}: unknown operation {name!r}; {nearest(str(name), list(STEPS))}")
    if not isinstance(fields, dict | None):
        raise ValueError(f"{place}: {name} has {fields!r} in place of its fields; write {name}: {{prob: 0.5}}.")
    return name, _read_fields(STEPS[name], fields or {}, place=f"{place}.{name}")


def _read_fields(step: type, given: dict[str, Any], *, place: str) -> Any:
    known = {one.name: one for one in dataclasses.fields(step)}
    for name in given:
        if name not in known:
            raise ValueError(f"{place}: unknown field {name!r}; {nearest(str(name), list(known))}")
    missing = [name for name, one in known.items() if one.default is dataclasses.MISSING and name not in given]
    if missing:
        raise ValueError(f"{place} needs {', '.join(missing)}; for example {missing[0]}: 0.4.")
    read = step(**{name: _read_value(known[name], value, place=f"{place}.{name}") for name, value in given.items()})
    if isinstance(read, RandAugment) and read.m > read.num_bins - 1:
        raise ValueError(f"{place}.m={read.m:g} is beyond num_bins - 1 = {read.num_bins - 1}; use less, or more bins.")
    if isinstance(read, ColorJitter | Affine) and dataclasses.replace(read, prob=1.0) == step():
        raise ValueError(f"{place} varies nothing; give one of {', '.join(list(known)[:-1])}.")
    return read


def _read_value(known: Any, value: Any, *, place: str) -> Any:
    least, most = known.metadata["least"], known.metadata["most"]
    is_whole = known.type in (int, tuple[int, int])
    if "around" not in known.metadata:
        _check_number(value, least=least, most=most, is_whole=is_whole, place=place)
        return value
    if isinstance(value, list | tuple) and len(value) == 2:
        pair = tuple(value)
    else:
        pair = _spread(value, known=known, is_whole=is_whole, place=place)
    for one in pair:
        _check_number(one, least=least, most=most, is_whole=is_whole, place=place)
    if pair[0] > pair[1]:
        raise ValueError(f"{place}=[{pair[0]:g}, {pair[1]:g}] must rise; use [{pair[1]:g}, {pair[0]:g}].")
    return pair


def _spread(value: Any, *, known: Any, is_whole: bool, place: str) -> Range:
    """The range that one number stands for; only a factor is cut off, at 0, as torchvision's ColorJitter does it."""
    around, least, most = (known.metadata[name] for name in ("around", "least", "most"))
    pairs = f", or a pair [low, high] within {least:g} to {most:g}"
    if around is None:
        _check_number(value, least=least, most=most, is_whole=is_whole, place=place, otherwise=pairs)
        return value, value
    if around == 0:
        meaning = f", which stands for -x to x{pairs}"
        _check_number(value, least=0, most=most, place=place, otherwise=meaning)
        return -value, value
    meaning = f", which stands for 1 - x to 1 + x{pairs}, such as [1, 2] (up to twice)"
    _check_number(value, least=0, most=1 - least if least else most - 1, place=place, otherwise=meaning)
    return max(1 - value, least), 1 + value


def _check_number(
    value: Any, *, least: float, most: float, place: str, is_whole: bool = False, otherwise: str = ""
) -> None:
    wanted = f"must be {'a whole number' if is_whole else 'a number'} from {least:g} to {most:g}{otherwise}."
    if isinstance(value, bool) or not isinstance(value, int if is_whole else int | float):
        raise ValueError(f"{place}={value!r} {wanted}")
    if not least <= value <= most:
        raise ValueError(f"{place}={_shown(value)} {wanted}")


def _shown(value: float) -> str:
    try:
        return f"{value:g}"
    except OverflowError:  # a whole number of more than 308 digits
        return f"({'-' if value < 0 else ''}10^{len(str(abs(value))) - 1} or more)"
