"""Networks that start from the training images: whitening, and other weights that the data decides.

network with num_start_images and start_from -> that many training images -> start_from -> ready for training
"""

from typing import Protocol

from torch import Tensor, nn


class ReadImages(Protocol):
    """Gives so many training images, or all if there are fewer: float (N, C, S, S), on the CPU, not augmented."""

    def __call__(self, *, num_images: int) -> Tensor: ...  # noqa: D102


def start_from_images(module: nn.Module, read_images: ReadImages) -> None:
    """Shows training images to a network that asks for them, before any training; leaves all others as they are.

    A network asks by an attribute `num_start_images` above 0, and takes them by a method `start_from`. It must do the
    same with the same images on every rank; a run that continues has its weights replaced by the checkpoint's.

    Args:
        module: The network, on the CPU.
        read_images: Where the images come from, normalised.

    Raises:
        ValueError: It asks and has no such method.
    """
    num_images = getattr(module, "num_start_images", 0)
    if not num_images:
        return
    start_from = getattr(module, "start_from", None)
    if not callable(start_from):
        raise ValueError(
            f"{type(module).__name__} has num_start_images={num_images}, but no method start_from(images) that takes "
            "them; write one, or leave the attribute out."
        )
    start_from(read_images(num_images=num_images))
