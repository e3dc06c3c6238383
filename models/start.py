"""Networks that start from the training images: whitening, and other weights that the data decides.

network with num_start_images and start_from -> that many training images -> start_from -> checked, ready for training
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from models.trial import describe_error, show_images

_NUM_SHOWN = 2  # images by which it is found out whether a checkpoint would hold all that was set


class ReadImages(Protocol):
    """Gives so many training images, or all if there are fewer: float (N, C, S, S), on the CPU, not augmented."""

    def __call__(self, *, num_images: int) -> Tensor: ...  # noqa: D102


def start_from_images(module: nn.Module, read_images: ReadImages, *, seed: int) -> None:
    """Shows training images to a network that asks for them, before any training; leaves all others as they are.

    A network asks by an attribute `num_start_images` above 0, and takes them by a method `start_from`, which sets
    parameters and persistent buffers. Torch is seeded for it, and its generator left as it was. A run that continues
    has the weights replaced by its checkpoint's.

    Args:
        module: The network, on the CPU.
        read_images: Where the images come from, normalised.
        seed: What the network draws in `start_from` follows from it.

    Raises:
        ValueError: It asks for no whole number of images, has no such method, or the method fails, leaves something
            that is not finite, or sets what no checkpoint would hold.
    """
    num_images = getattr(module, "num_start_images", 0)
    if num_images == 0:
        return
    name = type(module).__name__
    if type(num_images) is not int or num_images < 0:
        raise ValueError(f"{name} has num_start_images={num_images!r}; use a whole number of images, or leave it out.")
    start_from = getattr(module, "start_from", None)
    if not callable(start_from):
        raise ValueError(
            f"{name} has num_start_images={num_images}, but no method start_from(images) that takes them; write one, "
            "or leave the attribute out."
        )
    images_NCHW = read_images(num_images=num_images)
    weights, shown = _copy_state(module), show_images(module, images_NCHW[:_NUM_SHOWN])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            start_from(images_NCHW)
        except Exception as error:  # whatever a network of your own does with them
            raise ValueError(f"{name}.start_from(images) failed: {describe_error(error)}") from error
    _check_started(module, weights=weights, images_NCHW=images_NCHW[:_NUM_SHOWN], shown=shown)


def _check_started(module: nn.Module, *, weights: dict[str, Any], images_NCHW: Tensor, shown: Tensor) -> None:
    """With its former weights it must do what it did before: what a checkpoint holds is then all that was set."""
    name, started = type(module).__name__, _copy_state(module)
    for key, value in started.items():
        if not value.isfinite().all():
            raise ValueError(f"{name}.start_from(images) leaves {key} not finite; look at how it is computed.")
    lost = (
        f"{name}.start_from(images) sets something that no checkpoint holds, and evaluate.py would not find: set "
        "parameters, or buffers made by register_buffer in __init__, in place."
    )
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:  # parameters came, went or have another shape
        raise ValueError(f"{lost} ({describe_error(error)})") from error
    if not torch.allclose(show_images(module, images_NCHW), shown, rtol=0, atol=0, equal_nan=True):
        raise ValueError(lost)
    module.load_state_dict(started)


def _copy_state(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().clone() for key, value in module.state_dict().items()}
