"""The jobs that every loader is timed on, and the DataLoader that half of the peers run in."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

Epoch = Callable[[], Iterator[Any]]
"""One epoch each time it is called; what it yields has as many items (`len`) as images went into it."""

Augment = Literal["none", "randaugment", "color_jitter"]
"""What is done to pixels after the flip."""

Stored = Literal["files", "jpeg", "raw"]
"""How images lie on the disk: as they came, as JPEG files of one quality, as pixels."""

NUM_OPERATIONS, MAGNITUDE, NUM_BINS = 2, 9, 31  # of RandAugment
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1}


@dataclass(frozen=True, kw_only=True)
class CifarJob:
    """Small images in memory -> shift by reflection, flip, `augment` -> normalised float32 batches on the CPU.

    images_NHWC: uint8 (N, 32, 32, 3). labels_N: int64 (N,). mean, std: per channel, of values 0..1.
    folder: where a peer may write files of its own.
    """

    images_NHWC: npt.NDArray[np.uint8]
    labels_N: npt.NDArray[np.int64]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    folder: Path
    batch_size: int = 512
    max_shift_px: int = 4
    num_threads: int = 2
    augment: Augment = "none"

    def __len__(self) -> int:
        return len(self.images_NHWC)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image `index` and its label."""
        return Image.fromarray(self.images_NHWC[index]), int(self.labels_N[index])


@dataclass(frozen=True, kw_only=True)
class ImagenetJob:
    """JPEG files -> RandomResizedCrop (bilinear, antialiased where the peer can), flip, `augment` -> uint8 batches.

    Batches lie on the CPU. Where images are stored beforehand (`stored` is not "files"), a contender reads `paths`, or
    stores `originals` in its own format at the same size and quality.

    paths: the files of one epoch, in which a file may occur several times.
    originals: the JPEG files that `paths` were made from, in the same order; none: they are `paths` themselves.
    folder: where a peer may write files of its own.
    long_side_px: to which larger images were made smaller before they were stored; None: none were.
    quality: of JPEG, 1..95, with colour at half resolution (4:2:0).
    """

    paths: Sequence[str]
    folder: Path
    originals: Sequence[str] | None = None
    stored: Stored = "files"
    long_side_px: int | None = None
    quality: int = 90
    batch_size: int = 64
    size_px: int = 224
    area_frac: tuple[float, float] = (0.08, 1.0)
    aspect_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    num_threads: int = 2
    augment: Augment = "none"

    def __len__(self) -> int:
        return len(self.paths)

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image `index`, and 0 for a label."""
        return _open_rgb(self.paths[index]), 0

    def load_original(self, index: int) -> tuple[Image.Image, int]:
        """The same image as it came, before it was stored."""
        return _open_rgb((self.originals or self.paths)[index]), 0


@dataclass(frozen=True, kw_only=True)
class DecodedJob:
    """Images in memory, at the size of the network's input -> `augment` -> uint8 batches on the CPU.

    images_NHWC: uint8 (N, S, S, 3). folder: where a contender may write files of its own.
    """

    images_NHWC: npt.NDArray[np.uint8]
    folder: Path
    batch_size: int = 64
    num_threads: int = 2
    augment: Augment = "none"

    def __len__(self) -> int:
        return len(self.images_NHWC)

    @property
    def size_px(self) -> int:
        """Height and width."""
        return int(self.images_NHWC.shape[1])

    def load(self, index: int) -> tuple[Image.Image, int]:
        """Image `index`, and 0 for a label."""
        return Image.fromarray(self.images_NHWC[index]), 0


class Samples(torch.utils.data.Dataset[tuple[Any, int]]):
    """What users write: a Dataset that loads one image and transforms it."""

    def __init__(
        self, job: CifarJob | ImagenetJob | DecodedJob, load: Callable[[int], tuple[Any, int]], *, transform: Any
    ) -> None:
        self._num_samples, self._load, self._transform = len(job), load, transform

    def __len__(self) -> int:
        return self._num_samples

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self._load(index)
        return self._transform(image), label


def epochs_of_dataloader(samples: Samples, job: CifarJob | ImagenetJob | DecodedJob) -> Epoch:
    """A shuffling DataLoader whose workers stay between epochs; its batches of images, labels dropped."""
    loader = torch.utils.data.DataLoader(
        samples,
        batch_size=job.batch_size,
        shuffle=True,
        num_workers=job.num_threads,
        drop_last=True,
        persistent_workers=True,
        worker_init_fn=_keep_opencv_to_one_thread,
    )
    return lambda: (images for images, _ in loader)


def write_beton(job: CifarJob | ImagenetJob, field: Any, *, name: str) -> str:
    """Writes the job's images as FFCV's own kind of file and returns its path; `field` says how images are stored.

    Of images that were stored beforehand it takes the originals: no JPEG is made from another one.
    """
    from ffcv.fields import IntField
    from ffcv.writer import DatasetWriter

    path = str(job.folder / f"{name}.beton")  # a name for each peer: FFCV overwrites files that are still mapped
    writer = DatasetWriter(path, {"image": field, "label": IntField()}, num_workers=job.num_threads)
    load = job.load_original if isinstance(job, ImagenetJob) else job.load
    writer.from_indexed_dataset(Samples(job, load, transform=unchanged))
    return path


def unchanged(image: Any) -> Any:
    """No transform."""
    return image


def _open_rgb(path: str) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def _keep_opencv_to_one_thread(worker: int) -> None:
    try:
        import cv2
    except ImportError:
        return
    cv2.setNumThreads(0)
