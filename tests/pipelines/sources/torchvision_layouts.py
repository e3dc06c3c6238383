"""Tiny files laid out as torchvision's data sets expect them, by name of the data set."""

import bz2
import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.io import savemat

Pixels = npt.NDArray[np.uint8]


def draw(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng([seed, *shape]).integers(0, 256, shape, dtype=np.uint8)


def labels_of(num_classes: int, count: int, *, first: int = 0) -> Pixels:
    return (np.arange(count) % num_classes + first).astype(np.uint8)


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def write_image(path: Path, *, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw(10 + seed % 3, 12, 3, seed=seed)).save(path)


def write_images(root: Path, names: list[str]) -> None:
    for seed, name in enumerate(names):
        write_image(root / name, seed=seed)


def _cifar(root: Path, *, folder: str, batches: list[str], key: str, names: str, count: int) -> None:
    for seed, batch in enumerate(batches):
        content = {"data": draw(count, 3072, seed=seed), key: labels_of(count, count).tolist()}
        write(root / folder / batch, pickle.dumps(content))
    meta = "batches.meta" if "10-" in folder else "meta"
    write(root / folder / meta, pickle.dumps({names: [f"class {number}" for number in range(count)]}))


def _cifar10(root: Path) -> None:
    batches = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]
    _cifar(root, folder="cifar-10-batches-py", batches=batches, key="labels", names="label_names", count=10)


def _cifar100(root: Path) -> None:
    _cifar(
        root,
        folder="cifar-100-python",
        batches=["train", "test"],
        key="fine_labels",
        names="fine_label_names",
        count=100,
    )


def _idx(kind: int, array: npt.NDArray[np.generic]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, kind, array.ndim, *array.shape) + array.tobytes()


def _write_idx(folder: Path, images: str, labels: str, *, num_classes: int, first: int = 0) -> None:
    write(folder / images, _idx(8, draw(num_classes + 1, 28, 28, seed=len(images))))
    write(folder / labels, _idx(8, labels_of(num_classes, num_classes + 1, first=first)))


def _mnist(folder: str) -> Callable[[Path], None]:
    def lay_out(root: Path) -> None:
        for prefix in ("train", "t10k"):
            images, labels = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
            _write_idx(root / folder / "raw", images, labels, num_classes=10)

    return lay_out


def _emnist(split: str, num_classes: int, *, first: int = 0) -> Callable[[Path], None]:
    def lay_out(root: Path) -> None:
        for part in ("train", "test"):
            images, labels = (f"emnist-{split}-{part}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
            _write_idx(root / "EMNIST/raw", images, labels, num_classes=num_classes, first=first)

    return lay_out


def _qmnist(root: Path) -> None:
    for part in ("train", "test"):
        targets = np.tile(np.arange(8, dtype=">i4"), (12, 1))
        targets[:, 0] = np.arange(12) % 10
        write(root / f"QMNIST/raw/qmnist-{part}-images-idx3-ubyte", _idx(8, draw(12, 28, 28, seed=len(part))))
        write(root / f"QMNIST/raw/qmnist-{part}-labels-idx2-int", _idx(12, targets))


def _usps(root: Path) -> None:
    for name in ("usps.bz2", "usps.t.bz2"):
        values = draw(20, 256, seed=len(name)) / 127.5 - 1
        rows = [
            f"{number % 10 + 1} " + " ".join(f"{place + 1}:{value:.4f}" for place, value in enumerate(row))
            for number, row in enumerate(values)
        ]
        write(root / name, bz2.compress("\n".join(rows).encode()))


def _semeion(root: Path) -> None:
    rows = [" ".join(f"{value:.4f}" for value in [*(draw(256, seed=n) % 2), *np.eye(10)[n % 10]]) for n in range(60)]
    write(root / "semeion.data", "\n".join(rows))


def _svhn(root: Path) -> None:
    for name in ("train_32x32.mat", "test_32x32.mat"):
        root.mkdir(parents=True, exist_ok=True)
        savemat(root / name, {"X": draw(32, 32, 3, 20, seed=len(name)), "y": labels_of(10, 20, first=1)[:, None]})


def _stl10(root: Path) -> None:
    for name, count in (("train_X", 10), ("test_X", 11)):
        write(root / f"stl10_binary/{name}.bin", draw(count, 3, 96, 96).tobytes())
        write(root / f"stl10_binary/{name[:-1]}y.bin", labels_of(10, count, first=1).tobytes())
    write(root / "stl10_binary/unlabeled_X.bin", b"")
    write(root / "stl10_binary/class_names.txt", "\n".join(f"class {number}" for number in range(10)))


def _flowers(root: Path) -> None:
    base = root / "flowers-102"
    write_images(base, [f"jpg/image_{number:05}.jpg" for number in range(1, 110)])
    savemat(base / "imagelabels.mat", {"labels": np.arange(109)[None] % 102 + 1})
    ids = {"trnid": np.arange(1, 103), "valid": np.arange(103, 106), "tstid": np.arange(106, 110)}
    savemat(base / "setid.mat", {name: each[None] for name, each in ids.items()})


def _pets(root: Path) -> None:
    base, breeds = root / "oxford-iiit-pet", ["Abyssinian", "great_pyrenees", "pug"]
    for split, numbers in (("trainval", (1, 2)), ("test", (3,))):
        names = [(f"{breed}_{number}", label) for label, breed in enumerate(breeds) for number in numbers]
        write_images(base, [f"images/{name}.jpg" for name, _ in names])
        write(base / f"annotations/{split}.txt", "".join(f"{name} {label + 1} 1 1\n" for name, label in names))


def _food(root: Path) -> None:
    for split, numbers in (("train", (1, 2)), ("test", (3,))):
        listed = {food: [f"{food}/{number}" for number in numbers] for food in ("waffles", "apple_pie")}
        write(root / f"food-101/meta/{split}.json", json.dumps(listed))
        write_images(root / "food-101/images", [f"{name}.jpg" for names in listed.values() for name in names])


def _image_folder(folder: str, classes: tuple[str, ...], *, count: int, suffix: str = ".jpg") -> Callable[[Path], None]:
    names = [f"{name}/{name}_{number}{suffix}" for name in classes for number in range(count)]
    return lambda root: write_images(root / folder, names)


def _dtd(root: Path) -> None:
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        names = [f"{name}/{name}_{number}.jpg" for name in ("banded", "woven")]
        write(root / f"dtd/dtd/labels/{split}1.txt", "".join(f"{name}\n" for name in names))
        write_images(root / "dtd/dtd/images", names)


def _gtsrb(root: Path) -> None:
    write_images(root / "gtsrb/GTSRB/Training", [f"{number:05}/a.ppm" for number in range(43)])
    write_images(root / "gtsrb/GTSRB/Final_Test/Images", ["00000.ppm", "00001.ppm"])
    write(root / "gtsrb/GT-final_test.csv", "Filename;Width;ClassId\n00000.ppm;10;16\n00001.ppm;11;1\n")


def _aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b/data"
    write(data / "variants.txt", "707-320\nDC-8 Super\n")
    for number, split in enumerate(("train", "val", "test")):
        write(data / f"images_variant_{split}.txt", f"{number}1 707-320\n{number}2 DC-8 Super\n")
        write_images(data / "images", [f"{number}1.jpg", f"{number}2.jpg"])


def _caltech101(root: Path) -> None:
    names = ["BACKGROUND_Google", "Faces", "emu"]
    base = root / "caltech101/101_ObjectCategories"
    write_images(base, [f"{name}/image_{number:04}.jpg" for name in names for number in range(1, 11)])


def _caltech256(root: Path) -> None:
    names = ["001.ak47", "002.american-flag"]
    base = root / "caltech256/256_ObjectCategories"
    write_images(base, [f"{name}/{name[:3]}_{number:04}.jpg" for name in names for number in range(1, 11)])


def _imagenette(folder: str) -> Callable[[Path], None]:
    names = [f"{w}/{s}_{n}.JPEG" for w in ("n01440764", "n03888257") for s, n in (("a", 1), ("a", 2))]
    return lambda root: [write_images(root / folder / split, names) for split in ("train", "val")] and None


def _three_folders(
    folder: str, splits: tuple[str, ...], classes: tuple[str, ...], suffix: str
) -> Callable[[Path], None]:
    def lay_out(root: Path) -> None:
        for split in splits:
            _image_folder(f"{folder}/{split}", classes, count=2, suffix=suffix)(root)

    return lay_out


def _cars(root: Path) -> None:
    base = root / "stanford_cars"
    (base / "devkit").mkdir(parents=True)
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(["Audi TT", "Fiat 500"], dtype=object)[None]})
    for folder, file in (
        ("cars_train", base / "devkit/cars_train_annos.mat"),
        ("cars_test", base / "cars_test_annos_withlabels.mat"),
    ):
        write_images(base / folder, ["00001.jpg", "00002.jpg", "00003.jpg"])
        rows = [(f"0000{number}.jpg", (number - 1) % 2 + 1) for number in (1, 2, 3)]
        savemat(file, {"annotations": np.array(rows, dtype=[("fname", "U9"), ("class", "i4")])[None]})


def _sun(root: Path) -> None:
    write(root / "SUN397/ClassName.txt", "/a/abbey\n/b/bar/inside\n")
    names = [f"{name}/sun_{number}.jpg" for name in ("a/abbey", "b/bar/inside") for number in range(10)]
    write_images(root / "SUN397", names)


LAYOUTS: dict[str, Callable[[Path], None]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "mnist": _mnist("MNIST"),
    "fashion_mnist": _mnist("FashionMNIST"),
    "kmnist": _mnist("KMNIST"),
    "qmnist": _qmnist,
    "emnist_balanced": _emnist("balanced", 47),
    "emnist_byclass": _emnist("byclass", 62),
    "emnist_bymerge": _emnist("bymerge", 47),
    "emnist_letters": _emnist("letters", 26, first=1),
    "emnist_digits": _emnist("digits", 10),
    "emnist_mnist": _emnist("mnist", 10),
    "usps": _usps,
    "semeion": _semeion,
    "svhn": _svhn,
    "stl10": _stl10,
    "flowers102": _flowers,
    "oxford_pets": _pets,
    "food101": _food,
    "eurosat": _image_folder("eurosat/2750", ("Forest", "River"), count=10),
    "dtd": _dtd,
    "gtsrb": _gtsrb,
    "fgvc_aircraft": _aircraft,
    "caltech101": _caltech101,
    "caltech256": _caltech256,
    "imagenette": _imagenette("imagenette2"),
    "imagenette_320px": _imagenette("imagenette2-320"),
    "imagenette_160px": _imagenette("imagenette2-160"),
    "country211": _three_folders("country211", ("train", "valid", "test"), ("AD", "ZW"), ".jpg"),
    "rendered_sst2": _three_folders("rendered-sst2", ("train", "valid", "test"), ("negative", "positive"), ".png"),
    "stanford_cars": _cars,
    "sun397": _sun,
}
