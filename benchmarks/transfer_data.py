"""The folders of the study of transfer, as links into CIFAR-10.

python -m benchmarks.transfer_data --data DIR --work WORK     (benchmarks.recipes does it by itself)

DIR/{train,test}/<class>/ -> WORK/seven/{train,test}/       the first seven classes by the alphabet, all their images
                          -> WORK/three_N_SEED/{train,test}/ the last three: N training images of each, all test images
                          -> WORK/trial_N_SEED/{train,val,test}/ the same, and 1,000 more training images of each in val

Which images a seed draws follows from their names alone, and those of a smaller N are among those of a larger one. What
is there already stays.
"""

import argparse
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from benchmarks.transfer_study import SUBSETS, TRIAL_SUBSETS

_NUM_CLASSES, _NUM_SEVEN = 10, 7
_SPLITS = ("train", "test")
_NUM_VAL = 1000


def main() -> None:
    """Makes all folders that are not there."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transfer_data", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as train/<class>/ and test/<class>/")
    parser.add_argument("--work", type=Path, required=True, help="where the folders of links go")
    options = parser.parse_args()
    link_folders(options.data, work=options.work)


def link_folders(
    data: Path,
    *,
    work: Path,
    subsets: Iterable[tuple[int, int]] = SUBSETS,
    trials: Iterable[tuple[int, int]] = TRIAL_SUBSETS,
    num_val: int = _NUM_VAL,
) -> None:
    """Makes seven/ and, for each (images per class, seed), three_N_SEED/ or trial_N_SEED/, where they are not there.

    Args:
        data: CIFAR-10 as train/<class>/ and test/<class>/.
        work: Where the folders go.
        subsets: Which numbers of images, which seeds.
        trials: The same of those that have a val.
        num_val: Images of each class in it.

    Raises:
        FileNotFoundError: `data` has no train/ or no test/.
        ValueError: `data` has another number of classes than ten, or too few images of one; or `work` holds folders
            that were made of other data.
    """
    data = data.resolve()
    names = [_list(data / split) for split in _SPLITS]
    if names[0] != names[1] or len(names[0]) != _NUM_CLASSES:
        raise ValueError(
            f"{data} has {len(names[0])} classes in train/ and {len(names[1])} in test/; the study needs CIFAR-10, "
            f"with the same {_NUM_CLASSES} in both."
        )
    seven, three = names[0][:_NUM_SEVEN], names[0][_NUM_SEVEN:]
    if not _is_there(work / "seven", of=data / "test" / seven[0]):
        links = {f"{split}/{name}": data / split / name for split in _SPLITS for name in seven}
        _link(work / "seven", links)
    wanted = [("three", 0, *subset) for subset in subsets] + [("trial", num_val, *subset) for subset in trials]
    for kind, num_others, num_images, seed in wanted:
        folder = work / f"{kind}_{num_images}_{seed}"
        if not _is_there(folder, of=data / "test" / three[0]):
            links = {f"test/{name}": data / "test" / name for name in three}
            for name in three:
                images = draw_images(data / "train" / name, num_images=num_images + num_others, seed=seed)
                for place, image in enumerate(images):
                    split = "train" if place < num_images else "val"
                    links[f"{split}/{name}/{image}"] = data / "train" / name / image
            _link(folder, links)


def draw_images(folder: Path, *, num_images: int, seed: int) -> list[str]:
    """Names of so many images of a class folder: those whose hashes with the seed come first.

    Raises:
        ValueError: It holds fewer.
    """
    names = _list(folder)
    if len(names) < num_images:
        raise ValueError(f"{folder} holds {len(names)} images, and the study needs {num_images}; give all of CIFAR-10.")
    drawn = sorted(names, key=lambda name: hashlib.sha256(f"{seed} {folder.name} {name}".encode()).digest())
    return drawn[:num_images]


def _list(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _is_there(folder: Path, *, of: Path) -> bool:
    """Whether the folder was made, and of this data: its link to the class folder `of` says so."""
    if not folder.exists():
        return False
    link = folder / of.parent.name / of.name
    if not link.is_symlink() or link.readlink() != of:
        raise ValueError(f"{folder} was not made of {of.parent.parent}; remove it, or give another --work.")
    return True


def _link(folder: Path, links: dict[str, Path]) -> None:
    """Makes the links under another name until all are there, so that a folder that is there is whole."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    for parent in dict.fromkeys((unfinished / name).parent for name in links):
        parent.mkdir(parents=True)
    for name, target in links.items():
        (unfinished / name).symlink_to(target)
    unfinished.rename(folder)


if __name__ == "__main__":
    main()
