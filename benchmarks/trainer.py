"""The trainer against a bare torch loop with the same network and data: `python -m benchmarks.trainer` (17 minutes).

train.py's loop (loader, metrics every 10 steps, a checkpoint per epoch; no val) and two bare loops take turns, each in
a process of its own, for 30 s after a warm-up. The bare loops index a float32 tensor that was normalised beforehand,
step and forget; `bare` leaves the C library's allocator as it is, `bare_kept` has `engine.launch.keep_freed_memory`
too (`--peers bare` leaves that one out: 12 minutes). Every repeat gives the ratios; the result is the median ratio and
its 96 % interval (the second smallest and the second largest of nine). Nine repeats take the place of the rows in
benchmarks/results/trainer.csv.
"""

import argparse
import csv
import functools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.recipes import code_commit
from configs.load import config_to_dict, load_config, replace_section
from configs.schema import Config, InputSpec
from engine.bad_samples import BadSampleLog
from engine.build import build_settings, resolve_config
from engine.build_phases import build_phases
from engine.fit import fit
from engine.launch import keep_freed_memory
from engine.losses import supervised
from engine.progress import Progress
from engine.record import RunFolder, describe_environment
from engine.runtime import start_runtime
from engine.state import Job
from models.build import build_model
from pipelines.batch import Batch, Loader
from pipelines.build import Data, Place, build_training_loader
from pipelines.source import ArraySource

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "trainer.csv"
CONTENDERS = ("ours", "bare", "bare_kept")
_NUM_IMAGES, _NUM_CLASSES, _BATCH_SIZE = 45_000, 10, 256
_NUM_WARMUP = 30
_SPEC = InputSpec(size_px=32, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))


def main() -> None:
    """Prints a line per repeat, and the medians with their intervals."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer", description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--peers", nargs="+", choices=CONTENDERS[1:], default=CONTENDERS[1:], help="what to compare with"
    )
    parser.add_argument("--one", choices=CONTENDERS, help="measure one contender in this process")
    options = parser.parse_args()
    if options.one:
        print("images_per_s", measure(options.one, seconds=options.seconds))
        return
    contenders = ["ours", *options.peers]
    rows = []
    for repeat in range(options.repeats):
        first = repeat % len(contenders)  # nobody always comes first
        speeds = {one: _measure_alone(one, seconds=options.seconds) for one in contenders[first:] + contenders[:first]}
        rows.append({"repeat": repeat, **{one: round(speeds[one], 1) for one in contenders}})
        print(", ".join(f"{one} {speeds[one]:,.0f}" for one in contenders), "images/s", flush=True)
    for peer in options.peers:
        ratios = sorted(row["ours"] / row[peer] for row in rows)
        low, high = ratios[min(1, len(ratios) - 1)], ratios[max(-2, -len(ratios))]
        print(f"ours / {peer}: median {statistics.median(ratios):.3f} ({low:.3f} to {high:.3f}, {len(rows)} pairs)")
    if options.repeats == 9:
        _save(rows, seconds=options.seconds)


def measure(contender: str, *, seconds: float) -> float:
    """Images per second of one contender in this process, warm-up dropped."""
    rng = np.random.default_rng(0)
    images_NHWC = rng.integers(0, 256, (_NUM_IMAGES, 32, 32, 3), dtype=np.uint8)
    labels_N = rng.integers(0, _NUM_CLASSES, _NUM_IMAGES)
    return (
        measure_ours(images_NHWC, labels_N, seconds=seconds)
        if contender == "ours"
        else measure_bare(images_NHWC, labels_N, seconds=seconds, keep=contender == "bare_kept")
    )


def measure_bare(images_NHWC: Any, labels_N: Any, *, seconds: float, keep: bool) -> float:
    """The loop as one writes it by hand."""
    if keep:
        keep_freed_memory()
    torch.set_num_threads(_num_cores())
    module = build_model(_config().model, num_classes=_NUM_CLASSES, spec=_SPEC, seed=0)
    module = module.to(memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001)
    pixels = torch.from_numpy(images_NHWC).permute(0, 3, 1, 2).float()  # channels_last in memory
    pixels = pixels.div_(255).sub_(0.5).div_(0.25)
    labels = torch.from_numpy(labels_N)
    watch = _Watch(seconds)
    while True:
        order = torch.randperm(_NUM_IMAGES)
        for step in range(_NUM_IMAGES // _BATCH_SIZE):
            if watch.is_over():
                return watch.images_per_s
            ids = order[step * _BATCH_SIZE : (step + 1) * _BATCH_SIZE]
            loss = F.cross_entropy(module(pixels[ids]), labels[ids])
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()


def measure_ours(images_NHWC: Any, labels_N: Any, *, seconds: float) -> float:
    """`engine.fit.fit` as train.py calls it, stopped by its loader."""
    config = resolve_config(replace_section(_config(), "run", select="last", trackers=("tensorboard",)), {})
    runtime = start_runtime("fp32", config.run)
    names = tuple(str(label) for label in range(_NUM_CLASSES))
    source = ArraySource(class_names=names, labels_N=labels_N, images_NHWC=images_NHWC)
    data = Data(train=source, val=None, test=None, spec=_SPEC)
    place = Place(runtime.device, runtime.dtype, 0, 1, runtime.num_cores)
    watch = _Watch(seconds)
    loader = _Stopping(build_training_loader(config, data, place=place, show_progress=False), watch)
    module = runtime.place(build_model(config.model, num_classes=_NUM_CLASSES, spec=_SPEC, seed=0))
    with tempfile.TemporaryDirectory() as path:
        folder, progress = RunFolder(path), Progress(num_epochs=1000, is_main=False)
        job = Job(
            phases=build_phases(config, loader),
            loss_fn=supervised(num_classes=_NUM_CLASSES),
            validate=None,
            card={"data": {}, "class_names": list(names), "input": config_to_dict(_SPEC), "model": {}},
            config=config_to_dict(config),
            bad_log=BadSampleLog(folder, runtime=runtime, progress=progress),
            folder=folder,
            runtime=runtime,
            settings=build_settings(config, {}),
            progress=progress,
        )
        try:
            fit(module, job)
        except _OverError:
            runtime.end()
            return watch.images_per_s
    raise RuntimeError("train.epochs is too small for so many seconds")


class _OverError(Exception):
    """The time is over."""


class _Watch:
    """Counts batches after the warm-up, until the time is over."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._num_batches = -_NUM_WARMUP
        self._start = 0.0
        self.images_per_s = 0.0

    def is_over(self) -> bool:
        """To be asked before each batch."""
        now = time.perf_counter()
        if self._num_batches == 0:
            self._start = now
        elif self._num_batches > 0 and now - self._start >= self._seconds:
            self.images_per_s = self._num_batches * _BATCH_SIZE / (now - self._start)
            return True
        self._num_batches += 1
        return False


class _Stopping:
    """A loader that ends the training when the time is over."""

    def __init__(self, loader: Loader, watch: _Watch) -> None:
        self._loader = loader
        self._watch = watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            if self._watch.is_over():
                raise _OverError
            yield batch


@functools.cache
def _config() -> Config:
    recipe = str(ROOT / "configs" / "cifar10" / "simple_cnn.yaml")
    given = ["--config", recipe, "--data.root", "unread", "--train.epochs", "1000", "--input.size_px", "32"]
    return load_config(given, prog="benchmarks.trainer", description="")


def _num_cores() -> int:
    return len(os.sched_getaffinity(0))


def _measure_alone(contender: str, *, seconds: float) -> float:
    command = [sys.executable, "-m", "benchmarks.trainer", "--one", contender, "--seconds", str(seconds)]
    output = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout
    return float(output.split("images_per_s")[-1])


def _save(rows: list[dict[str, Any]], *, seconds: float) -> None:
    environment = describe_environment({})
    about = {
        "seconds": seconds,
        "machine": f"{_num_cores()} cores, {environment['platform']}",
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": code_commit(),
    }
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *about], lineterminator="\n")
        writer.writeheader()
        writer.writerows(row | about for row in rows)


if __name__ == "__main__":
    main()
