"""Run folders made by hand, through RunFolder, as train.py leaves them; and pages as a reader sees them."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import numpy as np

from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from engine.record import Samples

CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="simple_cnn", args={"norm": "batch"}),
    optim=OptimConfig(name="sgd", lr=0.1),
    train=TrainConfig(epochs=6, global_batch_size=60),
)
VOID = {"meta", "img", "br", "link", "input"}


def epoch_row(epoch: int, **changes: Any) -> dict[str, Any]:
    """The row that ends an epoch of a run that neither over-fits nor waits."""
    row = {
        "step": epoch,
        "epoch": epoch,
        "train/epoch_loss": 1 + 1 / epoch,
        "train/epoch_top1_frac": 0.8 - 0.4 / epoch,
        "val/loss": 1.1 + 1 / epoch,
        "val/top1_frac": 0.8 - 0.4 / epoch,
        "val/num_samples": 5000,
        "lr": 0.1 / epoch,
        "train/images_per_s": 1000.0,
        "train/data_wait_frac": 0.01,
        "train/epoch_s": 30.0,
    }
    return {key: value for key, value in (row | changes).items() if value is not None}


def make_confusion(num_classes: int, *, per_class: int) -> np.ndarray:
    rng = np.random.default_rng(num_classes)
    counts_KK = np.zeros((num_classes, num_classes), dtype=np.int64)
    for place in range(num_classes):
        weights = rng.random(num_classes) * 0.2 / num_classes
        weights[place] += 0.8
        counts_KK[place] = rng.multinomial(per_class, weights / weights.sum())
    return counts_KK


def make_samples(num_samples: int, *, num_classes: int, size_px: int = 8, channels: int = 3) -> Samples:
    rng = np.random.default_rng(0)
    weight_N = np.where(np.arange(num_samples) % 2, 0.7, 1).astype(np.float32)
    return Samples(
        rng.integers(0, 256, (num_samples, size_px, size_px, channels), dtype=np.uint8),
        np.arange(num_samples) % num_classes,
        (np.arange(num_samples) + 1) % num_classes,
        weight_N,
    )


class Page(HTMLParser):
    """An HTML page as a reader sees it; reading fails where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        """What is written on it, white space as one space."""
        return " ".join(" ".join(self.words).split())

    @property
    def images(self) -> list[dict[str, str | None]]:
        """The attributes of its pictures."""
        return [attributes for tag, attributes in self.tags if tag == "img"]

    def urls(self) -> Iterator[str]:
        """Everything that would be loaded or followed."""
        for _, attributes in self.tags:
            for name in ("src", "href", "srcset", "action", "data"):
                if attributes.get(name):
                    yield str(attributes[name])
