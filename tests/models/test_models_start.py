"""Networks that start from the training images, and those that do not."""

import pytest
import torch
from torch import Tensor, nn

from models.start import start_from_images


class Started(nn.Linear):
    """A network of a user's own: its bias begins as the mean of the images."""

    num_start_images = 7

    def start_from(self, images_NCHW: Tensor) -> None:
        with torch.no_grad():
            self.bias.fill_(images_NCHW.mean())


class Reader:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, *, num_images: int) -> Tensor:
        self.asked.append(num_images)
        return torch.full((num_images, 1, 2, 2), 3.0)


def test_a_network_that_asks_is_shown_as_many_images_as_it_asks_for() -> None:
    module, reader = Started(4, 2), Reader()
    start_from_images(module, reader)
    assert reader.asked == [7]
    assert module.bias.tolist() == [3.0, 3.0]


def test_for_any_other_network_no_image_is_read() -> None:
    module, reader = nn.Linear(4, 2), Reader()
    before = module.bias.tolist()
    start_from_images(module, reader)
    assert reader.asked == []
    assert module.bias.tolist() == before


def test_a_network_that_asks_and_cannot_take_them_is_told_what_to_write() -> None:
    module = nn.Linear(4, 2)
    module.num_start_images = 5  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"Linear has num_start_images=5, but no method start_from\(images\)"):
        start_from_images(module, Reader())
