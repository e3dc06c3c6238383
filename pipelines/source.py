"""Where images come from: labels and sizes as arrays, pixels by sample id.

FolderSource (pipelines/sources/folder.py) and ArraySource have the same door, `Source`.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipelines.jpeg_window import Window
from pipelines.scratch import Arena, Scratch

WHAT_TO_DO = (
    "Repair or remove it, or go on without: --data.on_bad_sample replace (in training), "
    "--data.on_bad_eval_sample exclude (in evaluation)."
)


_NUM_NAMED = 5  # how many bad images an error names


class Source(Protocol):
    """The samples of one split; sample ids are 0..N-1.

    class_names: one per label.
    labels_N: int64 (N,), 0..num_classes-1.
    sizes_N2: int32 (N, 2), height and width of each stored image in pixels; 0, 0 where that is not known.
    is_grey: every image is grey.
    bad: the samples that are known to be unreadable before anything is read, and why.
    weights_N: float64 (N,), at least 0, how often each sample is to be met in proportion to the others; None where the
        data does not say.
    """

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def labels_N(self) -> npt.NDArray[np.int64]: ...  # noqa: D102
    @property
    def sizes_N2(self) -> npt.NDArray[np.int32]: ...  # noqa: D102
    @property
    def is_grey(self) -> bool: ...  # noqa: D102

    @property
    def bad(self) -> Mapping[int, str]: ...  # noqa: D102
    @property
    def weights_N(self) -> npt.NDArray[np.float64] | None: ...  # noqa: D102

    def describe(self, sample_id: int) -> str:
        """What to call a sample in a message: the path of its file, where it has one."""
        ...

    def read_image(
        self,
        sample_id: int,
        *,
        channels: int,
        scratch: Scratch | None = None,
        window: Window | None = None,
        least_px: tuple[int, int] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The pixels, uint8 (H, W, C), of the window, or of the whole image, which has the size in `sizes_N2`.

        They lie in `scratch`, if given, until its next use. Of an image that has been found whole before, what lies
        beside the window need not be decoded. Given `least_px`, height and width, a JPEG's window may come at a half,
        a quarter or an eighth of its size, as long as it is not smaller than that; see `pipelines.decode.scale_of`.

        Raises:
            ValueError: The image cannot be read; the message gives the reason, not the name.
        """
        ...

    def read_jpeg(self, sample_id: int, *, scratch: Scratch | Arena | None = None) -> memoryview | None:
        """The encoded bytes of a sample stored as an upright grey or RGB JPEG; None of every other.

        Raises:
            ValueError: The file cannot be read; the message gives the reason, not the name.
        """
        ...

    def take(self, ids: npt.NDArray[np.int64]) -> "Source":
        """The samples `ids` as a source of their own, numbered from 0."""
        ...

    def fingerprint(self) -> str:
        """A hash of what the samples are, the same wherever the data lies."""
        ...


@dataclass(frozen=True, kw_only=True)
class ArraySource:
    """Images of one size in memory: images_NHWC is uint8 (N, H, W, C), C being 1 or 3.

    crcs_N: uint32 (N,), CRC-32 of the images as they were read, which the fingerprint takes where they are given.
    """

    class_names: tuple[str, ...]
    labels_N: npt.NDArray[np.int64]
    images_NHWC: npt.NDArray[np.uint8]
    crcs_N: npt.NDArray[np.uint32] | None = None
    bad: Mapping[int, str] = field(default_factory=dict)
    weights_N: None = None

    def describe(self, sample_id: int) -> str:
        """`image 17`."""
        return f"image {sample_id}"

    @property
    def sizes_N2(self) -> npt.NDArray[np.int32]:
        """int32 (N, 2), height and width."""
        return np.tile(np.array(self.images_NHWC.shape[1:3], dtype=np.int32), (len(self.labels_N), 1))

    @property
    def is_grey(self) -> bool:
        """Whether the images have one channel."""
        return int(self.images_NHWC.shape[3]) == 1

    def read_image(
        self,
        sample_id: int,
        *,
        channels: int,
        scratch: Scratch | None = None,
        window: Window | None = None,
        least_px: tuple[int, int] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The pixels, uint8 (H, W, C); grey is repeated where three channels are asked for."""
        image: npt.NDArray[np.uint8] = self.images_NHWC[sample_id]
        if window is not None:
            image = cut(image, window)
        if image.shape[2] == channels:
            return image
        if channels == 3:
            return np.repeat(image, 3, axis=2)
        raise ValueError(f"input.channels={channels}, but these images have {image.shape[2]}; use 3.")

    def read_jpeg(self, sample_id: int, *, scratch: Scratch | Arena | None = None) -> None:
        """None: the images are not encoded."""
        return None

    def take(self, ids: npt.NDArray[np.int64]) -> "ArraySource":
        """The samples `ids`, numbered from 0."""
        bad = {place: self.bad[int(old)] for place, old in enumerate(ids) if int(old) in self.bad}
        crcs_N = None if self.crcs_N is None else self.crcs_N[ids]
        return replace(self, labels_N=self.labels_N[ids], images_NHWC=self.images_NHWC[ids], crcs_N=crcs_N, bad=bad)

    def fingerprint(self) -> str:
        """A hash of class names, labels and pixels."""
        if self.crcs_N is not None:
            return fingerprint_of(self.class_names, self.labels_N, self.sizes_N2, self.crcs_N)
        digest = hashlib.sha256(repr((self.class_names, self.images_NHWC.shape)).encode())
        digest.update(self.labels_N.tobytes())
        digest.update(self.images_NHWC.tobytes())
        return digest.hexdigest()


def fingerprint_of(
    class_names: tuple[str, ...],
    labels_N: npt.NDArray[np.int64],
    sizes_N2: npt.NDArray[np.int32],
    crcs_N: npt.NDArray[np.uint32],
) -> str:
    """A hash of what samples are by the CRC-32 of their pixels, the same whether or not they are held in memory."""
    digest = hashlib.sha256(repr(class_names).encode())
    for array in (labels_N, sizes_N2, crcs_N):
        digest.update(array.tobytes())
    return digest.hexdigest()


def cut(pixels: npt.NDArray[np.uint8], window: Window) -> npt.NDArray[np.uint8]:
    """The window of an image, (H, W, C), in the same memory."""
    top, left, height, width = window
    return pixels[top : top + height, left : left + width]


def explain_bad(source: Source, sample_id: int, reason: str) -> str:
    """`PATH: reason`, and what to do about it."""
    return f"{source.describe(sample_id)}: {reason}. {WHAT_TO_DO}"


def refuse_bad(source: Source, bad: Mapping[int, str]) -> None:
    """Raises if there are bad samples.

    Raises:
        ValueError: There are; the first few are named.
    """
    if not bad:
        return
    first = [f"{source.describe(sample_id)}: {reason}" for sample_id, reason in list(bad.items())[:_NUM_NAMED]]
    raise ValueError(
        f"{len(bad)} of {len(source.labels_N)} images cannot be read:\n  "
        + "\n  ".join(first + ["..."] * (len(bad) > _NUM_NAMED))
        + f"\n{WHAT_TO_DO}"
    )
