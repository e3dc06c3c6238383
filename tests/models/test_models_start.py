"""Networks that start from the training images, and those that do not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from models.start import start_from_images


class Started(nn.Module):
    """A network of a user's own; what its start does is given."""

    num_start_images: object = 7

    def __init__(self, start: Callable[["Started", Tensor], object] | None = None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(4, 2))
        self.register_buffer("level", torch.ones(()))
        self.register_buffer("unsaved", torch.ones(()), persistent=False)
        self.factor = 1.0
        if start is not None:
            self.start_from = lambda images_NCHW: start(self, images_NCHW)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        logits: Tensor = self.net(images_NCHW) * self.factor * self.level * self.unsaved
        return logits


class Reader:
    def __init__(self) -> None:
        self.asked: list[int] = []

    def __call__(self, *, num_images: int) -> Tensor:
        self.asked.append(num_images)
        return torch.full((num_images, 1, 2, 2), 3.0)


@torch.no_grad()
def take_mean(module: Started, images_NCHW: Tensor) -> None:
    module.net[2].bias.fill_(images_NCHW.mean())
    module.level.fill_(0.5)


@torch.no_grad()
def draw(module: Started, images_NCHW: Tensor) -> None:
    module.net[2].weight.normal_()


def test_a_network_that_asks_is_shown_as_many_images_as_it_asks_for() -> None:
    module, reader = Started(take_mean), Reader()
    start_from_images(module, reader, seed=0)
    assert reader.asked == [7]
    assert module.net[2].bias.tolist() == [3.0, 3.0]
    assert module.level == 0.5
    assert module.training


@pytest.mark.parametrize("num_images", [None, 0])
def test_for_any_other_network_no_image_is_read(num_images: int | None) -> None:
    module, reader = nn.Linear(4, 2), Reader()
    if num_images is not None:
        module.num_start_images = num_images  # type: ignore[assignment]
    before = module.bias.tolist()
    start_from_images(module, reader, seed=0)
    assert reader.asked == []
    assert module.bias.tolist() == before


def test_what_is_drawn_follows_from_the_seed_and_leaves_the_generator_alone() -> None:
    torch.manual_seed(9)
    before = torch.get_rng_state()
    weights = []
    for seed in (1, 1, 2):
        module = Started(draw)
        torch.rand(3)
        torch.set_rng_state(before)
        start_from_images(module, Reader(), seed=seed)
        assert torch.equal(torch.get_rng_state(), before)
        weights.append(module.net[2].weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("num_images", [-5, 2.5, True, "all"])
def test_a_number_of_images_that_is_none_is_refused_before_any_is_read(num_images: object) -> None:
    module, reader = Started(take_mean), Reader()
    module.num_start_images = num_images
    with pytest.raises(ValueError, match=r"^Started has num_start_images=.*; use a whole number of images"):
        start_from_images(module, reader, seed=0)
    assert reader.asked == []


def test_a_network_that_asks_and_cannot_take_them_is_told_what_to_write() -> None:
    with pytest.raises(ValueError, match=r"^Started has num_start_images=7, but no method start_from\(images\)"):
        start_from_images(Started(), Reader(), seed=0)


def test_a_start_that_fails_is_told_with_its_place() -> None:
    def write_without_no_grad(module: Started, images_NCHW: Tensor) -> None:
        module.net[2].bias.fill_(1.0)

    with pytest.raises(ValueError, match=r"^Started\.start_from\(images\) failed: RuntimeError: a leaf .*\.py:\d+$"):
        start_from_images(Started(write_without_no_grad), Reader(), seed=0)


def test_weights_that_are_not_finite_are_named() -> None:
    def divide(module: Started, images_NCHW: Tensor) -> None:
        module.net[2].weight.data.div_(images_NCHW.std())  # of equal images

    with pytest.raises(ValueError, match=r"leaves net\.2\.weight not finite"):
        start_from_images(Started(divide), Reader(), seed=0)


def set_attribute(module: Started, images_NCHW: Tensor) -> None:
    module.factor = -2.0


def set_unsaved_buffer(module: Started, images_NCHW: Tensor) -> None:
    module.unsaved.fill_(2.0)


def add_layer(module: Started, images_NCHW: Tensor) -> None:
    module.net.append(nn.Linear(2, 2))


@pytest.mark.parametrize("start", [set_attribute, set_unsaved_buffer, add_layer])
def test_what_no_checkpoint_would_hold_is_refused(start: Callable[[Started, Tensor], object]) -> None:
    with pytest.raises(ValueError, match=r"^Started\.start_from\(images\) sets something that no checkpoint holds"):
        start_from_images(Started(start), Reader(), seed=0)
