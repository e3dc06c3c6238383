"""Our loader and other people's at the same jobs, side by side in one run.

    python -m benchmarks.loader cifar --images /DIR/cifar10          # a folder with train/<class>/*.jpg
    python -m benchmarks.loader imagenet --images /DIR               # a folder of JPEG files
    python -m benchmarks.loader packed_400 --images /DIR             # stored before: JPEG, at most 400 px, quality 90
    python -m benchmarks.loader packed_original --images /DIR        # stored before: JPEG at its size, quality 90
    python -m benchmarks.loader packed_raw --images /DIR             # stored before: pixels, at most 400 px
    python -m benchmarks.loader randaugment --images /DIR            # the same files, and operations on pixels after it
    python -m benchmarks.loader color_jitter --images /DIR
    python -m benchmarks.loader randaugment_decoded --images /DIR    # nothing but the operations, at 224 px in memory
    python -m benchmarks.loader color_jitter_decoded --images /DIR
    python -m benchmarks.loader cifar_randaugment --images /DIR/cifar10
    python -m benchmarks.loader imagenet --images /DIR --only threads dali

Each contender is a process of its own, so that its memory can be told, and none but one works at a time: they take
turns, an epoch each. The first epoch (workers start, code compiles) is dropped. Where a machine is shared,
`--most-others 0.05` has each epoch run again in which other programs took more than a twentieth of the cores. Peers
come with the group `benchmarks`; one that is not installed is listed with the reason. Where images are stored before,
each contender reads its own format, made from the same files; the making is not counted.
"""

import argparse
import csv
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

import numpy as np
import psutil
import torch
from PIL import Image

from benchmarks.operations import load_photographs
from benchmarks.ours import OURS_CIFAR, OURS_DECODED, OURS_IMAGENET, OURS_OPERATIONS, OURS_PACKED_JPEG, OURS_PACKED_RAW
from benchmarks.peers import (
    PEERS_CIFAR,
    PEERS_CIFAR_OPERATIONS,
    PEERS_DECODED,
    PEERS_IMAGENET,
    PEERS_OPERATIONS,
    PEERS_PACKED_JPEG,
    PEERS_PACKED_RAW,
    RESIZES,
    RESIZES_PIXELS,
    RESIZES_STORED,
    Augment,
    CifarJob,
    DecodedJob,
    Epoch,
    ImagenetJob,
    mean_difference_from_pillow,
)
from benchmarks.peers_pixels import Resize
from benchmarks.reasons import reason_in
from benchmarks.recipes import code_commit
from benchmarks.stored_images import store_images

_RESULTS = Path(__file__).parent / "results"
_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_IMAGENET_REPEATS = 8  # how often an epoch goes over the files: 250 of them make 2,000 images
_DECODED_REPEATS = 8
_CONTENDERS: dict[str, dict[str, Callable[[Any], Epoch]]] = {  # ours first
    "cifar": {**OURS_CIFAR, **PEERS_CIFAR},
    "cifar_randaugment": {**OURS_CIFAR, **PEERS_CIFAR_OPERATIONS},
    "imagenet": {**OURS_IMAGENET, **PEERS_IMAGENET},
    "packed_400": {**OURS_PACKED_JPEG, **PEERS_PACKED_JPEG},
    "packed_original": {**OURS_PACKED_JPEG, **PEERS_PACKED_JPEG},
    "packed_raw": {**OURS_PACKED_RAW, **PEERS_PACKED_RAW},
    "randaugment": {**OURS_OPERATIONS, **PEERS_OPERATIONS},
    "color_jitter": {**OURS_OPERATIONS, **PEERS_OPERATIONS},
    "randaugment_decoded": {**OURS_DECODED, **PEERS_DECODED},
    "color_jitter_decoded": {**OURS_DECODED, **PEERS_DECODED},
}
_STORED: dict[str, tuple[Literal["jpeg", "raw"], int | None]] = {  # how, and the long side in pixels
    "packed_400": ("jpeg", 400),
    "packed_original": ("jpeg", None),
    "packed_raw": ("raw", 400),
}
_QUALITY = 90  # of JPEG: FFCV's usual one
_RESIZES: dict[str, dict[str, Resize]] = {  # jobs that tell how far pixels are from Pillow's
    "imagenet": RESIZES,
    "packed_400": RESIZES_STORED,
    "packed_original": RESIZES_STORED,
    "packed_raw": RESIZES_PIXELS,
}
_AUGMENTS: dict[str, Augment] = {
    "cifar_randaugment": "randaugment",
    "randaugment": "randaugment",
    "color_jitter": "color_jitter",
    "randaugment_decoded": "randaugment",
    "color_jitter_decoded": "color_jitter",
}
_PACKAGES = (
    "torch",
    "torchvision",
    "numpy",
    "numba",
    "simplejpeg",
    "nvidia-dali-cuda130",
    "ffcv",
    "albumentations",
    "timm",
    "spdl",
    "webdataset",
    "litdata",
    "mosaicml-streaming",
)


class _Timed(NamedTuple):
    """An epoch of a contender; others_frac: the part of all cores' time that other programs worked meanwhile."""

    num_images: int
    seconds: float
    cpu_s: float
    others_frac: float

    def __str__(self) -> str:
        return f"{self.num_images / self.seconds:,.0f} images/s; others took {self.others_frac:.1%} of the cores"


class Measured(NamedTuple):
    """One value per epoch, over all processes of a contender.

    images_per_cpu_s: per second of work of a core; it hardly changes where other programs take the cores away.
    memory_mib: proportional set size after the epoch.
    """

    images_per_s: list[float]
    images_per_cpu_s: list[float]
    memory_mib: list[float]


def main() -> None:
    """Measures, prints a table, and writes that of all contenders to benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=list(_CONTENDERS))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="contenders to measure; default: all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--most-others", type=float, default=1.0, metavar="FRAC", help="of the cores; default: 1")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        serve(
            _CONTENDERS[options.job][options.contender],
            make_job(options.job, options.images, options.folder, options.threads),
        )
        return
    names = options.only or list(_CONTENDERS[options.job])
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(options.job, names, images=options.images, folder=Path(folder), options=options)
        differences = _differences(options.job, names, images=options.images, folder=Path(folder))
    rows = report(measured, differences=differences)
    if not options.only:
        _save(options.job, rows)


def make_job(name: str, images: Path, folder: Path, num_threads: int) -> CifarJob | ImagenetJob | DecodedJob:
    """The job, on the images below a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    augment = _AUGMENTS.get(name, "none")
    if name.endswith("_decoded"):
        images_NHWC = np.tile(load_photographs(images, most=250), (_DECODED_REPEATS, 1, 1, 1))
        return DecodedJob(images_NHWC=images_NHWC, folder=folder, num_threads=num_threads, augment=augment)
    if not name.startswith("cifar"):
        return _make_imagenet_job(name, images, folder, num_threads)
    stored = folder.parent / "cifar.npz"
    if not stored.exists():
        classes = sorted(path for path in (images / "train").iterdir() if path.is_dir())
        files = [(path, label) for label, each in enumerate(classes) for path in sorted(each.iterdir())]
        pixels = np.stack([np.asarray(Image.open(path).convert("RGB")) for path, _ in files])
        np.savez(stored, images=pixels, labels=np.array([label for _, label in files]))
    with np.load(stored) as arrays:
        return CifarJob(
            images_NHWC=arrays["images"],
            labels_N=arrays["labels"],
            mean=_MEAN,
            std=_STD,
            folder=folder,
            num_threads=num_threads,
            augment=augment,
        )


def _make_imagenet_job(name: str, images: Path, folder: Path, num_threads: int) -> ImagenetJob:
    originals = sorted(str(path) for path in images.rglob("*.JPEG"))
    if name not in _STORED:
        paths = originals * _IMAGENET_REPEATS
        return ImagenetJob(paths=paths, folder=folder, num_threads=num_threads, augment=_AUGMENTS.get(name, "none"))
    stored, long_side_px = _STORED[name]
    paths = store_images(
        originals, folder=folder.parent / "stored", stored=stored, long_side_px=long_side_px, quality=_QUALITY
    )
    return ImagenetJob(
        paths=paths * _IMAGENET_REPEATS,
        originals=originals * _IMAGENET_REPEATS,
        folder=folder,
        stored=stored,
        long_side_px=long_side_px,
        quality=_QUALITY,
        num_threads=num_threads,
    )


def serve(build: Callable[[Any], Epoch], job: CifarJob | ImagenetJob | DecodedJob) -> None:
    """One contender: an epoch for each line on standard input, answered with images and seconds."""
    torch.set_num_threads(job.num_threads)
    epoch = build(job)
    print("ready", flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        num_images = sum(len(images) for images in epoch())
        print(num_images, time.perf_counter() - start, flush=True)


def measure(
    job: str, names: list[str], *, images: Path, folder: Path, options: argparse.Namespace
) -> dict[str, Measured | str]:
    """Lets the contenders take turns; gives what each did, or why it did nothing."""
    make_job(job, images, folder / "shared", options.threads)  # decoded or stored once, for all
    running: dict[str, subprocess.Popen[str]] = {}
    measured: dict[str, Measured | str] = {}
    for name in names:
        command = [sys.executable, "-m", "benchmarks.loader", job, "--images", str(images), "--contender", name]
        command += ["--folder", str(folder / name), "--threads", str(options.threads)]
        errors = folder / f"{name}.txt"
        process = _start(command, errors=errors, temporary=folder / f"{name}_temporary")
        if _answer(process) == "ready":
            running[name], measured[name] = process, Measured([], [], [])
        else:
            measured[name] = reason_in(errors.read_text())
    for repeat in range(options.repeats + 1):
        for name, process in list(running.items()):
            try:
                epoch = _undisturbed_epoch(process, most_others_frac=options.most_others if repeat > 0 else 1.0)
            except (OSError, ValueError, psutil.Error):  # it has ended
                measured[name] = reason_in((folder / f"{name}.txt").read_text())
                del running[name]
                continue
            result = measured[name]
            if repeat > 0 and isinstance(result, Measured):
                result.images_per_s.append(epoch.num_images / epoch.seconds)
                result.images_per_cpu_s.append(epoch.num_images / epoch.cpu_s)
                result.memory_mib.append(_memory_mib(process.pid))
            print(f"{repeat}/{options.repeats} {name}: {epoch}", file=sys.stderr)
    for process in running.values():
        process.kill()
    return measured


def _start(command: list[str], *, errors: Path, temporary: Path) -> "subprocess.Popen[str]":
    """Starts a contender with a temporary folder of its own: peers leave files there, and LitData deletes others'."""
    temporary.mkdir()
    with open(errors, "w") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
            env={**os.environ, "TMPDIR": str(temporary)},
        )


def report(measured: dict[str, Measured | str], *, differences: dict[str, float]) -> list[list[Any]]:
    """Prints a table in order of speed; gives its rows, of which those of contenders not measured hold the reason."""
    rows: list[list[Any]] = []
    heads = ("images/s", "lowest", "highest", "per CPU s", "MiB")
    print(f"{'':22}" + "".join(f"{head:>11}" for head in heads) + "   mean difference from Pillow, of 255")
    for name, result in sorted(measured.items(), key=lambda item: -_median(item[1])):
        if isinstance(result, str):
            print(f"{name:22} not measured: {result}")
            rows.append([name, *[""] * (len(heads) + 1), 0, result])
            continue
        speeds = result.images_per_s
        cpu = statistics.median(result.images_per_cpu_s)
        row = [round(value) for value in (_median(result), min(speeds), max(speeds), cpu, max(result.memory_mib))]
        difference = f"{differences[name]:.3f}" if name in differences else ""
        print(f"{name:22}" + "".join(f"{value:11,}" for value in row) + f"   {difference}")
        rows.append([name, *row, difference, len(speeds), ""])
    return rows


def _save(job: str, rows: list[list[Any]]) -> None:
    """Writes the table as CSV, with what it was measured on."""
    heads = ["contender", "images_per_s", "lowest", "highest", "images_per_cpu_s", "memory_mib", "difference_of_255"]
    said = about()
    _RESULTS.mkdir(exist_ok=True)
    with open(_RESULTS / f"loader_{job}.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*heads, "repeats", "reason", *said])
        writer.writerows([*row, *said.values()] for row in rows)


def _median(result: Measured | str) -> float:
    return statistics.median(result.images_per_s) if isinstance(result, Measured) else 0.0


def about() -> dict[str, str]:
    """When, of what commit, on what machine and with what versions something was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "")
    versions = [f"{name} {_version(name)}" for name in _PACKAGES]
    return {
        "date": str(date.today()),
        "commit": code_commit(),
        "cpu": f"{psutil.cpu_count()} cores of {cpu}",
        "versions": "; ".join([f"python {platform.python_version()}", *versions]),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "-"


def _differences(job: str, names: list[str], *, images: Path, folder: Path) -> dict[str, float]:
    """Of those contenders that are installed, in a job that cuts windows out of images; each told on 32 of them."""
    if job not in _RESIZES:
        return {}
    paths = sorted(set(_make_imagenet_job(job, images, folder / "shared", num_threads=1).paths))[:32]
    found = {}
    for name in names:
        if name in _RESIZES[job]:
            try:
                found[name] = mean_difference_from_pillow(_RESIZES[job][name], paths=paths)
            except ImportError:
                continue
    return found


def _answer(process: "subprocess.Popen[str]") -> str:
    """The next line that is an answer; FFCV and others print of their own accord."""
    output: IO[str] | None = process.stdout
    assert output is not None, "it was opened as a pipe"
    for line in output:
        words = line.split()
        if words == ["ready"] or (len(words) == 2 and words[0].isdigit()):
            return line.strip()
    return ""


def _undisturbed_epoch(process: "subprocess.Popen[str]", *, most_others_frac: float) -> _Timed:
    """An epoch in which other programs took at most that part of the cores; as many tries as it takes."""
    while (epoch := _epoch(process)).others_frac > most_others_frac:
        print(f"once more: {epoch}", file=sys.stderr)
        time.sleep(5)
    return epoch


def _epoch(process: "subprocess.Popen[str]") -> _Timed:
    assert process.stdin is not None, "it was opened as a pipe"
    cpu_before_s, all_before_s, start = _cpu_s(process.pid), _cpu_of_all_s(), time.perf_counter()
    process.stdin.write("epoch\n")
    process.stdin.flush()
    num_images, seconds = _answer(process).split()
    cpu_s, all_s, passed_s = (
        _cpu_s(process.pid) - cpu_before_s,
        _cpu_of_all_s() - all_before_s,
        time.perf_counter() - start,
    )
    others_frac = max(0.0, all_s - cpu_s) / (passed_s * psutil.cpu_count())
    return _Timed(int(num_images), float(seconds), cpu_s, others_frac)


def _family(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def _memory_mib(pid: int) -> float:
    return float(sum(process.memory_full_info().pss for process in _family(pid))) / 2**20


def _cpu_s(pid: int) -> float:
    """Work of a process and of its children that live; before the first epoch, when these start, it is not used."""
    times = [process.cpu_times() for process in _family(pid)]
    return float(sum(each.user + each.system for each in times))


def _cpu_of_all_s() -> float:
    """Work of the machine's cores, and what a host took of them."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq + times.steal)


if __name__ == "__main__":
    main()
