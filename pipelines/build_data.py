"""DataConfig -> the splits, as sources -> val and test set aside where there are none -> InputSpec completed -> Data.

digits, folder, manifest, packed, a set of torchvision's, a user's own: each is read by its file in pipelines/sources.
"""

import dataclasses
import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from configs.check import check_input, check_pad, data_kind
from configs.imports import load_object
from configs.nearest import nearest
from configs.schema import Config, DataConfig, InputSpec
from pipelines.parallel import num_cores
from pipelines.source import Source, refuse_bad
from pipelines.sources.digits import load_digits
from pipelines.sources.index import default_cache
from pipelines.sources.manifest import Columns, read_manifest
from pipelines.sources.own_dataset import Making, check_making, read_own
from pipelines.sources.own_items import Reading
from pipelines.sources.packed import open_packed
from pipelines.sources.scan import scan_folder
from pipelines.sources.torchvision_sets import SETS, default_root, load_torchvision
from pipelines.split import Parts, split_fold, split_source
from pipelines.statistics import measure_statistics

_TEST_FRAC = 0.2
_TEST_SEED = 0  # fixed: every run is scored on the same 360 digits, the same fifth of EuroSAT
_MOST_WORKERS = 8

_T = TypeVar("_T")


class Data(NamedTuple):
    """The splits, and what the network will see of them: `spec` has no field left open."""

    train: Source
    val: Source | None
    test: Source | None
    spec: InputSpec


def check_dataset(data: DataConfig) -> None:
    """Checks the name of the data set, and of a user's own the arguments, before anything is read.

    Raises:
        ValueError: Unknown name, or a module, class or argument that is not there; the message lists the valid ones.
    """
    if data_kind(data.dataset) == "own":
        check_making(_making(data))
    if data_kind(data.dataset) == "torchvision" and data.dataset not in SETS:
        ours = ["digits", "folder", "manifest", "packed"]
        close = difflib.get_close_matches(data.dataset, [*ours, *SETS], n=3, cutoff=0.4)
        raise ValueError(
            f"unknown data set data.dataset={data.dataset!r}; "
            + (f"nearest: {', '.join(close)}; " if close else "")
            + f"valid: {', '.join(ours)}; your own Dataset as package.module:Name; of torchvision's: {', '.join(SETS)}."
        )


def build_data(config: Config, *, show_progress: bool) -> Data:
    """The splits and the complete input specification.

    Raises:
        FileNotFoundError: A folder or a table is not there.
        OSError: A data set of torchvision's is not there and cannot be downloaded.
        ValueError: What the data holds cannot be trained on, or does not fit `config.input`, `config.run.select` or
            `config.data.class_weights`.
    """
    check_dataset(config.data)
    splits = read_splits(config, show_progress=show_progress)
    _check_weights(config.data, splits["train"])
    _check_class_weights(config.data, splits["train"].class_names)
    if config.data.num_folds:
        splits["train"], splits["val"] = _cut_folds(config.data, splits)
    elif "val" not in splits and config.data.val_frac > 0:
        parts = split_source(splits["train"], held_out_frac=config.data.val_frac, seed=config.data.split_seed)
        splits["train"], splits["val"] = parts.rest, parts.held_out
    for split, source in splits.items():
        action = config.data.on_bad_sample if split == "train" else config.data.on_bad_eval_sample
        if action == "raise":
            refuse_bad(source, source.bad)
    if "val" not in splits:
        _check_no_val_is_needed(config)
    skip_bad = config.data.on_bad_sample == "replace"
    spec = complete_input(config.input, splits=list(splits.values()), skip_bad=skip_bad, show_progress=show_progress)
    if config.augment.crop == "pad":
        check_pad(config.augment.pad_px, size_px=given(spec.size_px))
    return Data(train=splits["train"], val=splits.get("val"), test=splits.get("test"), spec=spec)


def _cut_folds(data: DataConfig, splits: Mapping[str, Source]) -> Parts:
    """Train without one of its parts, and that part.

    Raises:
        ValueError: The data has a val of its own; or a class has too few images.
    """
    if "val" in splits:
        raise ValueError(
            f"data.num_folds={data.num_folds} makes val from train, but the data has a val of its own; move its images "
            "into train, or drop data.num_folds."
        )
    return split_fold(splits["train"], num_folds=data.num_folds, fold=data.fold, seed=data.split_seed)


def _check_no_val_is_needed(config: Config) -> None:
    needs = {
        "run.select=best": config.run.select == "best",
        "train.early_stop_epochs": config.train.early_stop_epochs is not None,
        "schedule.name=plateau": config.schedule.name == "plateau",
    }
    asked = [name for name, is_asked in needs.items() if is_asked]
    if asked:
        instead = {"run.select=best": "use run.select=last"}.get(asked[0], "leave it out")
        raise ValueError(
            f"{asked[0]} needs val to go by, but there is no val: data.val_frac=0 and the data has no val/; {instead}, "
            "or use data.val_frac=0.1."
        )


def read_splits(config: Config, *, show_progress: bool) -> dict[str, Source]:
    """The splits that the data set has of its own.

    Raises:
        FileNotFoundError, OSError, ValueError: As `build_data`.
    """
    data = config.data
    verify = data.verify or config.loader.backend == "dali"
    match data_kind(data.dataset):
        case "digits":
            parts = split_source(load_digits(), held_out_frac=_TEST_FRAC, seed=_TEST_SEED)
            return {"train": parts.rest, "test": parts.held_out}
        case "folder":
            return scan_folder(
                given(data.root),
                show_progress=show_progress,
                cache=default_cache(),
                rescan=data.rescan,
                verify=verify,
                keep_bad=True,
            )
        case "manifest":
            return read_manifest(
                given(data.root),
                image_root=data.image_root,
                columns=Columns(data.path_column, data.label_column, "weight" if data.sampling == "weighted" else None),
                show_progress=show_progress,
                cache=default_cache(),
                rescan=data.rescan,
                verify=verify,
                keep_bad=_splits_with_bad(data),
            )
        case "packed":
            return open_packed(given(data.root))
        case "own":
            workers = (
                min(_MOST_WORKERS, num_cores()) if config.loader.num_workers is None else config.loader.num_workers
            )
            max_bytes = int(config.loader.resident_max_gib * 2**30)
            reading = Reading(workers, max_bytes, _splits_with_bad(data), data.max_bad_frac)
            return read_own(_making(data), reading, show_progress=show_progress)
        case _:
            return _read_torchvision(data, verify=verify, show_progress=show_progress)


def _read_torchvision(data: DataConfig, *, verify: bool, show_progress: bool) -> dict[str, Source]:
    splits = load_torchvision(
        data.dataset,
        root=default_root() if data.root is None else Path(data.root),
        show_progress=show_progress,
        cache=default_cache(),
        rescan=data.rescan,
        verify=verify,
    )
    if "test" not in splits:
        parts = split_source(splits["train"], held_out_frac=_TEST_FRAC, seed=_TEST_SEED)
        splits["train"], splits["test"] = parts.rest, parts.held_out
        if show_progress:
            count = len(parts.held_out.labels_N)
            print(
                f"{data.dataset} has no test of its own: {_TEST_FRAC:.0%} of each class, {count:,} images, are set "
                "aside as test, the same ones in every run"
            )
    return splits


def _splits_with_bad(data: DataConfig) -> list[str]:
    """The splits in which files that cannot be read are no error."""
    train = ["train"] if data.on_bad_sample == "replace" else []
    return train + (["val", "test"] if data.on_bad_eval_sample == "exclude" else [])


def _making(data: DataConfig) -> Making:
    return Making(load_object(data.dataset, option="data.dataset"), data.dataset, data.args)


def _check_weights(data: DataConfig, train: Source) -> None:
    if data.sampling == "weighted" and train.weights_N is None:
        raise ValueError(
            f"data.sampling=weighted, but {data.root} was packed from data without weights; pack a manifest that has a "
            "column weight, with --data.sampling weighted, or use --data.sampling balanced."
        )


def _check_class_weights(data: DataConfig, class_names: Sequence[str]) -> None:
    for name in data.class_weights:
        if name not in class_names:
            raise ValueError(f"data.class_weights.{name}: there is no such class; {nearest(name, class_names)}")


def complete_input(spec: InputSpec, *, splits: list[Source], skip_bad: bool, show_progress: bool) -> InputSpec:
    """`spec` with every open field filled from the images: size and channels from all splits, mean and std from train.

    Raises:
        ValueError: The images have several sizes and `spec.size_px` is open, or given values do not fit the channels.
    """
    size_px = spec.size_px or _common_size(splits)
    channels = spec.channels or (1 if all(source.is_grey for source in splits) else 3)
    spec = dataclasses.replace(spec, size_px=size_px, channels=channels)
    check_input(spec)
    if spec.mean is None or spec.std is None:
        measured = measure_statistics(splits[0], channels=channels, skip_bad=skip_bad, show_progress=show_progress)
        spec = dataclasses.replace(spec, mean=spec.mean or measured.mean, std=spec.std or measured.std)
    return spec


def split_of(data: Data, split: str) -> Source:
    """The samples of train, val or test.

    Raises:
        ValueError: There is no such split.
    """
    source = {"train": data.train, "val": data.val, "test": data.test}[split]
    if source is None:
        raise ValueError(f"the data has no {split}; there is {', '.join(splits_of(data))}.")
    return source


def check_classes(data: Data, class_names: Sequence[str]) -> None:
    """Checks that the data has the classes that a checkpoint was trained on.

    Raises:
        ValueError: It has others; they are listed.
    """
    present = data.train.class_names
    if list(present) != list(class_names):
        missing = [f"- {name}" for name in class_names if name not in present]
        unknown = [f"+ {name}" for name in present if name not in class_names]
        raise ValueError(f"the data has other classes than the checkpoint: {', '.join(missing + unknown)}.")


def fingerprint_splits(data: Data) -> dict[str, str]:
    """What each split holds, as hashes, for a checkpoint to remember."""
    return {name: source.fingerprint() for name, source in splits_of(data).items()}


def splits_of(data: Data) -> dict[str, Source]:
    """The splits there are, by name."""
    splits = {"train": data.train, "val": data.val, "test": data.test}
    return {name: source for name, source in splits.items() if source is not None}


def given(value: _T | None) -> _T:
    """A value that an earlier check has made sure of."""
    assert value is not None, "check_config and complete_input leave no such field open"
    return value


def _common_size(splits: list[Source]) -> int:
    sizes = np.unique(np.concatenate([source.sizes_N2 for source in splits]), axis=0)
    sizes = sizes[sizes[:, 0] > 0]  # not those whose header could not be read
    if len(sizes) == 1 and sizes[0, 0] == sizes[0, 1]:
        return int(sizes[0, 0])
    low, high = sizes.min(axis=0), sizes.max(axis=0)
    short = int(np.median(sizes.min(axis=1)))
    offer = max(size for size in (32, 64, 96, 128, 160, 224) if size <= max(short, 32))
    raise ValueError(
        f"the images are not squares of one size, but {low[0]} to {high[0]} pixels high and {low[1]} to {high[1]} "
        f"wide; say which square size the network sees, for example --input.size_px {offer}."
    )
