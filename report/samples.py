"""samples.npz -> tiles for a page: each training image as the network sees it, and what it is labelled as.

The page lays them out, not matplotlib: so they wrap on a phone, and labels in any script are written.
"""

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from engine.record import Samples

_LARGE_PX = 96  # above: JPEG, so that a page of photographs stays small; below: PNG, shown in whole squares
_HARDLY = 0.005  # weights that round to 0.00 are not worth a word


class Tile(NamedTuple):
    """An image as a file (`media_type`: image/png or image/jpeg), its size, and its label in words."""

    label: str
    content: bytes
    media_type: str
    width_px: int
    height_px: int

    @property
    def is_small(self) -> bool:
        """Whether the page scales it up, without blur."""
        return max(self.width_px, self.height_px) <= _LARGE_PX


def build_tiles(samples: Samples, *, class_names: Sequence[str], limit: int) -> list[Tile]:
    """The first `limit` samples as tiles.

    Args:
        samples: What samples.npz holds.
        class_names: Names in the order of labels.
        limit: How many to give at most.
    """
    weights = samples.weight_N.tolist()
    pairs = zip(samples.labels_N.tolist(), samples.partner_labels_N.tolist(), strict=True)
    labels = [
        describe_mix(class_names[own], partner=class_names[partner], weight=weight)
        for (own, partner), weight in zip(pairs, weights, strict=True)
    ]
    images = samples.images_NHWC[:limit]
    return [_build_tile(image, label=label) for image, label in zip(images, labels, strict=False)]


def describe_mix(own: str, *, partner: str, weight: float) -> str:
    """`cat`, or `0.7 cat + 0.3 dog` where another image is mixed in."""
    if weight > 1 - _HARDLY:
        return own
    if weight < _HARDLY:
        return partner
    return f"{round(weight, 2):g} {own} + {round(1 - weight, 2):g} {partner}"


def _build_tile(image_HWC: NDArray[np.uint8], *, label: str) -> Tile:
    height_px, width_px, channels = image_HWC.shape
    image = Image.fromarray(image_HWC[:, :, 0] if channels == 1 else image_HWC)
    content = io.BytesIO()
    if max(height_px, width_px) <= _LARGE_PX:
        image.save(content, "PNG")
        return Tile(label, content.getvalue(), "image/png", width_px, height_px)
    image.save(content, "JPEG", quality=92, subsampling=0)
    return Tile(label, content.getvalue(), "image/jpeg", width_px, height_px)
