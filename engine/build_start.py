"""Configuration -> what fine-tuning starts from, and what the weights expect to see.

--model.name NAME       -> build_start     -> Start: which weights, and what they take; section model says the network
                                              (of a run, its own), section input what the weights take
some images of the data -> describe_images -> a line on how they look to the network; refused where they are black
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from configs.load import replace_section
from configs.schema import Config, InputSpec
from engine.origin import Origin, load_origin

_OF_WEIGHTS = ("channels", "mean", "std", "interpolation", "crop_frac")
_ZOOS = ("torchvision/", "timm/")
_CLOSE = 1e-3  # of mean and std on the scale 0 to 1: published figures are rounded to three or four digits
_MOST_CONSTANT = 1.5 / 255  # highest pixel of images that were stored on the scale 0 to 1
_UNUSUAL_MEAN, _UNUSUAL_STD = 1.0, (0.5, 2.0)  # of what should have mean 0 and standard deviation 1


class Start(NamedTuple):
    """What a network starts from.

    name: as messages call it. spec: what the weights were trained with, complete; None where nobody says. file: of
    weights; None = those that are published under model.name.
    """

    name: str
    spec: InputSpec | None
    file: Path | None


def build_start(config: Config, *, spec_of: Callable[[str], InputSpec]) -> tuple[Config, Start]:
    """What the network starts from, and the configuration with its model and its input.

    Args:
        config: The run's.
        spec_of: What the weights that are published under a name were trained with (`models.build`).

    Raises:
        FileNotFoundError: A run has no whole checkpoint.
        ValueError: There are no weights for the network, or the configuration contradicts them.
    """
    config, origin = _resolve_run(config)
    name, file = config.model.name, config.weights.file
    is_published = name.startswith(_ZOOS)
    if origin is not None:
        start = Start(str(config.weights.run), origin.spec, origin.weights)
    elif file is not None:
        start = Start(file, spec_of(name) if is_published else None, Path(file))
    elif is_published:
        start = Start(name, spec_of(name), None)
    elif config.strategy.name == "scratch":
        start = Start("random weights", None, None)
    else:
        no_folder = f" (there is no folder {name} in {Path.cwd()})" if "/" in name else ""
        raise ValueError(
            f"there are no pretrained weights of model.name={name}{no_folder}; give a run folder as --model.name, or "
            "a file of its weights as --weights.file, or a network of torchvision's or timm's, as --model.name "
            "timm/resnet50."
        )
    return with_weights_input(config, start.spec), start


def _resolve_run(config: Config) -> tuple[Config, Origin | None]:
    """The configuration with the network of the run that model.name or weights.run names, and that run."""
    named = config.model.name if _is_folder(config.model.name) else None
    folder = named or config.weights.run
    if folder is None:
        return config, None
    if config.weights.file is not None:
        raise ValueError(
            f"model.name={config.model.name} is a run folder, and weights.file={config.weights.file} is set: a network "
            "starts from one of them; drop the other."
        )
    if named is not None and (config.model.args or config.model.stem != "default"):
        raise ValueError(
            f"model.name={named} is a run folder, whose network is as that run has it; drop model.args and model.stem."
        )
    origin = load_origin(folder)
    if named is None and origin.model != config.model:
        raise ValueError(
            f"weights.run={folder} holds {origin.model.name} {origin.model.args}, but section model says "
            f"{config.model.name} {config.model.args}; give the folder as --model.name instead, and leave the rest out."
        )
    if origin.is_knn and config.weights.head == "keep":
        raise ValueError(
            f"weights.head=keep, but the last layer of {folder} are nearest neighbours, which are not trained any "
            "further; use --weights.head new."
        )
    config = dataclasses.replace(config, model=origin.model)
    return replace_section(config, "weights", run=str(folder)), origin


def _is_folder(name: str) -> bool:
    """Whether a name of a network is a folder; of our own and of torchvision's and timm's none is one."""
    return Path(name).is_dir() and not name.startswith(_ZOOS) and ("/" in name or (Path(name) / "config.yaml").exists())


def with_weights_input(config: Config, spec: InputSpec | None) -> Config:
    """`config` with the input that the weights were trained with, but for `fit` and a given `size_px`.

    Args:
        config: The run's.
        spec: What the weights were trained with, complete; None where nobody says, as of a file of weights.

    Raises:
        ValueError: Section input says otherwise, and weights.input is weights.
    """
    if spec is None or config.weights.input == "recipe":
        return config
    default = InputSpec()
    for name in _OF_WEIGHTS:
        own, theirs = getattr(config.input, name), getattr(spec, name)
        if own != getattr(default, name) and not _agree(own, theirs):
            raise ValueError(
                f"input.{name}={_plain(own)}, but the weights were trained with {_plain(theirs)}; leave it out, or, if "
                "you know better, say so by --weights.input recipe (then section input says it all)."
            )
    size_px = config.input.size_px or spec.size_px
    return replace_section(config, "input", size_px=size_px, **{name: getattr(spec, name) for name in _OF_WEIGHTS})


def _agree(own: Any, theirs: Any) -> bool:
    if isinstance(own, tuple) and isinstance(theirs, tuple):
        return len(own) == len(theirs) and all(abs(a - b) <= _CLOSE for a, b in zip(own, theirs, strict=True))
    return bool(own == theirs)


def _plain(value: Any) -> Any:
    return [round(one, 4) for one in value] if isinstance(value, tuple) else value


def describe_input(spec: InputSpec, *, given: InputSpec | None, is_grey: bool) -> str:
    """Lines on what the network will see: as the weights were trained, or how it differs.

    Args:
        spec: What it will see, complete.
        given: What the weights were trained with; None where nobody says.
        is_grey: Whether every image of the data is grey.
    """
    if given is None:
        return "input: nothing says what these weights were trained with; section input and the images decide"
    names = ("size_px", *_OF_WEIGHTS)
    differing = [
        f"{name} {_plain(getattr(spec, name))} (weights: {_plain(getattr(given, name))})"
        for name in names
        if not _agree(getattr(spec, name), getattr(given, name))
    ]
    line = "input: as the weights were trained" + (f", but for {'; '.join(differing)}" if differing else "")
    return line + ("\nall images are grey: they are shown in three equal channels" * (is_grey and spec.channels == 3))


def describe_images(images_NCHW: Tensor, spec: InputSpec) -> str:
    """A line on the images as the network sees them, with what is unusual about them.

    Args:
        images_NCHW: float, some images of train, normalised.
        spec: By what they were normalised.

    Raises:
        ValueError: All of them are black: they were stored on the scale 0 to 1.
    """
    assert spec.mean is not None, "complete_input leaves no field open"
    assert spec.std is not None, "as above"
    images = images_NCHW.double()
    mean_C, std_C = images.mean(dim=(0, 2, 3)), images.std(dim=(0, 2, 3))
    pixels = images * torch.tensor(spec.std).view(-1, 1, 1) + torch.tensor(spec.mean).view(-1, 1, 1)
    if pixels.max() <= _MOST_CONSTANT:
        raise ValueError(
            f"the images are black: of {len(images)} of train, no pixel is above {255 * float(pixels.max()):.1f} of "
            "255. Were they stored on the scale 0 to 1? Multiply by 255 before they are stored."
        )
    unusual = bool((mean_C.abs() > _UNUSUAL_MEAN).any()) or not all(
        _UNUSUAL_STD[0] <= float(one) <= _UNUSUAL_STD[1] for one in std_C
    )
    means, stds = (", ".join(f"{float(one):.2f}" for one in values) for values in (mean_C, std_C))
    line = f"images as the network sees them: mean ({means}), std ({stds})"
    return line + (
        ", where the weights expect about 0 and 1: these images look unlike those that they were trained on" * unusual
    )
