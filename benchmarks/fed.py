"""Our own loaders, as they feed a contender of benchmarks.throughput.

dali, threads   files -> links, an image folder -> each so many times -> crop rrc, flip random     |
resident        50,000 images of noise, CIFAR-10's size -> shift by up to 2 px, flip alternating  |
                   -> build_training_loader -> FedLoader: epoch after epoch, the wait for each batch measured
"""

import json
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.photographs import link_as_image_folder, list_jpegs
from pipelines.batch import Batch, Loader
from pipelines.source import ArraySource, Source
from pipelines.sources.scan import scan_folder

FEEDS = ("dali", "threads", "resident")  # backends of the loader, and the last word of a contender's name
_FROM_FILES = ("dali", "threads")
_AUGMENT = {
    "dali": {"crop": "rrc", "pad_px": 4, "flip": "random"},  # rrc does not read pad_px: the default
    "threads": {"crop": "rrc", "pad_px": 4, "flip": "random"},
    "resident": {"crop": "pad", "pad_px": 2, "flip": "alternating"},  # as configs/cifar10/speedrun94.yaml
}
_NUM_NOISE, _NOISE_PX = 50_000, 32
_MOST_WITHIN = 2  # batches that may be ready beside those prefetched: dali's graph holds so many


class Feed(NamedTuple):
    """What fed contenders read, and how.

    images: folder of JPEG files, flat or nested; None = there is none, which will do for resident. copies: how often
    each file stands in an epoch; None = so often that no epoch ends while it is measured. loader: further fields of
    section loader as KEY=VALUE, or as BACKEND.KEY=VALUE for the contenders of one backend.
    """

    images: Path | None = None
    copies: int | None = None
    loader: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The same as options of benchmarks.throughput."""
        words = [] if self.images is None else ["--images", str(self.images)]
        words += [] if self.copies is None else ["--copies", str(self.copies)]
        return words + [word for field in self.loader for word in ("--loader", field)]


class Turns(Protocol):
    """Who is told before each step, and how long the step then waited for its batch."""

    waited_s: float

    def before_step(self) -> None: ...  # noqa: D102


def feed_of(contender: str) -> str | None:
    """The backend that feeds a contender; None = a batch on the device does."""
    last = contender.rsplit("_", 1)[-1]
    return last if last in FEEDS else None


def loader_fields(backend: str, feed: Feed) -> dict[str, str]:
    """The further fields of section loader that the contenders of a backend have.

    Raises:
        ValueError: One is not KEY=VALUE.
    """
    fields = {}
    for given in feed.loader:
        name, equals, value = given.partition("=")
        own, dot, key = name.rpartition(".")
        if not equals or (dot and own not in FEEDS) or key == "backend":
            raise ValueError(
                f"loader field {given!r} is not KEY=VALUE, or BACKEND.KEY=VALUE with one of {', '.join(FEEDS)}, such "
                "as num_threads=8 or dali.hw_decoder_load=0.65; the backend itself is the last word of a contender."
            )
        if own in ("", backend):
            fields[key] = value
    return fields


def fed_words(backend: str, feed: Feed) -> list[str]:
    """Options of a run that is fed by a backend.

    Raises:
        ValueError: As `loader_fields`.
    """
    fields = [word for key, value in loader_fields(backend, feed).items() for word in (f"--loader.{key}", value)]
    return [*fields, "--loader.backend", backend, "--augment", json.dumps(_AUGMENT[backend])]


def plan_feed(feed: Feed, contenders: Sequence[str], *, size_px: int, batch_size: int, num_steps: int) -> Feed:
    """`feed` with its copies counted, checked against who is fed by it.

    Args:
        feed: What was asked for.
        contenders: Their names.
        size_px: Height and width of what the network sees.
        batch_size: Images of a step.
        num_steps: Steps that are taken in all.

    Raises:
        ValueError: It lacks what one of them needs, or has what nobody reads.
    """
    fed_by = dict(zip(map(feed_of, contenders), contenders, strict=True))
    named = {field.partition("=")[0].rpartition(".")[0] for field in feed.loader} & set(FEEDS)
    if (feed.loader and not set(FEEDS) & fed_by.keys()) or named - fed_by.keys():
        raise ValueError(
            f"loader fields {' '.join(feed.loader)}: no contender that reads them among {', '.join(contenders)}; add "
            f"one whose name ends in {' or '.join(sorted(named) or FEEDS)}, or leave them out."
        )
    if "resident" in fed_by and size_px != _NOISE_PX:
        raise ValueError(
            f"{fed_by['resident']} is fed with images of {_NOISE_PX} pixels, as CIFAR-10's, and the size is {size_px}; "
            f"use --size {_NOISE_PX}, or leave it out."
        )
    from_files = [fed_by[backend] for backend in _FROM_FILES if backend in fed_by]
    if not from_files:
        return feed
    if feed.images is None:
        raise ValueError(f"{from_files[0]} is fed from files; give --images DIR, a folder of JPEG files.")
    num_files = len(list_jpegs(feed.images))
    copies = -(-num_steps * batch_size // num_files) if feed.copies is None else feed.copies
    if num_files * copies < batch_size:
        raise ValueError(
            f"{num_files} files in {feed.images} x {copies} copies are less than a batch of {batch_size} images; use "
            f"--copies {-(-batch_size // num_files)} or more, or leave it out."
        )
    return feed._replace(copies=copies)


def build_source(backend: str, feed: Feed, *, num_classes: int, folder: Path) -> Source:
    """The images that a backend is fed with.

    Args:
        backend: One of FEEDS.
        feed: As `plan_feed` gives it.
        num_classes: Of the noise; files have two.
        folder: An empty one, for links; they must stay while the source is read.
    """
    if backend not in _FROM_FILES:
        rng = np.random.default_rng(0)
        return ArraySource(
            class_names=tuple(str(number) for number in range(num_classes)),
            labels_N=rng.integers(num_classes, size=_NUM_NOISE),
            images_NHWC=rng.integers(256, size=(_NUM_NOISE, _NOISE_PX, _NOISE_PX, 3), dtype=np.uint8),
        )
    assert feed.images is not None, "plan_feed has seen to it"
    assert feed.copies is not None, "as above"
    link_as_image_folder(list_jpegs(feed.images), folder)
    source = scan_folder(str(folder), show_progress=False)["train"]
    return source.take(np.tile(np.arange(len(source.labels_N)), feed.copies))


def num_ready(prefetch_batches: int) -> int:
    """Batches, at most, that a loader has ready after a pause."""
    return prefetch_batches + _MOST_WITHIN


class FedLoader:
    """A loader in one long epoch, which takes turns; how long `next` takes is added to the turn's wait.

    Args:
        loader: The real one, iterated epoch after epoch.
        turns: Told before each step.
    """

    num_left_out, max_num_bad, steps_per_epoch = 0, 0, 10**6

    def __init__(self, loader: Loader, turns: Turns) -> None:
        self._loader, self._turns = loader, turns
        self.num_samples = loader.num_samples

    def __iter__(self) -> Iterator[Batch]:
        """Its batches; the real loader's iteration is closed when this one ends, however it does."""
        batches = self._epochs()
        try:
            for _ in range(self.steps_per_epoch):
                self._turns.before_step()
                start_s = time.perf_counter()
                batch = next(batches)
                self._turns.waited_s += time.perf_counter() - start_s
                yield batch
        finally:
            batches.close()

    def _epochs(self) -> Generator[Batch, None, None]:
        while True:
            yield from self._loader

    def take_bad_samples(self) -> list[Any]:
        """Those of the real loader."""
        return list(self._loader.take_bad_samples())

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
