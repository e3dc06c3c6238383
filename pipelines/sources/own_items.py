"""Items of a user's own torch Dataset: (image, label) -> uint8 pixels and a number, all of them read once at the start.

worker process: dataset[i] -> PIL image, array or tensor -> uint8 (H, W, C), label -> CRC-32, size, and pixels to hold

Legend of shape letters: N items, H height and W width of an image, C channels.
"""

import fcntl
import os
import traceback
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from pipelines.decode import to_pixels
from pipelines.sources.listing import NUM_NAMED

_NUM_READ_AGAIN, _TIMES_READ_AGAIN = 8, 2  # a random flip goes unnoticed once in 65,536 starts
_ITEMS_PER_MESSAGE = 32  # from a worker process
_OURS = {str(Path(__file__).with_name(name)) for name in ("own_items.py", "own_dataset.py")}
_LARGEST_LABEL = 2**31 - 1
_FEW_ITEMS = 256  # are read sooner than worker processes start


class Reading(NamedTuple):
    """How items are read at the start.

    num_workers: worker processes. max_bytes: the largest split, decoded, that is held in memory.
    leave_out: the splits in which items that cannot be read are left out; else they are an error.
    max_bad_frac: The largest part of a split that may be left out.
    """

    num_workers: int
    max_bytes: int
    leave_out: Sequence[str]
    max_bad_frac: float


class UnusableItemError(Exception):
    """An item of a kind that cannot be trained on: no fault of a file, so no policy applies."""


class Item(NamedTuple):
    """What was read of an item; `pixels` only where they may be held.

    kind: good; bad = it cannot be read; wrong = the data set is not what it must be. problem: why.
    """

    kind: Literal["good", "bad", "wrong"]
    label: int = 0
    shape: tuple[int, int, int] = (0, 0, 0)
    crc: int = 0
    pixels: npt.NDArray[np.uint8] | None = None
    problem: str = ""


class Items(NamedTuple):
    """All items of a split that can be read.

    places_N: int64 (N,), their numbers in the user's data set. shapes_N3: int32 (N, 3), height, width, channels.
    crcs_N: uint32 (N,). pixels: of each item; None where they are not held.
    """

    places_N: npt.NDArray[np.int64]
    labels_N: npt.NDArray[np.int64]
    shapes_N3: npt.NDArray[np.int32]
    crcs_N: npt.NDArray[np.uint32]
    pixels: list[npt.NDArray[np.uint8]] | None

    @property
    def num_bytes(self) -> int:
        """What the images take, decoded."""
        return int(np.prod(self.shapes_N3, axis=1, dtype=np.int64).sum())


def read_item(own: Any, place: int) -> tuple[npt.NDArray[np.uint8], int]:
    """Pixels, uint8 (H, W, C), C being 1 or 3, in memory of their own, and label.

    Raises:
        UnusableItemError: It is none of the kinds of items there are.
    """
    item = own[place]
    if not isinstance(item, tuple | list) or len(item) != 2:
        what = f"{len(item)} values" if isinstance(item, tuple | list) else f"a {type(item).__name__}"
        raise UnusableItemError(f"__getitem__ gives {what}; give (image, label).")
    return _to_pixels(item[0]), _to_label(item[1])


def _to_pixels(image: Any) -> npt.NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        return to_pixels(image)
    if isinstance(image, Tensor):
        return _from_tensor(image)
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8:
            raise UnusableItemError(
                f"the image is an array of {image.dtype}; give uint8, 0..255 (or a float tensor within 0..1, as "
                "ToTensor makes it)."
            )
        pixels = image[..., None] if image.ndim == 2 else image
        if pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
            raise UnusableItemError(
                f"the image is an array of shape {image.shape}; give (H, W) or (H, W, C), C being 1 or 3."
            )
        return np.array(pixels, order="C")  # a copy: the data set may write the next image into the same memory
    raise UnusableItemError(f"the image is a {type(image).__name__}; give a PIL image, a uint8 array or a tensor.")


def _from_tensor(image: Tensor) -> npt.NDArray[np.uint8]:
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise UnusableItemError(f"the image is a tensor of shape {tuple(image.shape)}; give (C, H, W), C being 1 or 3.")
    if image.dtype in (torch.float16, torch.float32, torch.float64):
        image = image.detach()
        low, high = float(image.min()), float(image.max())
        if not (low >= 0 and high <= 1):
            raise UnusableItemError(
                f"the image is a float tensor from {low:g} to {high:g}, not within 0..1; leave normalisation out of "
                "the data set, for it is done here (input.mean and input.std), and give 0..255 as uint8."
            )
        image = (image * 255).round().to(torch.uint8)
    if image.dtype != torch.uint8:
        raise UnusableItemError(f"the image is a tensor of {image.dtype}; give uint8, or float32 within 0..1.")
    return np.array(image.permute(1, 2, 0).cpu().numpy(), order="C")  # a copy, as above


def _to_label(label: Any) -> int:
    whole = isinstance(label, int | np.integer) and not isinstance(label, bool)
    if isinstance(label, Tensor | np.ndarray) and label.ndim == 0:
        whole, label = str(label.dtype).removeprefix("torch.").startswith(("int", "uint")), label.item()
    if not whole:
        shown = repr(label)
        raise UnusableItemError(
            f"the label is {shown[:60]} ({type(label).__name__}); give the number of the class, whole and from 0 on."
        )
    if label < 0:
        raise UnusableItemError(f"the label is {label}; give a number from 0 on.")
    if label > _LARGEST_LABEL:
        raise UnusableItemError(f"the label is {label}; give the number of the class, counted from 0.")
    return int(label)


class _Probe(Dataset[Item]):
    """What a worker reads of each item; pixels come along if `held` is their shape."""

    def __init__(self, own: Any, *, held: tuple[int, int, int] | None) -> None:
        self._own = own
        self._held = held

    def __len__(self) -> int:
        return len(self._own)

    def __getitem__(self, place: int) -> Item:
        try:
            pixels, label = read_item(self._own, place)
        except UnusableItemError as error:
            return Item("wrong", problem=str(error))
        except (ValueError, OSError) as error:
            return Item("bad", problem=f"{reason(error)}{where(error)}")
        except Exception as error:  # a mistake in the user's code
            return Item("wrong", problem=f"{reason(error)}{where(error)}")
        height, width, channels = pixels.shape
        is_held = self._held is not None and (height, width) == self._held[:2]
        return Item("good", label, (height, width, channels), zlib.crc32(pixels.tobytes()), pixels if is_held else None)


def read_items(own: Any, name: str, split: str, *, reading: Reading, show_progress: bool) -> Items:
    """All items of a split that can be read.

    Args:
        own: The user's data set.
        name: What it is called in messages.
        split: Which split it is.
        reading: How to read.
        show_progress: Whether to draw a progress bar, and to say what is left out.

    Raises:
        ValueError: An item of a kind that cannot be used, or one that cannot be read where that is an error; worker
            processes that fail, or would share a file.
    """
    first = _Probe(own, held=None)[0]
    num_bytes = len(own) * int(np.prod(first.shape))
    held = first.shape if first.kind == "good" and num_bytes <= reading.max_bytes else None
    num_workers = reading.num_workers if len(own) > _FEW_ITEMS else 0
    positions = _positions() if num_workers else {}
    good: list[tuple[int, Item]] = []
    bad: list[str] = []
    with tqdm(total=len(own), desc=f"reading {split}", unit="item", disable=not show_progress or None) as bar:
        for place, item in enumerate(_probe(own, name, split, held=held, num_workers=num_workers)):
            if place == 0:
                _check_no_file_is_shared(positions, name, split)
            if item.kind == "wrong":
                raise ValueError(f"{name}: item {place} of {split}: {item.problem}")
            if item.kind == "bad":
                bad.append(f"item {place}: {item.problem}")
            else:
                good.append((place, item))
                if item.pixels is None:
                    held = None
            bar.update()
    _check_no_file_is_shared(positions, name, split)
    _settle_bad(bad, name, split, count=len(own), reading=reading, show_progress=show_progress)
    items = [item for _, item in good]
    return Items(
        places_N=np.array([place for place, _ in good], dtype=np.int64),
        labels_N=np.array([item.label for item in items], dtype=np.int64),
        shapes_N3=np.array([item.shape for item in items], dtype=np.int32).reshape(-1, 3),
        crcs_N=np.array([item.crc for item in items], dtype=np.uint32),
        pixels=None if held is None else [item.pixels for item in items if item.pixels is not None],
    )


def _probe(own: Any, name: str, split: str, *, held: tuple[int, int, int] | None, num_workers: int) -> Iterator[Item]:
    loader = DataLoader(
        _Probe(own, held=held),
        batch_size=_ITEMS_PER_MESSAGE,
        num_workers=num_workers,
        collate_fn=list,
        generator=torch.Generator(),  # else torch's global generator is drawn from
    )
    try:
        for items in loader:
            yield from items
    except Exception as error:  # what items raise has been caught: a worker has died, or cannot be started
        raise ValueError(
            f"{name}: the worker processes that read {split} failed: {reason(error)}; use --loader.num_workers 0, "
            "which reads in one process, to see where."
        ) from error


def _check_no_file_is_shared(before: Mapping[tuple[str, str], int], name: str, split: str) -> None:
    """Refuses a data set whose worker processes read on in a file that this process has opened.

    Forked, they share its position, so that one now and then reads what another one has looked up.
    """
    now = _positions()
    moved = [path for (number, path), place in before.items() if now.get((number, path), place) != place]
    if moved:
        raise ValueError(
            f"{name}: items of {split} are read from {moved[0]}, which is open before the worker processes start, so "
            "they share its position and read each other's bytes; open it in each of them (keep it by os.getpid()), or "
            "use --loader.num_workers 0."
        )


def _positions() -> dict[tuple[str, str], int]:
    """Where this process stands in the files that it reads, by descriptor and path; nothing but on Linux."""
    found = {}
    for number in os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []:
        try:
            path = os.readlink(f"/proc/self/fd/{number}")
            is_read = fcntl.fcntl(int(number), fcntl.F_GETFL) & os.O_ACCMODE != os.O_WRONLY  # what is printed moves on
            if os.path.isfile(path) and is_read:
                found[number, path] = os.lseek(int(number), 0, os.SEEK_CUR)
        except OSError:  # closed meanwhile, as that of this very list
            continue
    return found


def _settle_bad(bad: list[str], name: str, split: str, *, count: int, reading: Reading, show_progress: bool) -> None:
    """Items that cannot be read have no label either, so nothing can take their place: left out, or refused."""
    if not bad:
        return
    shown = "\n  ".join(bad[:NUM_NAMED] + ["..."] * (len(bad) > NUM_NAMED))
    if split not in reading.leave_out:
        option = "on_bad_sample replace" if split == "train" else "on_bad_eval_sample exclude"
        raise ValueError(
            f"{name}: {len(bad)} of {count} items of {split} cannot be read:\n  {shown}\nRepair them, or leave them "
            f"out: --data.{option}."
        )
    if len(bad) > reading.max_bad_frac * count:
        raise ValueError(
            f"{name}: {len(bad)} of {count} items of {split} cannot be read, more than data.max_bad_frac="
            f"{reading.max_bad_frac:g} allows:\n  {shown}\nRepair them, or raise data.max_bad_frac."
        )
    if show_progress:
        print(f"{name}: {len(bad)} of {count} items of {split} cannot be read, and are left out:\n  {shown}")


def check_steady(own: Any, items: Items, *, name: str, split: str) -> None:
    """Reads a few items again.

    Raises:
        ValueError: An item is not what it was, or cannot be read any more.
    """
    count = len(items.places_N)
    for row in sorted({count * part // _NUM_READ_AGAIN for part in range(_NUM_READ_AGAIN)}):
        place = int(items.places_N[row])
        for _ in range(_TIMES_READ_AGAIN):
            try:
                pixels, label = read_item(own, place)
            except Exception as error:  # whatever a user's code raises
                raise ValueError(
                    f"{name}: item {place} of {split} was read a moment ago, and now cannot be: {reason(error)}"
                    f"{where(error)}; an item must be the same each time it is read."
                ) from error
            if (zlib.crc32(pixels.tobytes()), label) != (int(items.crcs_N[row]), int(items.labels_N[row])):
                raise ValueError(explain_unsteady(name, split, place))


def explain_unsteady(name: str, split: str, place: int) -> str:
    """What to tell of an item that changes."""
    return (
        f"{name}: item {place} of {split} is another one each time it is read; leave random transforms out of the "
        "data set, and give them as options: --augment.crop, --augment.flip and others, which can be repeated exactly."
    )


def where(error: BaseException) -> str:
    """` (FILE:LINE)`: the innermost line that is the user's own, not of an installed package."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename not in _OURS]
    own = [frame for frame in frames if "site-packages" not in frame.filename and "<frozen" not in frame.filename]
    own = [frame for frame in own if not frame.filename.startswith(str(Path(traceback.__file__).parent))]
    last = (own or frames)[-1:]
    return f" ({last[0].filename}:{last[0].lineno})" if last else ""


def reason(error: BaseException) -> str:
    """Kind and text of an error."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
