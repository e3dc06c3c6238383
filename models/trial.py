"""One black image through a network before any training: what it does not take is found out at once.

network + (1, C, S, S) zeros, in evaluation mode -> logits (1, K)? -> as it was before
"""

import contextlib
import traceback
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from models.arguments import Blueprint

_LARGER_PX = (32, 64, 96, 128, 224)  # tried where an image is too small, to say what would do


def check_output(
    module: nn.Module, blueprint: Blueprint, *, stem: str, channels: int, size_px: int, num_classes: int
) -> None:
    """Checks that a network makes logits of the data's images.

    Args:
        module: The network, on the CPU.
        blueprint: What it was built from.
        stem: default or small.
        channels: Channels of the images.
        size_px: Height and width of the images.
        num_classes: Classes of the data.

    Raises:
        ValueError: It does not take such images, or gives something else than float logits (1, num_classes).
    """
    name = blueprint.name
    try:
        logits = show_black_image(module, channels=channels, size_px=size_px)
    except Exception as error:  # whatever a network does with an image it is not made for
        why = _explain(module, blueprint, stem=stem, channels=channels, size_px=size_px)
        raise ValueError(f"{why} ({describe_error(error)})") from error
    if not isinstance(logits, Tensor):
        raise ValueError(f"{name} gives a {type(logits).__name__}; wanted: one tensor of logits (images, classes).")
    if tuple(logits.shape) != (1, num_classes):
        raise ValueError(
            f"{name} gives {tuple(logits.shape)} for one image, but the data has {num_classes} classes; wanted: "
            f"(1, {num_classes}). A network of your own is told how many where it takes the argument num_classes."
        )
    if not logits.is_floating_point():
        raise ValueError(f"{name} gives {logits.dtype}; wanted: logits in floating point, without argmax or rounding.")


def show_black_image(module: nn.Module, *, channels: int, size_px: int) -> Any:
    """What the network makes of one black image in evaluation mode; it and torch's generator stay as they were."""
    return show_images(module, torch.zeros(1, channels, size_px, size_px))


def show_images(module: nn.Module, images_NCHW: Tensor) -> Any:
    """What the network makes of images in evaluation mode; it and torch's generator stay as they were."""
    with _in_evaluation(module), torch.no_grad(), torch.random.fork_rng(devices=[]):
        # not inference_mode: a lazy layer becomes real here, and its parameters must be fit for training
        return module(images_NCHW)


def describe_error(error: Exception) -> str:
    """Kind and text of another's error, and where it arose."""
    places = traceback.extract_tb(error.__traceback__)
    place = f" at {places[-1].filename}:{places[-1].lineno}" if places else ""
    text = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {text}{place}"


def _explain(module: nn.Module, blueprint: Blueprint, *, stem: str, channels: int, size_px: int) -> str:
    """Why it failed and what to do, found out by trying other images."""
    name = blueprint.name
    if channels == 1 and _takes(module, channels=3, size_px=size_px):
        return (
            f"{name} takes colour images only (3 channels), and the data is grey (1 channel); --input.channels 3 shows "
            "grey images as colour."
        )
    if channels == 3 and _takes(module, channels=1, size_px=size_px):
        return (
            f"{name} takes grey images only (1 channel), and the data is in colour (3 channels); --input.channels 1 "
            "shows colour images as grey."
        )
    if blueprint.is_sized and stem == "small":
        return f"{name} is built for one image size and does not work with model.stem=small; leave it at default."
    larger = [one for one in _LARGER_PX if one > size_px and not blueprint.is_sized]
    least = next((one for one in larger if _takes(module, channels=channels, size_px=one)), None)
    if least is not None:
        small = ", or try --model.stem small" if blueprint.has_stem and stem == "default" else ""
        return f"{name} does not take images of {size_px} px, but takes {least}: use --input.size_px {least}{small}."
    return f"{name} fails on a black image of {channels} x {size_px} x {size_px}."


def _takes(module: nn.Module, *, channels: int, size_px: int) -> bool:
    try:
        show_black_image(module, channels=channels, size_px=size_px)
    except Exception:
        return False
    return True


@contextlib.contextmanager
def _in_evaluation(module: nn.Module) -> Iterator[None]:
    modes = {one: one.training for one in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for one, was_training in modes.items():
            one.training = was_training
