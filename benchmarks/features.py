"""A head trained on images, and on features that are there: `python -m benchmarks.features` (about 5 minutes).

    python -m benchmarks.features                                              # handwritten digits, shown at 32 px
    python -m benchmarks.features --data DIR --model timm/convnext_atto --size 64   # a folder with train/<class>/*

Both train the same last layer of the same frozen network by the same recipe, without augmentation, through
`engine.fit.fit`: `images` runs the network in every step, `features` once before the first. They take turns, seed by
seed. The network starts from weights that it has learned on half of the classes. Seconds per epoch are those of
training alone, without val and checkpoints, the first epoch of each dropped; `compute_s` is what features cost once.
The network must have no BatchNorm, which would count differently in the two (strategy.frozen_bn decides in
finetune.py). Rows go into benchmarks/results/features.csv.
"""

import argparse
import copy
import csv
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import nn

from benchmarks.loader import about
from configs.load import config_to_dict, load_config, replace_section
from configs.schema import Config
from engine.bad_samples import BadSampleLog
from engine.batchnorm import has_batch_norm
from engine.build import build_card, build_settings, resolve_config
from engine.build_phases import build_phases
from engine.evaluation import evaluate
from engine.features import compute_features
from engine.fit import fit
from engine.losses import supervised
from engine.progress import Progress
from engine.record import RunFolder
from engine.runtime import Runtime, start_runtime
from engine.state import Job
from engine.train_head import train_head
from models.build import build_model
from models.heads import copy_head, install_linear
from pipelines.batch import Loader
from pipelines.build import (
    Data,
    Place,
    build_cached_loader,
    build_data,
    build_evaluation_loader,
    build_training_loader,
    fingerprint_splits,
)

RESULTS = Path(__file__).parent / "results" / "features.csv"
Way = Literal["images", "features"]
WAYS: tuple[Way, ...] = ("images", "features")


class Task(NamedTuple):
    """What both train, and for how long.

    config: data, model and recipe. start_epochs: of learning half of the classes, first. head_epochs: of the head.
    """

    config: Config
    start_epochs: int
    head_epochs: int


class Bench(NamedTuple):
    """What all measurements share: data, place, runtime, the network that they start from, the path of its head."""

    task: Task
    data: Data
    place: Place
    runtime: Runtime
    module: nn.Module
    head: str


def main() -> None:
    """Prints a line per measurement, and the ratio of seconds and the accuracies at the end."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.features", description=__doc__)
    parser.add_argument("--data", help="image folder with train/<class>/; default: handwritten digits")
    parser.add_argument("--model", default="simple_cnn")
    parser.add_argument("--size", type=int, default=32, help="pixels that the network sees")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--start-epochs", type=int, default=3)
    parser.add_argument("--head-epochs", type=int, default=6)
    options = parser.parse_args()
    words = ["--data.dataset", "folder", "--data.root", options.data] if options.data else []
    args = '{"norm": "layer", "width": 64}' if options.model == "simple_cnn" else "{}"
    words += ["--model.name", options.model, "--model.args", args, "--input.size_px", str(options.size)]
    task = Task(make_config(words), options.start_epochs, options.head_epochs)
    bench = prepare(task)
    rows = [measure(way, bench, seed=seed) for seed in range(options.seeds) for way in WAYS]
    print(summary(rows))
    save(rows, RESULTS)
    bench.runtime.end()


def make_config(words: list[str]) -> Config:
    """The recipe: batches of 60, AdamW, a cosine."""
    fixed = ["--augment.crop", "none", "--augment.pad_px", "4", "--schedule.warmup_epochs", "0"]
    fixed += ["--run.select", "last", "--run.trackers", "[]"]
    return resolve_config(load_config([*fixed, *words], prog="benchmarks.features", description=""), os.environ)


def prepare(task: Task) -> Bench:
    """The data, and a network that has learned half of its classes.

    Raises:
        ValueError: The network has BatchNorm.
    """
    config = task.config
    runtime = start_runtime(config.train.precision, config.run)
    data = build_data(config, show_progress=False)
    num_classes = len(data.train.class_names)
    place = Place(runtime.device, runtime.dtype, 0, 1, runtime.num_cores)
    module = runtime.place(build_model(config.model, num_classes=num_classes, spec=data.spec, seed=0))
    if has_batch_norm(module):
        raise ValueError(f"{config.model.name} has BatchNorm; give a network without, such as timm/convnext_atto.")
    head = [name for name, one in module.named_modules() if isinstance(one, nn.Linear)][-1]
    bench = Bench(task, data, place, runtime, module, head)
    known = data.train.take(np.flatnonzero(data.train.labels_N < num_classes // 2))
    started = replace_section(config, "train", epochs=task.start_epochs)
    loader = build_training_loader(started, data._replace(train=known), place=place, show_progress=False)
    with tempfile.TemporaryDirectory() as path:
        fit(module, _job(bench, started, loader, folder=RunFolder(path), val=None))
    return bench


def measure(way: Way, bench: Bench, *, seed: int) -> dict[str, Any]:
    """Trains a new head; a row."""
    task, data, place = bench.task, bench.data, bench.place
    config = replace_section(task.config, "run", seed=seed)
    config = replace_section(config, "train", epochs=task.head_epochs)
    module = copy.deepcopy(bench.module)
    fresh = build_model(config.model, num_classes=len(data.train.class_names), spec=data.spec, seed=seed)
    start = copy_head(fresh, bench.head)
    install_linear(module, bench.head, start.weight, start.bias)
    with tempfile.TemporaryDirectory() as path:
        folder, compute_s = RunFolder(path), 0.0
        if way == "images":
            _train_on_images(module, bench, config, folder=folder)
        else:
            compute_s = _train_on_features(module, bench, config, folder=folder)
        seconds = [row["train/epoch_s"] for row in folder.read_metrics() if "train/epoch_s" in row][1:]
    test = build_evaluation_loader(config, data, "test" if data.test else "val", place=place, show_progress=False)
    score = _score(module, bench, loader=test)
    row = {
        "way": way,
        "seed": seed,
        "model": config.model.name,
        "images": len(data.train.labels_N),
        "epoch_s": round(statistics.median(seconds), 4),
        "compute_s": round(compute_s, 3),
        "top1_frac": round(score.top1_frac, 4),
        "device": bench.runtime.describe(),
    }
    print(", ".join(f"{name} {value}" for name, value in list(row.items())[:-1]), flush=True)
    return row


def _train_on_images(module: nn.Module, bench: Bench, config: Config, *, folder: RunFolder) -> None:
    train = build_training_loader(config, bench.data, place=bench.place, show_progress=False)
    val = build_evaluation_loader(config, bench.data, "val", place=bench.place, show_progress=False)
    job = _job(bench, config, train, folder=folder, val=val)
    phases = [phase._replace(trains=lambda name: name.startswith(f"{bench.head}.")) for phase in job.phases]
    fit(module, job._replace(phases=phases))


def _train_on_features(module: nn.Module, bench: Bench, config: Config, *, folder: RunFolder) -> float:
    """Gives the seconds that the features took."""
    start_s, loaders = time.perf_counter(), {}
    for split in ("train", "val"):
        images = build_evaluation_loader(config, bench.data, split, place=bench.place, show_progress=False)
        features = compute_features(module, images, head=bench.head, runtime=bench.runtime, beat=lambda: None)
        loaders[split] = build_cached_loader(config, bench.data, split, features, place=bench.place)
    compute_s = time.perf_counter() - start_s
    trained = train_head(
        copy_head(module, bench.head),
        config=config,
        train=loaders["train"],
        val=loaders["val"],
        loss_fn=supervised(num_classes=len(bench.data.train.class_names)),
        card=_card(bench, config),
        folder=folder,
        runtime=bench.runtime,
        progress=Progress(num_epochs=config.train.epochs, is_main=False),
        environ={},
    )
    install_linear(module, bench.head, trained.head.weight, trained.head.bias)
    return compute_s


def _card(bench: Bench, config: Config) -> dict[str, Any]:
    names, fingerprints = bench.data.train.class_names, fingerprint_splits(bench.data)
    return build_card(config, class_names=names, spec=bench.data.spec, fingerprints=fingerprints)


def _job(bench: Bench, config: Config, train: Loader, *, folder: RunFolder, val: Loader | None) -> Job:
    progress = Progress(num_epochs=config.train.epochs, is_main=False)
    return Job(
        phases=build_phases(config, train),
        loss_fn=supervised(num_classes=len(bench.data.train.class_names)),
        validate=None if val is None else partial(_score, bench=bench, loader=val),
        card=_card(bench, config),
        config=config_to_dict(config),
        bad_log=BadSampleLog(folder, runtime=bench.runtime, progress=progress),
        folder=folder,
        runtime=bench.runtime,
        settings=build_settings(config, {}),
        progress=progress,
    )


def _score(module: nn.Module, bench: Bench, *, loader: Loader, step: int = 0) -> Any:
    bad_log = BadSampleLog(None, runtime=bench.runtime, progress=Progress(num_epochs=0, is_main=False))
    num_classes = len(bench.data.train.class_names)
    return evaluate(module, loader, num_classes=num_classes, runtime=bench.runtime, bad_log=bad_log, step=step)


def summary(rows: list[dict[str, Any]]) -> str:
    """Seconds per epoch of both, how often the faster fits into the slower, and the accuracies, mean and spread."""
    seconds = {way: statistics.median(row["epoch_s"] for row in rows if row["way"] == way) for way in WAYS}
    lines = []
    for way in WAYS:
        fracs = [100 * row["top1_frac"] for row in rows if row["way"] == way]
        spread = statistics.stdev(fracs) if len(fracs) > 1 else 0.0
        accuracy = f"{statistics.mean(fracs):.2f} +- {spread:.2f} % ({len(fracs)} seeds)"
        lines.append(f"{way}: {seconds[way]:.4f} s per epoch, top-1 {accuracy}")
    return "\n".join([*lines, f"features are {seconds['images'] / seconds['features']:.1f} times as fast"])


def save(rows: list[dict[str, Any]], path: Path) -> None:
    """Writes the rows, with machine, versions and date."""
    here = about()
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *here], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | here for row in rows)


if __name__ == "__main__":
    main()
