"""The door of this room for programs: configuration -> data -> loaders.

Config -> build_data.py: splits, InputSpec completed -> build_executor.py: backend chosen -> build_loader.py: loaders
                                                     -> features, computed once -> build_cached.py: their loader

These, build_augment.py, build_pack.py, build_preview.py and build_study.py are the only files of this room that read a
configuration.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch

from configs.load import replace_section
from configs.schema import Config
from pipelines.build_cached import build_cached_loader
from pipelines.build_data import (
    Data,
    build_data,
    check_classes,
    check_dataset,
    fingerprint_splits,
    given,
    split_of,
    splits_of,
)
from pipelines.build_executor import Backend, Place, choose_backend, fit_of
from pipelines.build_loader import (
    build_evaluation_loader,
    build_measuring_loader,
    build_training_loader,
    build_whole_train_loader,
    in_batches_of,
    size_at,
    weights_of,
)
from pipelines.build_pack import Packed, Storing, has_shards, pack_data, verify_packed
from pipelines.build_preview import build_preview
from pipelines.build_study import DataLoaderOptions, StudyLoader, build_study_loader
from pipelines.examples import read_examples
from pipelines.loader import PlannedLoader
from pipelines.parallel import num_cores
from pipelines.preview import MOST_EPOCHS, Preview, Shown
from pipelines.sampling import expectations
from pipelines.source import Source
from pipelines.sources.index import default_cache
from pipelines.wording import Count, Range

__all__ = [  # the door of this room: what others import from here, wherever it is written
    "MOST_EPOCHS",
    "Count",
    "Data",
    "DataLoaderOptions",
    "Loaders",
    "Packed",
    "Place",
    "Preview",
    "Range",
    "Shown",
    "Storing",
    "StudyLoader",
    "build_cached_loader",
    "build_data",
    "build_evaluation_loader",
    "build_loaders",
    "build_measuring_loader",
    "build_preview",
    "build_study_loader",
    "build_training_loader",
    "build_whole_train_loader",
    "check_classes",
    "check_dataset",
    "choose_backend",
    "default_cache",
    "describe_data",
    "fingerprint_splits",
    "has_shards",
    "num_cores",
    "pack_data",
    "read_training_images",
    "size_at",
    "split_of",
    "verify_packed",
]

_NUM_CLASSES_SHOWN = 6


class Loaders(NamedTuple):
    """Batches of train, shuffled and augmented, and of val and test (where there are such) for evaluation.

    train: of the size that training begins with. train_in_batches_of: global batch size -> the same in other batches;
    one of them may be iterated at a time. sampling: how often images are met, in words, where that is not once per
    epoch. mixing: why no pair is mixed, where one would be with more images.
    """

    train: PlannedLoader
    train_in_batches_of: Callable[[int], PlannedLoader]
    evaluation: dict[str, PlannedLoader]
    backend: Backend
    sampling: str
    mixing: str


def build_loaders(config: Config, data: Data, *, place: Place, show_progress: bool) -> Loaders:
    """The loaders of a training run.

    Raises:
        ValueError: The global batch does not fit the data or the world size, or an image cannot be read.
    """
    evaluated = [split for split in ("val", "test") if getattr(data, split) is not None]
    (_, first_size), *_ = config.train.batch_sizes or ((0, config.train.global_batch_size),)
    first = replace_section(config, "train", global_batch_size=first_size)
    train = build_training_loader(first, data, place=place, show_progress=show_progress)
    return Loaders(
        train=train,
        train_in_batches_of=partial(in_batches_of, loader=train, config=config, data=data, place=place),
        evaluation={
            split: build_evaluation_loader(config, data, split, place=place, show_progress=show_progress)
            for split in evaluated
        },
        backend=choose_backend(config, data, device=place.device),
        sampling=_describe_sampling(config, data.train),
        mixing=_describe_mixing(config, data.train),
    )


def describe_data(data: Data, loaders: Loaders) -> str:
    """A few lines on what is trained on, for the screen."""
    sizes = [f"{len(data.train.labels_N):,} train"]
    sizes += [f"{loader.num_samples:,} {split}" for split, loader in loaders.evaluation.items()]
    spec, train = data.spec, loaders.train
    mean, std = (", ".join(f"{value:.4f}" for value in given(values)) for values in (spec.mean, spec.std))
    return (
        f"data: {', '.join(sizes)}; {len(data.train.class_names)} classes; {train.num_left_out} "
        f"{'draws' if loaders.sampling else 'images'} left out of each epoch of {train.steps_per_epoch} steps\n"
        f"{loaders.sampling}{loaders.mixing}"
        f"input: {spec.size_px}x{spec.size_px}, {spec.channels} channel(s), mean ({mean}), std ({std})\n"
        f"loader: {loaders.backend.name} ({loaders.backend.reason})" + _describe_bad(data)
    )


def _describe_sampling(config: Config, train: Source) -> str:
    """A line on how often an image of each class is met in an epoch, on average; of many classes the extremes."""
    weights_N = weights_of(config, train)
    if weights_N is None:
        return ""
    counts = np.bincount(train.labels_N, minlength=len(train.class_names))
    sums = np.bincount(train.labels_N, weights=expectations(weights_N), minlength=len(train.class_names))
    times = [f"{name} x{each:.2f}" for name, each in zip(train.class_names, sums / np.maximum(counts, 1), strict=True)]
    if len(times) > _NUM_CLASSES_SHOWN:
        ranked = np.argsort(-sums / np.maximum(counts, 1), kind="stable").tolist()
        half = _NUM_CLASSES_SHOWN // 2
        times = [times[label] for label in ranked[:half]] + ["..."] + [times[label] for label in ranked[-half:]]
    words = config.data.sampling + (" with class_weights" if config.data.class_weights else "")
    return f"sampling: {words}: {', '.join(times)}; an epoch is {len(weights_N):,} draws\n"


def _describe_mixing(config: Config, train: Source) -> str:
    num_images, wanted = len(train.labels_N), config.augment.mix_from_images
    if num_images >= wanted:
        return ""
    return f"mixing: none, for {num_images:,} images are fewer than augment.mix_from_images={wanted:,}\n"


def _describe_bad(data: Data) -> str:
    """A line on the images that are known to be unreadable; nothing where there are none."""
    done = {"train": "replaced", "val": "not counted", "test": "not counted"}
    known = [f"{len(source.bad)} of {split} ({done[split]})" for split, source in splits_of(data).items() if source.bad]
    return f"\ncannot be read: {', '.join(known)}" if known else ""


def read_training_images(config: Config, data: Data, *, num_images: int, show_progress: bool) -> torch.Tensor:
    """Up to `num_images` images of train as evaluation shows them, float (N, C, S, S), normalised, on the CPU.

    Raises:
        ValueError: An image cannot be read, and is not to be replaced.
    """
    spec = data.spec
    return read_examples(
        data.train,
        num_images=num_images,
        size_px=given(spec.size_px),
        fit=fit_of(spec),
        interpolation=spec.interpolation,
        mean=given(spec.mean),
        std=given(spec.std),
        show_progress=show_progress,
        skip_bad=config.data.on_bad_sample == "replace",
    )
