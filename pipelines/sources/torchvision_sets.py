"""torchvision's classification data sets by name, from one table; downloaded by torchvision where they are not there.

name -> row of SETS -> torchvision's own class, which downloads, unpacks and checks -> images in memory: ArraySource
                                                                                    -> image files: index, FolderSource

Pixels, labels and splits are torchvision's; image files are decoded here, as those of an image folder are.
"""

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torchvision import datasets
from torchvision.datasets import utils as torchvision_utils

from pipelines.source import ArraySource, Source
from pipelines.sources.files import Files, index_files, locate
from pipelines.sources.index import default_cache
from pipelines.sources.upkeep import IndexCache, empty_classes, some

_NO_ARGUMENTS: Mapping[str, Any] = MappingProxyType({})


class Loaded(NamedTuple):
    """What torchvision's object holds: images, uint8 (N, H, W, C), or paths; a label for each; names of the classes."""

    images_or_paths: npt.NDArray[np.uint8] | list[str]
    labels: Sequence[int]
    class_names: Sequence[str]


class TorchvisionSet(NamedTuple):
    """A data set.

    class_name: that of its class in torchvision.datasets.
    load: what to take from an object of it.
    splits: the arguments that give train, val and test; without a test, a fifth of train is set aside.
    holds: what lies in the folder for downloads once it is there, for messages.
    """

    class_name: str
    load: Callable[[Any], Loaded]
    splits: Mapping[str, Mapping[str, Any]]
    holds: str


def _grey(images: Any, labels: Any, class_names: Sequence[str]) -> Loaded:
    return Loaded(np.asarray(images)[..., None], np.asarray(labels).tolist(), class_names)


def _digits(number: int) -> list[str]:
    return [str(digit) for digit in range(number)]


def _load_emnist_letters(letters: Any) -> Loaded:
    """Labels from 0: torchvision's begin at 1, behind a class "N/A" without images."""
    return _grey(letters.data, np.asarray(letters.targets) - 1, letters.classes[1:])


def _load_samples(images: Any, *, class_names: Callable[[Any], Sequence[str]]) -> Loaded:
    samples = images.samples if hasattr(images, "samples") else images._samples
    return Loaded([str(path) for path, _ in samples], [int(label) for _, label in samples], class_names(images))


def _load_files(images: Any, *, files: str) -> Loaded:
    paths = [str(path) for path in getattr(images, files)]
    return Loaded(paths, images._labels, images.classes)


def _load_caltech(images: Any, *, folder: str, name: str) -> Loaded:
    paths = [
        os.path.join(images.root, folder, images.categories[label], name.format(number=number, label=label + 1))
        for label, number in zip(images.y, images.index, strict=True)
    ]
    return Loaded(paths, images.y, images.categories)


def _classes(images: Any) -> list[str]:
    return [name if isinstance(name, str) else name[0] for name in images.classes]  # Imagenette's have synonyms


_TRAIN_FLAG = {"train": {"train": True}, "test": {"train": False}}
_TRAIN_TEST = {"train": {"split": "train"}, "test": {"split": "test"}}
_ALL_THREE = {split: {"split": split} for split in ("train", "val", "test")}
_SINGLE = {"train": _NO_ARGUMENTS}

_in_cifar = lambda images: Loaded(images.data, images.targets, images.classes)  # noqa: E731
_in_mnist = lambda images: _grey(images.data, images.targets, images.classes)  # noqa: E731
_in_files = functools.partial(_load_files, files="_image_files")
_in_samples = functools.partial(_load_samples, class_names=_classes)


def _emnist(split: str, *, load: Callable[[Any], Loaded] = _in_mnist) -> TorchvisionSet:
    splits = {name: {**train, "split": split} for name, train in _TRAIN_FLAG.items()}
    return TorchvisionSet("EMNIST", load, splits, "EMNIST/raw/")


def _imagenette(size: str, folder: str) -> TorchvisionSet:
    splits = {name: {"split": split, "size": size} for name, split in (("train", "train"), ("test", "val"))}
    return TorchvisionSet("Imagenette", _in_samples, splits, f"{folder}/")


SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet("CIFAR10", _in_cifar, _TRAIN_FLAG, "cifar-10-batches-py/"),
    "cifar100": TorchvisionSet("CIFAR100", _in_cifar, _TRAIN_FLAG, "cifar-100-python/"),
    "mnist": TorchvisionSet("MNIST", _in_mnist, _TRAIN_FLAG, "MNIST/raw/"),
    "fashion_mnist": TorchvisionSet("FashionMNIST", _in_mnist, _TRAIN_FLAG, "FashionMNIST/raw/"),
    "kmnist": TorchvisionSet("KMNIST", _in_mnist, _TRAIN_FLAG, "KMNIST/raw/"),
    "qmnist": TorchvisionSet(
        "QMNIST",
        lambda images: _grey(images.data, np.asarray(images.targets)[:, 0], images.classes),
        _TRAIN_FLAG,
        "QMNIST/raw/",
    ),
    "emnist_balanced": _emnist("balanced"),
    "emnist_byclass": _emnist("byclass"),
    "emnist_bymerge": _emnist("bymerge"),
    "emnist_letters": _emnist("letters", load=_load_emnist_letters),
    "emnist_digits": _emnist("digits"),
    "emnist_mnist": _emnist("mnist"),
    "usps": TorchvisionSet(
        "USPS",
        lambda images: _grey(images.data, images.targets, _digits(10)),
        _TRAIN_FLAG,
        "usps.bz2 and usps.t.bz2",
    ),
    "semeion": TorchvisionSet(
        "SEMEION", lambda images: _grey(images.data, images.labels, _digits(10)), _SINGLE, "semeion.data"
    ),
    "svhn": TorchvisionSet(
        "SVHN",
        lambda images: Loaded(images.data.transpose(0, 2, 3, 1), images.labels.tolist(), _digits(10)),
        _TRAIN_TEST,
        "train_32x32.mat and test_32x32.mat",
    ),
    "stl10": TorchvisionSet(
        "STL10",
        lambda images: Loaded(images.data.transpose(0, 2, 3, 1), images.labels.tolist(), images.classes),
        _TRAIN_TEST,
        "stl10_binary/",
    ),
    "flowers102": TorchvisionSet("Flowers102", _in_files, _ALL_THREE, "flowers-102/"),
    "oxford_pets": TorchvisionSet(
        "OxfordIIITPet",
        functools.partial(_load_files, files="_images"),
        {"train": {"split": "trainval"}, "test": {"split": "test"}},
        "oxford-iiit-pet/",
    ),
    "food101": TorchvisionSet("Food101", _in_files, _TRAIN_TEST, "food-101/"),
    "eurosat": TorchvisionSet("EuroSAT", _in_samples, _SINGLE, "eurosat/2750/"),
    "dtd": TorchvisionSet("DTD", _in_files, _ALL_THREE, "dtd/dtd/"),
    "gtsrb": TorchvisionSet(
        "GTSRB",
        functools.partial(_load_samples, class_names=lambda images: _digits(43)),
        _TRAIN_TEST,
        "gtsrb/GTSRB/ and gtsrb/GT-final_test.csv",
    ),
    "fgvc_aircraft": TorchvisionSet("FGVCAircraft", _in_files, _ALL_THREE, "fgvc-aircraft-2013b/data/"),
    "caltech101": TorchvisionSet(
        "Caltech101",
        functools.partial(_load_caltech, folder="101_ObjectCategories", name="image_{number:04d}.jpg"),
        _SINGLE,
        "caltech101/101_ObjectCategories/",
    ),
    "caltech256": TorchvisionSet(
        "Caltech256",
        functools.partial(_load_caltech, folder="256_ObjectCategories", name="{label:03d}_{number:04d}.jpg"),
        _SINGLE,
        "caltech256/256_ObjectCategories/",
    ),
    "imagenette": _imagenette("full", "imagenette2"),
    "imagenette_320px": _imagenette("320px", "imagenette2-320"),
    "imagenette_160px": _imagenette("160px", "imagenette2-160"),
    "country211": TorchvisionSet(
        "Country211",
        _in_samples,
        {"train": {"split": "train"}, "val": {"split": "valid"}, "test": {"split": "test"}},
        "country211/",
    ),
    "rendered_sst2": TorchvisionSet("RenderedSST2", _in_samples, _ALL_THREE, "rendered-sst2/"),
    "stanford_cars": TorchvisionSet("StanfordCars", _in_samples, _TRAIN_TEST, "stanford_cars/"),
    "sun397": TorchvisionSet("SUN397", _in_files, _SINGLE, "SUN397/"),
}


def default_root() -> Path:
    """The folder for downloads where none is named: `datasets` in the folder of the indexes."""
    return default_cache() / "datasets"


def load_torchvision(
    name: str,
    *,
    root: Path,
    show_progress: bool,
    cache: Path | None = None,
    rescan: bool = False,
    verify: bool = False,
) -> dict[str, Source]:
    """The splits of a data set that torchvision gives: train, and val and test where it has them.

    Args:
        name: A key of SETS; `pipelines.build_data.check_dataset` lets no other pass.
        root: The folder for downloads.
        show_progress: Whether to draw progress bars, and to say what was noticed.
        cache: The folder that keeps indexes of image files.
        rescan: Look at every image file again.
        verify: Decode every image file once.

    Raises:
        ValueError: Files that are there in part, or a file in place of the folder.
        OSError: It is not there and cannot be downloaded; the message says what to do on a machine without network.
    """
    row, root = SETS[name], root.expanduser()
    if root.exists() and not root.is_dir():
        raise ValueError(f"data.root={root} is a file; give the folder that holds {row.holds}, or is to hold it.")
    kept = IndexCache(cache, show_progress=show_progress)
    loaded = {split: row.load(_open(name, split, root=root, show_progress=show_progress)) for split in row.splits}
    sources: dict[str, Source] = {}
    class_names = tuple(loaded["train"].class_names)
    for split, found in loaded.items():
        labels_N = np.array(found.labels, dtype=np.int64)
        _check_classes(name, split, root=root, class_names=class_names, found=found, labels_N=labels_N)
        if isinstance(found.images_or_paths, list):
            files = _list_files(found.images_or_paths, labels_N, class_names=class_names, root=root)
            key = Path(f"{os.path.realpath(root)}#{name}#{split}")
            sources[split] = index_files(
                files, key=key, cache=kept, rescan=rescan, verify=verify, show_progress=show_progress
            )
        else:
            images_NHWC = np.ascontiguousarray(found.images_or_paths)
            sources[split] = ArraySource(class_names=class_names, labels_N=labels_N, images_NHWC=images_NHWC)
    return sources


def _list_files(
    paths: list[str], labels_N: npt.NDArray[np.int64], *, class_names: tuple[str, ...], root: Path
) -> Files:
    """The files in the order of their paths, for SUN397's come as the disk lists them."""
    order = sorted(range(len(paths)), key=paths.__getitem__)
    base, names_N = locate([paths[place] for place in order], folder=str(root))
    return Files(base, class_names, names_N, labels_N[order])


def _check_classes(
    name: str,
    split: str,
    *,
    root: Path,
    class_names: tuple[str, ...],
    found: Loaded,
    labels_N: npt.NDArray[np.int64],
) -> None:
    """What torchvision does not notice: an archive that was unpacked in part.

    Raises:
        ValueError: A split without images, with other classes than train, or train with a class without images.
    """
    holds = f"what {root} holds of {name} ({SETS[name].holds})"
    advice = "it may be unpacked in part: remove it, and start again."
    if not len(labels_N):
        raise ValueError(f"{holds} has no images of {split}; {advice}")
    if tuple(found.class_names) != class_names:
        raise ValueError(f"{holds} has other classes in {split} than in train; {advice}")
    empty = empty_classes(class_names, labels_N) if split == "train" else []
    if empty:
        raise ValueError(f"{holds} has no images of {len(empty)} classes: {some(empty)}; {advice}")


def _open(name: str, split: str, *, root: Path, show_progress: bool) -> Any:
    """The object of torchvision's: of what is there, else of what it downloads."""
    row = SETS[name]
    make = functools.partial(getattr(datasets, row.class_name), str(root), **row.splits[split])
    try:
        return make(download=False)
    except Exception as error:  # not there, or of broken files whatever their readers raise
        here = error
    if show_progress:
        print(f"{name}: {split} is not in {root}, or not whole; downloading", flush=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _few_lines():
            return make(download=True)
    except Exception as error:  # no network, a server that has moved, a full disk, an archive cut short
        raise OSError(_explain(name, root, split=split, here=here, there=error)) from error


def _explain(name: str, root: Path, *, split: str, here: Exception, there: Exception) -> str:
    holds = SETS[name].holds
    place = root / holds.split(" and ")[0]
    is_there = place.is_file() or (place.is_dir() and any(place.iterdir()))
    if is_there and (type(here), str(here)) == (type(there), str(there)):  # nothing was downloaded, for all is there
        return (
            f"{name}: {split} in {root} ({holds}) cannot be read ({_reason(there)}); remove {place} and start again: "
            "it is downloaded anew then."
        )
    faults = _faults(name, root)
    found = (
        f"{place} is there, but not whole ({'; '.join(faults) or _reason(here)})"
        if is_there
        else f"it is not in {root}"
    )
    return (
        f"{name} cannot be had: {found}, and it could not be downloaded ({_reason(there)}). On a machine with network "
        f"run `python -m pipelines.sources.download {name} --root DIR`, and copy {holds} from there into {root}; or "
        "name the folder that has it by --data.root."
    )


def _faults(name: str, root: Path) -> list[str]:
    """Which files are missing or damaged, where torchvision has a list of them."""
    images = getattr(datasets, SETS[name].class_name)
    lists = [*getattr(images, "train_list", ()), *getattr(images, "test_list", ())]
    files = [(root / images.base_folder / file, md5) for file, md5 in lists]
    files += [(root / file, md5) for _, file, md5 in getattr(images, "split_list", {}).values()]
    return [
        f"{path.name} is {'damaged' if path.exists() else 'missing'}"
        for path, md5 in files
        if not torchvision_utils.check_integrity(str(path), md5)
    ]


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


@contextlib.contextmanager
def _few_lines() -> Iterator[None]:
    """Bars on a terminal alone, and torchvision's other lines where errors go."""
    bar = getattr(torchvision_utils, "tqdm", None)
    if bar is None:  # it draws them otherwise now
        yield
        return
    torchvision_utils.tqdm = functools.partial(bar, disable=None)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        torchvision_utils.tqdm = bar
