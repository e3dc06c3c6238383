"""The index of one split of a packed data set: where each sample lies in the shards, and what is known of it.

pack (pipelines/packing) -> PackedIndex -> SPLIT.index beside the shards -> mapped by every start

Legend of shape letters: N samples, L restart segments of all of them.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.jpeg_segments import Segments
from pipelines.sources.blocks import load_blocks, save_blocks

_VERSION = 1
RAW = 9  # a kind of sample beside EXIF orientations

PACKED_ARRAYS = (  # in the order of the blocks: the wide ones first
    "labels_N",
    "offsets_N",
    "num_bytes_N",
    "segment_starts_N",
    "shards_N",
    "sizes_N2",
    "crcs_N",
    "cuts_N5",
    "segment_lengths_L",
    "names_N",
    "kinds_N",
    "grey_N",
    "weights_N",
)


@dataclass(frozen=True, kw_only=True)
class PackedIndex:
    """What is known of the samples of one split, in the order of their ids.

    fingerprint: that of the whole split.
    labels_N: int64 (N,).
    shards_N: int32 (N,), which shard a sample lies in. offsets_N, num_bytes_N: int64 (N,), where there.
    sizes_N2: int32 (N, 2), height and width in pixels, upright.
    crcs_N: uint32 (N,), CRC-32 of the stored bytes.
    kinds_N: uint8 (N,), the EXIF orientation, 1 to 8, of a JPEG; RAW of pixels in an .npy; 0 of every other format.
    grey_N: bool (N,).
    names_N: bytes (N,), what the sample was called where it came from.
    weights_N: float64 (N,), see `pipelines.source.Source`; (0,) where there are none.
    segment_starts_N, cuts_N5: int64 (N,), the first of a sample's lengths in `segment_lengths_L`, and int32 (N, 5), the
        other fields of its `pipelines.jpeg_segments.Segments`; zeros of a sample that cannot be cut.
    segment_lengths_L: uint16 (L,).
    """

    fingerprint: str
    labels_N: npt.NDArray[np.int64]
    shards_N: npt.NDArray[np.int32]
    offsets_N: npt.NDArray[np.int64]
    num_bytes_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    crcs_N: npt.NDArray[np.uint32]
    kinds_N: npt.NDArray[np.uint8]
    grey_N: npt.NDArray[np.bool_]
    names_N: npt.NDArray[np.bytes_]
    weights_N: npt.NDArray[np.float64]
    segment_starts_N: npt.NDArray[np.int64]
    cuts_N5: npt.NDArray[np.int32]
    segment_lengths_L: npt.NDArray[np.uint16]

    def segments(self, sample_id: int) -> Segments | None:
        """Where the restart segments of a sample lie; None of one that cannot be cut."""
        frame, scan, per_row, tall_px, wide_px = self.cuts_N5[sample_id].tolist()
        if not per_row:
            return None
        start, num_rows = int(self.segment_starts_N[sample_id]), -(-int(self.sizes_N2[sample_id, 0]) // tall_px)
        lengths_L = self.segment_lengths_L[start : start + num_rows * per_row]
        return Segments(frame, scan, per_row, tall_px, wide_px, lengths_L)


def save_packed_index(index: PackedIndex, path: Path) -> None:
    """Writes the file whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    meta = {"version": _VERSION, "fingerprint": index.fingerprint}
    save_blocks(path, meta=meta, arrays=[getattr(index, name) for name in PACKED_ARRAYS])


def load_packed_index(path: Path) -> PackedIndex:
    """What `save_packed_index` wrote, mapped.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not whole, of another version, or says what cannot be.
    """
    meta, mapped = load_blocks(path)
    if meta.get("version") != _VERSION:
        raise ValueError(f"it is of version {meta.get('version')}, and this program reads version {_VERSION}")
    arrays: dict[str, Any] = dict(zip(PACKED_ARRAYS, mapped, strict=True))
    index = PackedIndex(fingerprint=meta["fingerprint"], **arrays)
    _check_shapes(index)
    _check_places(index)
    return index


_DTYPES: dict[str, npt.DTypeLike] = {
    "labels_N": np.int64,
    "shards_N": np.int32,
    "offsets_N": np.int64,
    "num_bytes_N": np.int64,
    "sizes_N2": np.int32,
    "crcs_N": np.uint32,
    "kinds_N": np.uint8,
    "grey_N": np.bool_,
    "names_N": np.bytes_,
    "segment_starts_N": np.int64,
    "cuts_N5": np.int32,
}
_WIDTHS = {"sizes_N2": (2,), "cuts_N5": (5,)}


def _check_shapes(index: PackedIndex) -> None:
    """Compiled loops read these arrays, and do not look where one ends: who made the file may be anybody."""
    num_samples = len(index.labels_N)
    for name, dtype in _DTYPES.items():
        array = getattr(index, name)
        is_dtype = array.dtype.kind == "S" if name == "names_N" else array.dtype == dtype
        if not is_dtype or array.shape != (num_samples, *_WIDTHS.get(name, ())):
            raise ValueError(
                f"its {name} are {array.dtype} {array.shape}, which those of {num_samples:,} samples are not"
            )
    if index.segment_lengths_L.dtype != np.uint16 or index.segment_lengths_L.ndim != 1:
        raise ValueError(f"its lengths of segments are {index.segment_lengths_L.dtype}, and uint16 was wanted")
    if index.weights_N.dtype != np.float64 or index.weights_N.shape not in ((0,), (num_samples,)):
        raise ValueError(f"its {index.weights_N.shape} weights are not those of {num_samples:,} samples")


def _check_places(index: PackedIndex) -> None:
    """The same of where samples, and the header and the lengths of those that can be cut, lie.

    0.2 s for 1,280,000 samples (Intel Xeon, numpy 2.4.6, 2026-11-26).
    """
    frames_N, scans_N, per_row_N, tall_N, wide_N = index.cuts_N5.T.astype(np.int64)
    can_be_cut_N = per_row_N != 0
    ends_N = index.segment_starts_N - index.sizes_N2[:, 0] // -np.maximum(tall_N, 1) * per_row_N
    is_cut_well_N = (
        (np.minimum(np.minimum(per_row_N, tall_N), wide_N) > 0)
        & (frames_N >= 0)
        & (frames_N + 4 <= scans_N)
        & (scans_N <= index.num_bytes_N)
        & (index.segment_starts_N >= 0)
        & (ends_N <= len(index.segment_lengths_L))
    )
    is_well_N = (index.offsets_N >= 0) & (index.num_bytes_N > 0) & (index.sizes_N2 > 0).all(axis=1)
    wrong = np.flatnonzero(~(is_well_N & (is_cut_well_N | ~can_be_cut_N)))
    if len(wrong):
        raise ValueError(f"what it says of sample {wrong[0]} cannot be: its size, its place, or those of its segments")


def index_of_rows(
    rows: Sequence[Mapping[str, Any]],
    lengths: Sequence[npt.NDArray[np.uint16]],
    *,
    weights_N: npt.NDArray[np.float64] | None,
) -> PackedIndex:
    """An index of samples given one by one, its fingerprint open.

    Args:
        rows: Of each sample the values of all fields that end in N, N2 or N5, but for weights.
        lengths: Of the samples that have segments, in order, their lengths.
        weights_N: See `PackedIndex`; None = there are none.
    """
    arrays: dict[str, Any] = {}
    for name, dtype in _DTYPES.items():
        shape = (len(rows), *_WIDTHS.get(name, ()))
        arrays[name] = np.array([row[name] for row in rows], dtype=dtype).reshape(shape)
    empty = np.empty(0, dtype=np.uint16)
    return PackedIndex(
        fingerprint="",
        segment_lengths_L=np.concatenate([empty, *lengths]),
        weights_N=np.empty(0) if weights_N is None else weights_N,
        **arrays,
    )


def join_indexes(parts: Sequence[PackedIndex], class_names: tuple[str, ...]) -> PackedIndex:
    """One index of samples whose parts were made shard by shard."""
    arrays: dict[str, Any] = {name: np.concatenate([getattr(part, name) for part in parts]) for name in PACKED_ARRAYS}
    counts = [len(part.segment_lengths_L) for part in parts]
    before = np.repeat(np.cumsum([0, *counts[:-1]]), [len(part.labels_N) for part in parts])
    arrays["segment_starts_N"] = arrays["segment_starts_N"] + before
    weights_N = arrays["weights_N"] if len(arrays["weights_N"]) else None
    fingerprint = fingerprint_packed(class_names, arrays["labels_N"], arrays["sizes_N2"], arrays["crcs_N"], weights_N)
    return PackedIndex(fingerprint=fingerprint, **arrays)


def fingerprint_packed(
    class_names: tuple[str, ...],
    labels_N: npt.NDArray[np.int64],
    sizes_N2: npt.NDArray[np.int32],
    crcs_N: npt.NDArray[np.uint32],
    weights_N: npt.NDArray[np.float64] | None,
) -> str:
    """A hash of what samples are."""
    digest = hashlib.sha256(repr(class_names).encode())
    for array in (labels_N, sizes_N2, crcs_N, weights_N):
        if array is not None:
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
