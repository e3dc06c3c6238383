"""A user's own torch Dataset as samples: every item read once at the start, held in memory where all fit.

class or function -> its splits (train, and val and test where it has them) -> all items, by worker processes:
label, size, CRC-32 of the pixels -> of one size and fitting: ArraySource; else OwnSource, which reads on demand

An item is (image, label): a PIL image, uint8 (H, W) or (H, W, C) as an array, or a tensor (C, H, W), uint8 or float
within 0..1 as torchvision's ToTensor makes it; and a whole number from 0 on.
"""

import functools
import inspect
import itertools
import threading
import traceback
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch.utils.data import IterableDataset

from configs.nearest import nearest
from pipelines.jpeg_window import Window
from pipelines.scratch import Arena, Scratch
from pipelines.source import ArraySource, Source, cut, fingerprint_of
from pipelines.sources.listing import NUM_NAMED
from pipelines.sources.own_items import (
    Items,
    Reading,
    check_steady,
    explain_unsteady,
    read_item,
    read_items,
    reason,
    where,
)
from pipelines.sources.upkeep import empty_classes, some

_NO_SPLIT = "no_such_split"  # asked for to see what a data set does about a split that it does not have


class Making(NamedTuple):
    """How a user's data set is made: its class or function, what it is called in messages, its arguments."""

    make: Callable[..., Any]
    name: str
    arguments: Mapping[str, Any]


def check_making(making: Making) -> None:
    """Checks the arguments against the signature, before anything is made.

    Raises:
        ValueError: No class or function, an unknown argument, one that follows from the split, or a missing one.
    """
    if not callable(making.make):
        raise ValueError(f"data.dataset={making.name} is {making.make!r}; it must be a class or a function.")
    parameters = _parameters(making)
    takes_any = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    own = [name for name, one in parameters.items() if _is_named(one) and name not in _split_parameters(parameters)]
    for name in making.arguments:
        if name in _split_parameters(parameters):
            raise ValueError(f"data.args.{name}: train, val and test are asked for in turn; drop it.")
        if name not in own and not takes_any:
            raise ValueError(f"{making.name} has no argument {name!r}; {nearest(name, own) if own else 'it has none'}.")
    missing = [name for name in own if parameters[name].default is inspect.Parameter.empty]
    missing = [name for name in missing if name not in making.arguments]
    if missing:
        options = " ".join(f"--data.args.{name} VALUE" for name in missing)
        raise ValueError(f"{making.name} needs {', '.join(missing)}; add {options}.")


def read_own(making: Making, reading: Reading, *, show_progress: bool) -> dict[str, Source]:
    """The splits of a user's data set.

    Args:
        making: How it is made.
        reading: How it is read.
        show_progress: Whether to draw progress bars, and to say what was found.

    Raises:
        ValueError: The data set or an item of it cannot be used; the message says which one and what to do.
    """
    check_making(making)
    found = _make_splits(making, show_progress=show_progress)
    items: dict[str, Items] = {}
    for split, own in found.items():
        items[split] = read_items(own, making.name, split, reading=reading, show_progress=show_progress)
        reading = reading._replace(max_bytes=reading.max_bytes - items[split].num_bytes)
    class_names = _name_classes(found["train"], items, name=making.name)
    held = _fits(list(items.values()))
    sources: dict[str, Source] = {}
    for split, own in found.items():
        check_steady(own, items[split], name=making.name, split=split)
        sources[split] = _source(own, items[split], class_names, name=making.name, split=split, held=held)
    return sources


# --- splits


def _parameters(making: Making) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(making.make).parameters
    except (TypeError, ValueError) as error:
        raise ValueError(f"data.dataset={making.name}: its arguments cannot be found out ({error}).") from error


def _is_named(one: inspect.Parameter) -> bool:
    return one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)


def _split_parameters(parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """The parameter that says which split to make: `split`, else `train`, a bool."""
    if "split" in parameters:
        return ["split"]
    train = parameters.get("train")
    return ["train"] if train is not None and train.annotation in (bool, "bool", train.empty) else []


def _make_splits(making: Making, *, show_progress: bool) -> dict[str, Any]:
    """The data sets of the splits there are, and no others.

    A parameter `split` is given "train", "val" and "test". A split counts as missing if making it fails just as making
    one that no data set has does: the same kind of error, raised by the same line. Any other error stops the run. With
    a parameter `train` there are train (True) and test (False); with neither, train alone.
    """
    how = _split_parameters(_parameters(making))
    make = functools.partial(making.make, **making.arguments)
    found = {}
    found["train"] = _make(making.name, functools.partial(make, **_asks(how, "train")), split="train")
    left: dict[str, str] = {}
    if how == ["train"]:
        found["test"] = _make(making.name, functools.partial(make, train=False), split="test")
    elif how == ["split"]:
        made, unknown = _try(functools.partial(make, split=_NO_SPLIT))
        if unknown is None and _length(made, making.name, _NO_SPLIT) > 0:
            raise ValueError(
                f"{making.name} makes a data set of split={_NO_SPLIT!r} too, so it cannot be told whether it has val "
                'and test; raise a ValueError in it where split is not one of its own (for example "train" and "test").'
            )
        for split in ("val", "test"):
            made, error = _try(functools.partial(make, split=split))
            if error is None and _length(made, making.name, split) == 0:
                left[split] = "no items"
            elif error is None:
                found[split] = made
            elif unknown is not None and _place(error) == _place(unknown):
                left[split] = reason(error)
            else:
                raise ValueError(_explain_failure(making.name, split, error)) from error
    for split, own in found.items():
        _check_kind(own, making.name, split)
    if show_progress:
        missing = "".join(f"; no {split} ({why})" for split, why in left.items())
        print(f"{making.name}: " + ", ".join(f"{len(own):,} {split}" for split, own in found.items()) + missing)
    return found


def _asks(how: list[str], split: str) -> dict[str, Any]:
    return {name: split if name == "split" else split == "train" for name in how}


def _make(name: str, make: Callable[[], Any], *, split: str) -> Any:
    try:
        return make()
    except Exception as error:  # whatever a user's code raises
        raise ValueError(_explain_failure(name, split, error)) from error


def _try(make: Callable[[], Any]) -> tuple[Any, Exception | None]:
    try:
        return make(), None
    except Exception as error:  # as above
        return None, error


def _length(own: Any, name: str, split: str) -> int:
    """How many items there are; 1 where the data set has no len(), which `_check_kind` refuses."""
    try:
        return len(own) if hasattr(own, "__len__") else 1
    except Exception as error:  # whatever a user's code raises or returns
        raise ValueError(f"{name}: len() of {split} fails: {reason(error)}{where(error)}; correct __len__.") from error


def _check_kind(own: Any, name: str, split: str) -> None:
    if isinstance(own, IterableDataset) or not (hasattr(own, "__getitem__") and hasattr(own, "__len__")):
        raise ValueError(
            f"{name} gives a {type(own).__name__} for {split}, which "
            + ("is an IterableDataset" if isinstance(own, IterableDataset) else "has no __getitem__ and __len__")
            + "; items are needed in an order that is drawn for each epoch, so write a Dataset with __getitem__ and "
            "__len__."
        )
    if _length(own, name, split) == 0:
        raise ValueError(f"{name} has no items of {split}; len() gives 0.")


def _place(error: BaseException) -> tuple[type, str, int | None]:
    """What was raised, and the line that raised it."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    return type(error), last.filename, last.lineno


def _explain_failure(name: str, split: str, error: Exception) -> str:
    return f"{name} cannot be made for {split}: {reason(error)}{where(error)}."


# --- classes


def _name_classes(train: Any, items: Mapping[str, Items], *, name: str) -> tuple[str, ...]:
    """From `.classes` or `.class_to_idx`, else the numbers."""
    labels = {split: sorted(set(each.labels_N.tolist())) for split, each in items.items()}
    named = _given_names(train, name=name)
    low, high = labels["train"][0], max(found[-1] for found in labels.values())
    if low == 1 and len(labels["train"]) > 1 and (named is None or high >= len(named)):
        raise ValueError(
            f"{name}: labels run from 1 to {high}; the network counts classes from 0: subtract 1 from them in "
            "__getitem__."
        )
    if named is None and high >= len(labels["train"]):  # before a label of 10**9 makes as many names
        gaps = itertools.islice((one for one in range(high + 1) if one not in labels["train"]), NUM_NAMED + 1)
        raise ValueError(_explain_empty(name, [str(one) for one in gaps], high + 1 - len(labels["train"]), of=high + 1))
    class_names = named if named is not None else tuple(str(one) for one in range(high + 1))
    if high >= len(class_names):
        raise ValueError(
            f"{name}: there is a label {high}, but .classes has {len(class_names)} names, for labels 0 to "
            f"{len(class_names) - 1}; correct one of them."
        )
    if len(set(class_names)) < len(class_names):
        raise ValueError(f"{name}: .classes has a name twice; give each class its own.")
    if len(class_names) < 2:
        raise ValueError(f"{name}: all items of train have the label {low}; a classifier needs at least two classes.")
    empty = empty_classes(class_names, items["train"].labels_N)
    if empty:
        raise ValueError(_explain_empty(name, empty, len(empty), of=len(class_names)))
    return class_names


def _explain_empty(name: str, empty: Sequence[str], count: int, *, of: int) -> str:
    return (
        f"{name}: of {of} classes, {count} have no item in train: {some(empty)}; add items, or number the labels "
        "without gaps."
    )


def _given_names(train: Any, *, name: str) -> tuple[str, ...] | None:
    """The names by label, as `.classes` lists them or `.class_to_idx` numbers them; None where there is neither."""
    try:
        classes, numbers = getattr(train, "classes", None), getattr(train, "class_to_idx", None)
    except Exception as error:  # a property of the user's
        raise ValueError(f"{name}: its names of classes cannot be had: {reason(error)}{where(error)}.") from error
    if isinstance(classes, Mapping):
        classes, numbers = None, classes
    if classes is not None:
        if isinstance(classes, str) or not isinstance(classes, Sequence | np.ndarray):
            raise ValueError(
                f"{name}: .classes is {str(classes)[:60]} ({type(classes).__name__}); make it a list of names, the "
                "first for label 0."
            )
        return tuple(str(one) for one in classes)
    if not isinstance(numbers, Mapping):
        return None
    if set(numbers.values()) != set(range(len(numbers))):
        raise ValueError(
            f"{name}: .class_to_idx (or .classes) gives the labels {some([str(one) for one in numbers.values()])}; "
            f"give each of the {len(numbers)} names one of the labels 0 to {len(numbers) - 1}."
        )
    return tuple(str(one) for one in sorted(numbers, key=numbers.__getitem__))


# --- sources


def _fits(items: Sequence[Items]) -> bool:
    """Whether all items are held and of one size."""
    shapes = {tuple(shape) for each in items for shape in np.unique(each.shapes_N3[:, :2], axis=0).tolist()}
    return len(shapes) == 1 and all(each.pixels is not None for each in items)


def _source(own: Any, items: Items, class_names: tuple[str, ...], *, name: str, split: str, held: bool) -> Source:
    if held:
        assert items.pixels is not None, "it fits"
        channels = int(items.shapes_N3[:, 2].max())
        images = [np.broadcast_to(one, (*one.shape[:2], channels)) for one in items.pixels]  # grey among colour
        return ArraySource(
            class_names=class_names, labels_N=items.labels_N, images_NHWC=np.stack(images), crcs_N=items.crcs_N
        )
    return OwnSource(
        class_names=class_names,
        labels_N=items.labels_N,
        sizes_N2=np.ascontiguousarray(items.shapes_N3[:, :2]),
        places_N=items.places_N,
        crcs_N=items.crcs_N,
        is_grey=bool((items.shapes_N3[:, 2] == 1).all()),
        items=OneAtATime(own),
        name=name,
        split=split,
    )


class OneAtATime:
    """A user's data set, read by one thread at a time, for user code need not be made for several."""

    def __init__(self, own: Any) -> None:
        self._own = own
        self._lock = threading.Lock()

    def __getstate__(self) -> Any:
        return self._own  # a lock stays in its process

    def __setstate__(self, own: Any) -> None:
        self._own, self._lock = own, threading.Lock()

    def read(self, place: int) -> npt.NDArray[np.uint8]:
        """The pixels of an item, uint8 (H, W, C)."""
        with self._lock:
            return read_item(self._own, place)[0]


@dataclass(frozen=True, kw_only=True)
class OwnSource:
    """Items of a user's data set, read on demand.

    places_N: int64 (N,), their numbers in the user's data set. crcs_N: uint32 (N,), CRC-32 of their pixels.
    """

    class_names: tuple[str, ...]
    labels_N: npt.NDArray[np.int64]
    sizes_N2: npt.NDArray[np.int32]
    places_N: npt.NDArray[np.int64]
    crcs_N: npt.NDArray[np.uint32]
    is_grey: bool
    items: OneAtATime
    name: str
    split: str
    bad: Mapping[int, str] = field(default_factory=dict)
    weights_N: None = None

    def describe(self, sample_id: int) -> str:
        """`mine:Birds, item 17 of train`."""
        return f"{self.name}, item {self.places_N[sample_id]} of {self.split}"

    def read_image(
        self,
        sample_id: int,
        *,
        channels: int,
        scratch: Scratch | None = None,
        window: Window | None = None,
        least_px: tuple[int, int] | None = None,
    ) -> npt.NDArray[np.uint8]:
        """The pixels, uint8 (H, W, C), of the window, or of the whole image.

        Raises:
            ValueError: The user's code raises a ValueError or an OSError.
            RuntimeError: It raises something else, or the item is another one than at the start.
        """
        place = int(self.places_N[sample_id])
        try:
            pixels = self.items.read(place)
        except (ValueError, OSError) as error:
            raise ValueError(f"{reason(error)}{where(error)}") from error
        except Exception as error:  # a mistake in the user's code
            raise RuntimeError(f"{self.describe(sample_id)}: {reason(error)}{where(error)}") from error
        if zlib.crc32(pixels.tobytes()) != self.crcs_N[sample_id]:
            raise RuntimeError(explain_unsteady(self.name, self.split, place))
        pixels = pixels if window is None else cut(pixels, window)
        if pixels.shape[2] == channels:
            return pixels
        if channels == 3:
            return np.repeat(pixels, 3, axis=2)
        return np.asarray(Image.fromarray(pixels).convert("L"))[..., None]

    def read_jpeg(self, sample_id: int, *, scratch: Scratch | Arena | None = None) -> None:
        """None: what the user's code reads is not known."""
        return None

    def take(self, ids: npt.NDArray[np.int64]) -> "OwnSource":
        """The samples `ids`, numbered from 0."""
        return OwnSource(
            class_names=self.class_names,
            labels_N=self.labels_N[ids],
            sizes_N2=self.sizes_N2[ids],
            places_N=self.places_N[ids],
            crcs_N=self.crcs_N[ids],
            is_grey=self.is_grey,
            items=self.items,
            name=self.name,
            split=self.split,
        )

    def fingerprint(self) -> str:
        """A hash of class names, labels, sizes and the CRC-32 of all pixels."""
        return fingerprint_of(self.class_names, self.labels_N, self.sizes_N2, self.crcs_N)
