"""Data sets as users write them, for data.dataset=own_sets:NAME; tests/pipelines is on the path."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, IterableDataset

SIZE = 16


def pixels_of(place: int, *, size: int = SIZE, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(place).integers(0, 256, (size, size, channels), dtype=np.uint8)


class Plain(Dataset):
    """Arrays of one size, three classes; no splits."""

    def __init__(self, count: int = 12, num_classes: int = 3) -> None:
        self.count = count
        self.num_classes = num_classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return self.image(place), place % self.num_classes

    def image(self, place: int) -> Any:
        return pixels_of(place)


class Sizes(Plain):
    """Images of several sizes."""

    def image(self, place: int) -> Any:
        return Image.fromarray(pixels_of(place, size=SIZE + place % 3))


class Floats(Plain):
    """As torchvision's ToTensor makes them."""

    def image(self, place: int) -> Any:
        return torch.from_numpy(pixels_of(place)).permute(2, 0, 1).float().div(255)


class Kinds(Plain):
    """All kinds of images there are."""

    def image(self, place: int) -> Any:
        colour, grey = pixels_of(place), pixels_of(place, channels=1)[..., 0]
        return [
            Image.fromarray(colour),
            Image.fromarray(grey),
            Image.fromarray(colour).convert("RGBA"),
            colour,
            grey,
            grey[..., None],
            torch.from_numpy(colour).permute(2, 0, 1),
            torch.from_numpy(colour).permute(2, 0, 1).double() / 255,
            torch.from_numpy(grey)[None].float() / 255,
            torch.from_numpy(colour).permute(2, 0, 1).half() / 255,
        ][place % 10]


class Labels(Plain):
    """All kinds of labels there are."""

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        label = place % 3
        return self.image(place), [label, np.int32(label), torch.tensor(label), np.array(label), np.uint8(label)][
            place % 5
        ]


class Split(Plain):
    """`split`: train and test, another number of items each."""

    classes = ("ant", "bee", "cow")

    def __init__(self, folder: str, *, split: str = "train") -> None:
        if split not in ("train", "test"):
            raise ValueError(f"split {split!r} is not known")
        super().__init__({"train": 12, "test": 6}[split])


class Train(Plain):
    """`train`: True or False, as torchvision's."""

    class_to_idx = {"cow": 2, "ant": 0, "bee": 1}  # noqa: RUF012

    def __init__(self, train: bool = True) -> None:
        super().__init__(12 if train else 6)


class TwoOfThree(Plain):
    """val is known, and its making fails."""

    def __init__(self, split: str) -> None:
        if split == "val":
            raise ValueError("the table of val is damaged")
        if split not in ("train", "test"):
            raise ValueError(split)
        super().__init__()


class AnySplit(Plain):
    """Takes whatever split for test."""

    def __init__(self, split: str) -> None:
        super().__init__(12 if split == "train" else 6)


class Empty(Plain):
    """What is not known has no items."""

    def __init__(self, split: str) -> None:
        super().__init__({"train": 12, "val": 6}.get(split, 0))


class Asserting(Plain):
    """The other way of saying no."""

    def __init__(self, split: str) -> None:
        assert split in ("train", "val")
        super().__init__()


class Random(Plain):
    """A flip at random."""

    def image(self, place: int) -> Any:
        image = pixels_of(place)
        return image[:, ::-1] if torch.rand(()) < 0.5 else image


class FromOne(Plain):
    """Labels from 1."""

    def __getitem__(self, place: int) -> tuple[Any, Any]:
        return self.image(place), place % 3 + 1


class Broken(Plain):
    """Some items that cannot be read."""

    def __init__(self, kind: str = "value") -> None:
        super().__init__(12)
        self.kind = kind

    def image(self, place: int) -> Any:
        if place in (4, 7):
            raise {"value": ValueError, "os": OSError, "key": KeyError}[self.kind](f"item {place} is broken")
        return super().image(place)


class OneBuffer(Plain):
    """Every image in the same memory."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.buffer: Any = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)

    def image(self, place: int) -> Any:
        self.buffer[:] = pixels_of(place)
        return self.buffer


class OneTensor(OneBuffer):
    """The same as a tensor, laid out as it is kept here."""

    def image(self, place: int) -> Any:
        return torch.from_numpy(super().image(place)).permute(2, 0, 1)


class Fails(Plain):
    """Cannot be read any more after some items."""

    left = 0

    def image(self, place: int) -> Any:
        Fails.left -= 1
        if Fails.left < 0:
            raise OSError("no more")
        return super().image(place)


class Dies(Plain):
    """Takes its worker process with it."""

    def image(self, place: int) -> Any:
        if place == 5:
            os._exit(3)
        return super().image(place)


class InOneFile(Plain):
    """Reads on in a file that is opened at_once, lazily, or by_process."""

    def __init__(self, path: str, kind: str) -> None:
        super().__init__(300)
        self.path, self.kind, self.opened_by = path, kind, 0
        self.file = open(path, "rb", buffering=0) if kind == "at_once" else None  # noqa: SIM115 (as users do)

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()

    def image(self, place: int) -> Any:
        if self.file is None or (self.kind == "by_process" and self.opened_by != os.getpid()):
            self.file, self.opened_by = open(self.path, "rb", buffering=0), os.getpid()  # noqa: SIM115
        size = SIZE * SIZE * 3
        self.file.seek(place * size)
        return np.frombuffer(self.file.read(size), dtype=np.uint8).reshape(SIZE, SIZE, 3)


class Stream(IterableDataset):
    """No items by number."""

    def __iter__(self) -> Iterator[Any]:
        yield pixels_of(0), 0


class Given(Plain):
    """Whatever is asked for, by name."""

    def __init__(self, what: str) -> None:
        super().__init__()
        self.what = what

    def __getitem__(self, place: int) -> Any:
        image = pixels_of(place)
        return {
            "one": image,
            "three": (image, 0, 0),
            "float_array": (image / 255, 0),
            "four_channels": (np.zeros((4, 4, 4), dtype=np.uint8), 0),
            "hwc_tensor": (torch.from_numpy(image), 0),
            "normalised": ((torch.from_numpy(image).permute(2, 0, 1) / 255 - 0.5) / 0.25, 0),
            "to_255": (torch.from_numpy(image).permute(2, 0, 1).float(), 0),
            "ints": (torch.from_numpy(image).permute(2, 0, 1).long(), 0),
            "text": ("a.jpg", 0),
            "float_label": (image, 1.0),
            "one_hot": (image, torch.eye(3)[0]),
            "name": (image, "cat"),
            "flag": (image, True),
            "negative": (image, -1),
            "huge": (image, np.uint64(2**63 + 5)),
            "identifier": (image, place % 3 if place else 1_000_000_001),
            "gap": (image, place % 2 * 2),
            "same": (image, 0),
        }[self.what]


def make(folder: str, size: int = 3) -> Plain:
    """A function may be named as well."""
    return Plain(size)


NOTHING = 3
