"""Stratified splits by seed, with scikit-learn."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from sklearn.model_selection import StratifiedKFold, train_test_split

from pipelines.source import Source


class Parts(NamedTuple):
    """The two parts of a split: `rest` to train on, `held_out` with the asked fraction of each class."""

    rest: Source
    held_out: Source


def split_source(source: Source, *, held_out_frac: float, seed: int) -> Parts:
    """Sets a fraction of each class aside, rounded: of a very small class it can be none.

    Raises:
        ValueError: A class has fewer than two images, or a part would have fewer images than there are classes.
    """
    counts = np.bincount(source.labels_N, minlength=len(source.class_names))
    num_classes, num_samples = len(counts), len(source.labels_N)
    num_held_out = int(np.ceil(num_samples * held_out_frac))
    smallest = int(counts.argmin())
    if counts[smallest] < 2 or num_held_out < num_classes or num_samples - num_held_out < num_classes:
        least = int(np.ceil(1000 * num_classes / num_samples))  # a part needs as many images as there are classes
        offer = f"use a fraction of {least / 1000:.3f} to {1 - least / 1000:.3f}, " if counts[smallest] >= 2 else ""
        raise ValueError(
            f"cannot split {num_samples} images of {num_classes} classes (the smallest, "
            f"{source.class_names[smallest]!r}, has {counts[smallest]}) with data.val_frac={held_out_frac:g}: each "
            f"class needs an image on both sides; add images, give val/ yourself, {offer}or use "
            f"data.val_frac=0 with run.select=last."
        )
    rest, held_out = train_test_split(
        np.arange(num_samples), test_size=num_held_out, stratify=source.labels_N, random_state=seed
    )
    return Parts(source.take(_sorted(rest)), source.take(_sorted(held_out)))


def split_fold(source: Source, *, num_folds: int, fold: int, seed: int) -> Parts:
    """Sets part `fold` of `num_folds` aside; together the parts are the whole, none shares an image with another.

    Raises:
        ValueError: A class has fewer images than there are parts.
    """
    counts = np.bincount(source.labels_N, minlength=len(source.class_names))
    smallest = int(counts.argmin())
    if counts[smallest] < num_folds:
        offer = f"use data.num_folds={counts[smallest]} or fewer, or " if counts[smallest] > 1 else ""
        raise ValueError(
            f"data.num_folds={num_folds}, but class {source.class_names[smallest]!r} has {counts[smallest]} image(s), "
            f"and each part needs one of every class; {offer}add images."
        )
    parts = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    rest, held_out = list(parts.split(np.zeros(len(source.labels_N)), source.labels_N))[fold]
    return Parts(source.take(_sorted(rest)), source.take(_sorted(held_out)))


def _sorted(ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return np.sort(ids).astype(np.int64)
