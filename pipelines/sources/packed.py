"""Packed data sets (`python -m tools.pack`): samples in a few large tar files, found by an index.

ROOT/dataset.json (classes, splits, shards), ROOT/SPLIT.index (pipelines/sources/packed_index.py), ROOT/SPLIT-*.tar

sample id -> shard, place -> pread -> JPEG: only the restart segments under the window (pipelines/jpeg_segments.py),
                                            or the window by pipelines/jpeg_window.py, or all of it
                                   -> pixels (.npy): only the window, of the mapped shard
"""

import json
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.decode import decode_image, decode_jpeg, decode_part, scale_of, scaled_window
from pipelines.jpeg_segments import Cut, Places, Segments, Spliced, plan_cut, read_parts, splice
from pipelines.jpeg_window import Window
from pipelines.kernels import compact_window
from pipelines.scratch import Arena, Scratch
from pipelines.source import LeastPx, Source, cut, read_one_by_one
from pipelines.sources.folder import explain, shared_marks
from pipelines.sources.packed_index import RAW, PackedIndex, fingerprint_packed, load_packed_index
from pipelines.sources.shards import Shards

DATASET_FILE = "dataset.json"
FORMAT, VERSION = "exactvision packed data set", 1
_MOST_AREA_FRAC = 0.8  # of an image; a larger window is decoded faster with all of it than by jpeg_windows
NPY_HEADER_BYTES = 128  # of every .npy of three dimensions below 10^19


class JpegPart(NamedTuple):
    """A JPEG of a part of an image; top, left: where the part begins in the image, in pixels."""

    encoded: memoryview
    top: int
    left: int


@dataclass(frozen=True, kw_only=True)
class PackedSource:
    """Samples of one split of a packed data set.

    index: what is known of all samples of the split. ids_M: int64 (M,), which of them these are, in order.
    checked_M: bool (M,), samples whose bytes were once held against their CRC-32; reading marks more of them, also in
        worker processes that are forked later.
    """

    shards: Shards
    class_names: tuple[str, ...]
    index: PackedIndex
    ids_M: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    checked_M: npt.NDArray[np.bool_]
    is_grey: bool
    is_whole_split: bool
    weights_N: npt.NDArray[np.float64] | None
    bad: Mapping[int, str] = field(default_factory=dict)  # none: what was bad was not packed

    def describe(self, sample_id: int) -> str:
        """The shard, where the sample lies there, and what it was called before."""
        row = int(self.ids_M[sample_id])
        name = os.fsdecode(bytes(self.index.names_N[row]))
        return f"{self.shards.paths[self.index.shards_N[row]]} at byte {self.index.offsets_N[row]} ({name})"

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

        The bytes of each sample are checked once; after that no more is read and decoded than the window needs.

        Raises:
            ValueError: The shard is gone, or what lies in it is not what was packed; the message gives the reason.
        """
        try:
            return self._read(sample_id, channels, scratch or Scratch(), window, least_px)
        except ValueError:
            raise
        except Exception as error:  # whatever broken bytes bring about, memory that does not suffice among it
            raise ValueError(explain(error)) from error

    def read_windows(
        self, ids: Sequence[int], windows: Sequence[Window], *, channels: int, scratch: Scratch, least_px: LeastPx
    ) -> Iterator[npt.NDArray[np.uint8] | ValueError]:
        """See `pipelines.source.Source`; small JPEGs of all samples are read at once, before the first is decoded."""
        least = [None] * len(ids) if least_px is None else least_px
        scales = [scale_of(window, each) for window, each in zip(windows, least, strict=True)]
        try:
            spliced = self._read_parts(np.array(ids), windows, scales, channels, scratch)
        except OSError:  # who reads the sample alone says which file it is
            spliced = None
        if spliced is None:
            yield from read_one_by_one(self, ids, windows, channels=channels, scratch=scratch, least_px=least_px)
            return
        for number, (place, num_bytes, top, left, height, width) in enumerate(spliced.places_N6.tolist()):
            if num_bytes == 0:
                few = slice(number, number + 1)
                least_one = None if least_px is None else least_px[few]
                yield from read_one_by_one(
                    self, ids[few], windows[few], channels=channels, scratch=scratch, least_px=least_one
                )
                continue
            encoded = spliced.encoded[place : place + num_bytes]
            try:
                pixels = decode_part(
                    encoded, height=height, width=width, channels=channels, scratch=scratch, scale=scales[number]
                )
            except ValueError as error:
                yield error
                continue
            window_top, window_left, *sides = windows[number]
            within = (window_top - top, window_left - left, sides[0], sides[1])
            yield _compact(pixels, within if scales[number] == 1 else scaled_window(within, scales[number]), scratch)

    def read_jpeg(self, sample_id: int, *, scratch: Scratch | Arena | None = None) -> memoryview | None:
        """The encoded bytes of a sample stored as an upright grey or RGB JPEG; None of every other.

        Raises:
            ValueError: As `read_image`.
        """
        row = int(self.ids_M[sample_id])
        if self.index.kinds_N[row] != 1:
            return None
        try:
            return self._read_bytes(sample_id, row, scratch or Scratch())
        except OSError as error:
            raise ValueError(explain(error)) from error

    def read_jpeg_part(self, sample_id: int, window: Window, *, scratch: Arena) -> JpegPart | None:
        """A small JPEG that holds a window of a sample that was checked before; None where all of it must be decoded.

        Raises:
            ValueError: As `read_image`.
        """
        row = int(self.ids_M[sample_id])
        segments = self.index.segments(row) if self.checked_M[sample_id] else None
        height, width = self.index.sizes_N2[row].tolist()
        planned = None if segments is None else plan_cut(segments, window, height=height, width=width)
        if segments is None or planned is None:
            return None
        try:
            return JpegPart(self._read_segments(row, segments, planned, scratch), planned.top, planned.left)
        except OSError as error:
            raise ValueError(explain(error)) from error

    def read_bytes(self, sample_id: int) -> bytes:
        """The stored bytes of a sample.

        Raises:
            ValueError: As `read_image`.
        """
        try:
            return bytes(self._read_bytes(sample_id, int(self.ids_M[sample_id]), Scratch()))
        except OSError as error:
            raise ValueError(explain(error)) from error

    def expect(self, ids: npt.NDArray[np.int64]) -> None:
        """Has the system fetch samples that will soon be read."""
        rows_M, index = self.ids_M[ids], self.index
        try:
            self.shards.expect(index.shards_N[rows_M], index.offsets_N[rows_M], index.num_bytes_N[rows_M])
        except OSError:
            return  # whoever reads it finds out, and says so

    def take(self, ids: npt.NDArray[np.int64]) -> "PackedSource":
        """The samples `ids`, numbered from 0."""
        return PackedSource(
            shards=self.shards,
            class_names=self.class_names,
            index=self.index,
            ids_M=self.ids_M[ids],
            labels_N=self.labels_N[ids],
            sizes_N2=self.sizes_N2[ids],
            checked_M=shared_marks(self.checked_M[ids]),
            is_grey=self.is_grey,
            is_whole_split=False,
            weights_N=None if self.weights_N is None else self.weights_N[ids],
        )

    def fingerprint(self) -> str:
        """A hash of class names, labels, sizes and checksums; no shard is read."""
        if self.is_whole_split:
            return self.index.fingerprint
        crcs_M = self.index.crcs_N[self.ids_M]
        return fingerprint_packed(self.class_names, self.labels_N, self.sizes_N2, crcs_M, self.weights_N)

    def _read(
        self,
        sample_id: int,
        channels: int,
        scratch: Scratch,
        window: Window | None,
        least_px: tuple[int, int] | None,
    ) -> npt.NDArray[np.uint8]:
        row = int(self.ids_M[sample_id])
        kind = int(self.index.kinds_N[row])
        scale = scale_of(window, least_px) if window is not None and kind == 1 else 1
        if window is not None and self.checked_M[sample_id]:
            if kind == RAW:
                return self._view_window(row, channels, window)
            if kind == 1:
                part = self._read_part(row, channels, scratch, window, scale)
                if part is not None:
                    return part
        encoded = self._read_bytes(sample_id, row, scratch)
        if kind == RAW:
            height, width = self.index.sizes_N2[row].tolist()
            pixels = _with_channels(_pixels_of(encoded, height, width), channels)
        elif kind == 0:
            pixels = decode_image(bytes(encoded), channels=channels)
        else:  # smaller the first time, too: a resumed run makes the pixels of one that was not stopped
            pixels = decode_jpeg(encoded, channels=channels, orientation=kind, scratch=scratch, scale=scale)
        return pixels if window is None else cut(pixels, scaled_window(window, scale) if scale > 1 else window)

    def _read_parts(
        self,
        ids_M: npt.NDArray[np.int64],
        windows: Sequence[Window],
        scales: list[int],
        channels: int,
        scratch: Scratch,
    ) -> Spliced | None:
        """The small JPEGs of those that were checked before and have segments; None where none has."""
        index, rows_M = self.index, self.ids_M[ids_M]
        cuts_M5 = index.cuts_N5[rows_M]
        can_be_cut_M = self.checked_M[ids_M] & (cuts_M5[:, 2] > 0)
        if channels == 1:
            can_be_cut_M &= index.grey_N[rows_M]
        if not can_be_cut_M.any():
            return None
        cuts_M5[~can_be_cut_M] = 0
        num_bytes_M = index.num_bytes_N[rows_M]
        return read_parts(
            Places(
                files_N=self.shards.files(index.shards_N[rows_M]),
                offsets_N=index.offsets_N[rows_M],
                num_bytes_N=num_bytes_M,
                sizes_N2=index.sizes_N2[rows_M],
                cuts_N5=cuts_M5,
                starts_N=index.segment_starts_N[rows_M],
                lengths_L=index.segment_lengths_L,
            ),
            np.array(windows),
            np.array(scales),
            file_room=np.frombuffer(scratch.room(int(num_bytes_M.max())), dtype=np.uint8),
            room=scratch.parts(int(num_bytes_M.sum())),
        )

    def _view_window(self, row: int, channels: int, window: Window) -> npt.NDArray[np.uint8]:
        """The window of stored pixels, where they lie; whoever copies them has the pages read, with the GIL free."""
        height, width = self.index.sizes_N2[row].tolist()
        stored = 1 if self.index.grey_N[row] else 3
        start = int(self.index.offsets_N[row]) + NPY_HEADER_BYTES
        mapped = self.shards.mapped(int(self.index.shards_N[row]))
        pixels = mapped[start : start + height * width * stored].reshape(height, width, stored)
        return _with_channels(cut(pixels, window), channels)

    def _read_part(
        self, row: int, channels: int, scratch: Scratch, window: Window, scale: int
    ) -> npt.NDArray[np.uint8] | None:
        """A window of an upright JPEG that was checked before; None where all of it must be decoded."""
        height, width = self.index.sizes_N2[row].tolist()
        segments = self.index.segments(row)
        planned = None if segments is None else plan_cut(segments, window, height=height, width=width, scale=scale)
        if segments is not None and planned is not None and (channels == 3 or self.index.grey_N[row]):
            spliced = self._read_segments(row, segments, planned, scratch)
            pixels = decode_jpeg(spliced, channels=channels, orientation=1, scratch=scratch, scale=scale)
            top, left, *sides = window
            return cut(pixels, scaled_window((top - planned.top, left - planned.left, sides[0], sides[1]), scale))
        if scale == 1 and window[2] * window[3] > _MOST_AREA_FRAC * height * width:
            return None
        encoded = self._read_bytes(None, row, scratch)
        if scale > 1:
            pixels = decode_jpeg(encoded, channels=channels, orientation=1, scratch=scratch, scale=scale)
            return cut(pixels, scaled_window(window, scale))
        return scratch.jpeg_windows.decode(encoded, window, height=height, width=width, channels=channels)

    def _read_segments(self, row: int, segments: Segments, planned: Cut, scratch: Scratch | Arena) -> memoryview:
        """The small JPEG around a window; no more than its header and its rows are read."""
        num_bytes, shard, start = (
            int(values[row]) for values in (self.index.num_bytes_N, self.index.shards_N, self.index.offsets_N)
        )
        if planned.stop > num_bytes:
            raise ValueError("its segments reach beyond it: the index is not that of this file; pack again")
        room = scratch.room(num_bytes)
        self.shards.read(shard, start=start, room=room[: segments.scan])
        self.shards.read(shard, start=start + planned.start, room=room[planned.start : planned.stop])
        return splice(room, segments, planned, room=scratch.spliced(num_bytes))

    def _read_bytes(self, sample_id: int | None, row: int, scratch: Scratch | Arena) -> memoryview:
        """The stored bytes of a sample, held against their CRC-32 if they never were."""
        room = scratch.room(int(self.index.num_bytes_N[row]))
        self.shards.read(int(self.index.shards_N[row]), start=int(self.index.offsets_N[row]), room=room)
        if sample_id is not None and not self.checked_M[sample_id]:
            if zlib.crc32(room) != self.index.crcs_N[row]:
                raise ValueError(
                    "its bytes are not those that were packed; python -m tools.pack --verify finds all such"
                )
            self.checked_M[sample_id] = True
        return room


def _compact(pixels: npt.NDArray[np.uint8], window: Window, scratch: Scratch) -> npt.NDArray[np.uint8]:
    """The window of a contiguous image, contiguous: what resizes it would copy it otherwise, and let go of the GIL."""
    _, width, channels = pixels.shape
    top, left, window_height, window_width = window
    assert 0 <= top <= top + window_height <= len(pixels)
    assert 0 <= left <= left + window_width <= width
    num_values = window_height * window_width * channels
    out = scratch.compact(num_values)
    compact_window(pixels.reshape(-1), width, channels, top, left, window_height, window_width, out)
    return out[:num_values].reshape(window_height, window_width, channels)


def _with_channels(pixels: npt.NDArray[np.uint8], channels: int) -> npt.NDArray[np.uint8]:
    if pixels.shape[2] == channels:
        return pixels
    if channels == 3:
        return np.repeat(pixels, 3, axis=2)
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).convert("L"))[..., None]


def _pixels_of(encoded: memoryview, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The pixels of an .npy."""
    return np.frombuffer(encoded[NPY_HEADER_BYTES:], dtype=np.uint8).reshape(height, width, -1)


class ShardFacts(NamedTuple):
    """A shard as it was packed: its file name, size and checksum."""

    name: str
    num_bytes: int
    sha256: str


class PackedSet(NamedTuple):
    """What dataset.json says: class names, the shards of each split, and how it was packed."""

    class_names: tuple[str, ...]
    splits: dict[str, tuple[ShardFacts, ...]]
    settings: dict[str, Any]


def open_packed(root: str) -> dict[str, Source]:
    """The splits of a packed data set.

    Raises:
        FileNotFoundError: There is none at `root`.
        ValueError: It is of another version, or a shard or an index is missing or has another size.
    """
    dataset = load_dataset(Path(root))
    sources: dict[str, Source] = {}
    for split, shards in dataset.splits.items():
        for shard in shards:
            _check_size(Path(root) / shard.name, shard.num_bytes)
        sources[split] = open_split(Path(root), split, dataset)
    return sources


def load_dataset(root: Path) -> PackedSet:
    """What ROOT/dataset.json says.

    Raises:
        FileNotFoundError: It is not there.
        ValueError: It is no such file, of another version, or names a file that would lie elsewhere.
    """
    path = root / DATASET_FILE
    try:
        said = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileNotFoundError(_missing(root)) from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again, or pack again.") from error
    if not isinstance(said, dict) or said.get("format") != FORMAT:
        raise ValueError(f"{path} is not that of a packed data set; give the folder that tools.pack made.")
    if said.get("version") != VERSION:
        raise ValueError(f"{path} is of version {said.get('version')}, and this program reads {VERSION}; pack again.")
    try:
        splits = {split: tuple(ShardFacts(**shard) for shard in shards) for split, shards in said["splits"].items()}
        names = [*splits, *(shard.name for shards in splits.values() for shard in shards)]
        is_plain = [name == os.path.basename(name) and name not in ("", ".", "..") for name in names]
        dataset = PackedSet(tuple(said["class_names"]), splits, dict(said["settings"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is broken ({explain(error)}); copy it again, or pack again.") from error
    if not all(is_plain):
        name = names[is_plain.index(False)]
        raise ValueError(f"{path} names {name!r}, which is not a plain file name; nothing outside {root} is read.")
    if "train" not in splits:
        raise ValueError(
            f"{path} has no split train, only {', '.join(splits) or 'none'}; copy it again, or pack again."
        )
    return dataset


def write_dataset(dataset: PackedSet, root: Path) -> None:
    """Writes ROOT/dataset.json whole or not at all.

    Raises:
        OSError: It cannot be written.
    """
    splits = {split: [shard._asdict() for shard in shards] for split, shards in dataset.splits.items()}
    said = {
        "format": FORMAT,
        "version": VERSION,
        "class_names": dataset.class_names,
        "settings": dataset.settings,
        "splits": splits,
    }
    unfinished = root / f"{DATASET_FILE}.tmp"
    with open(unfinished, "w") as file:
        json.dump(said, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, root / DATASET_FILE)


def _missing(root: Path) -> str:
    if not root.is_dir():
        return f"data.root={root} is not a folder (looked from {Path.cwd()}); give the one that tools.pack made."
    return (
        f"data.root={root} has no {DATASET_FILE}, so it is no packed data set; make one by python -m tools.pack "
        f"SOURCE DEST (or is {root} an image folder? then use --data.dataset folder)."
    )


def _check_size(path: Path, num_bytes: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise ValueError(f"{path}: {explain(error)}; copy it again from where the data set was packed.") from error
    if found != num_bytes:
        raise ValueError(f"{path} has {found:,} bytes, but {num_bytes:,} were packed; copy it again.")


def open_split(root: Path, split: str, dataset: PackedSet) -> PackedSource:
    """One split; its shards are not looked at.

    Raises:
        ValueError: Its index cannot be read.
    """
    path = root / f"{split}.index"
    try:
        index = load_packed_index(path)
        _check_fits(index, num_shards=len(dataset.splits[split]), num_classes=len(dataset.class_names))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path}: {explain(error)}; copy it again, or pack again.") from error
    return PackedSource(
        shards=Shards([str(root / shard.name) for shard in dataset.splits[split]]),
        class_names=dataset.class_names,
        index=index,
        ids_M=np.arange(len(index.labels_N)),
        labels_N=index.labels_N,
        sizes_N2=index.sizes_N2,
        checked_M=shared_marks(np.zeros(len(index.labels_N), dtype=np.bool_)),
        is_grey=bool(index.grey_N.all()),
        is_whole_split=True,
        weights_N=index.weights_N if len(index.weights_N) else None,
    )


def _check_fits(index: PackedIndex, *, num_shards: int, num_classes: int) -> None:
    """Checks that an index is that of these shards and classes, and not of another data set."""
    for values_N, limit in ((index.shards_N, num_shards), (index.labels_N, num_classes)):
        if len(values_N) and not 0 <= values_N.min() <= values_N.max() < limit:
            raise ValueError(f"it is that of another data set than {DATASET_FILE}")
