"""How threads that read packed shards scale, and what it costs when the data is larger than memory.

    python -m benchmarks.scaling threads --images /DIR    # 1, 2, 4, 8 threads; what of it is under Python's lock (GIL)
    python -m benchmarks.scaling cores --images /DIR      # 1 to 64 threads, as if there were as many cores
    python -m benchmarks.scaling memory --images /DIR     # memory for half of the data, with and without reading ahead

Images below /DIR (*.JPEG) are packed with a long side of 400 px. The share of the time in which some thread holds the
lock is told by gilknocker, which asks for it a thousand times a second; an image's microseconds under the lock are
what limits any number of cores: no more images per second than one second holds of them. `cores` finds that limit
another way: decoding and resizing, which leave the lock free, are replaced by pauses as long as they took, which need
no core, so that many threads meet at the lock as they would on many cores. (It errs on the low side: waking up after
a pause costs work, too.) `memory` needs to be root, for a control group limits the memory of a process and of the
pages that it caches; the data is the images many times over.
"""

import argparse
import contextlib
import csv
import ctypes
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loader import about, make_job
from benchmarks.ours import copy_packed, epochs_of_packed, pack_images
from benchmarks.peers_job import ImagenetJob
from pipelines import chunks
from pipelines.scratch import Scratch
from pipelines.sources import packed

RESULTS = Path(__file__).parent / "results"
_THREADS = (1, 2, 4, 8)
_REPEATS = 5
_CORES = (1, 2, 4, 8, 16, 32, 64)
_PR_SET_TIMERSLACK = 29  # of Linux' prctl.h: pauses end when they should, not 50 us later
_JOBS = {"jpeg": "packed_400", "raw": "packed_raw"}
_COPIES, _LIMIT_FRAC = 320, 0.5  # of the images in the data that does not fit; of it in memory
_GROUPS = Path("/sys/fs/cgroup/memory")  # version 1; of version 2 it is the folder above
_LEAST_MIB = 600  # what the program needs for itself


def main() -> None:
    """Measures, prints, and writes loader_threads.csv, loader_cores.csv or loader_memory.csv in benchmarks/results/."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(_MEASURES))
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)  # packed folder, whether it reads ahead
    options = parser.parse_args()
    if options.cell:
        print(_seconds_per_epoch(Path(options.cell[0]), expect=options.cell[1] == "True"))
        return
    with tempfile.TemporaryDirectory() as folder:
        rows = _MEASURES[options.what](options.images, Path(folder))
    _save(rows, RESULTS / f"loader_{options.what}.csv")


def measure_threads(images: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for each way of storing and number of threads; they take turns, an epoch each."""
    from gilknocker import KnockKnock

    knocker = KnockKnock(1000)
    knocker.start()
    cells = {}
    for stored, name in _JOBS.items():
        job = make_job(name, images, folder / stored, num_threads=1)
        assert isinstance(job, ImagenetJob)
        source = pack_images(job)
        for num_threads in _THREADS:
            cells[stored, num_threads] = epochs_of_packed(source, job, num_threads=num_threads)
    measured: dict[tuple[str, int], list[tuple[float, float, float]]] = {cell: [] for cell in cells}
    for repeat in range(_REPEATS + 1):
        for cell, epoch in cells.items():
            knocker.reset_contention_metric()
            start, cpu_start = time.perf_counter(), time.process_time()
            num_images = sum(len(batch) for batch in epoch())
            seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
            if repeat > 0:
                measured[cell].append((num_images / seconds, cpu_s / num_images, knocker.contention_metric))
    knocker.stop()
    return [_row(stored, num_threads, found) for (stored, num_threads), found in measured.items()]


def _row(stored: str, num_threads: int, found: list[tuple[float, float, float]]) -> dict[str, Any]:
    images_per_s, cpu_s, locked_frac = (statistics.median(values) for values in zip(*found, strict=True))
    row = {
        "stored": stored,
        "num_threads": num_threads,
        "images_per_s": round(images_per_s),
        "cpu_us_per_image": round(1e6 * cpu_s),
        "locked_frac": round(locked_frac, 4),
        "locked_us_per_image": round(1e6 * locked_frac / images_per_s, 1),
    }
    print(row)
    return row


def measure_cores(images: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for each number of threads: images/s where decoding and resizing are pauses; and what the lock allows."""
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)  # of this thread and of those that it starts
    job = make_job("packed_400", images, folder, num_threads=1)
    assert isinstance(job, ImagenetJob)
    source = pack_images(job)
    took_s: dict[str, list[float]] = {"decode_part": [], "_resize": []}
    decode, resize = packed.decode_part, chunks._resize
    packed.decode_part = partial(_timed, decode, took_s["decode_part"])
    chunks._resize = partial(_timed, resize, took_s["_resize"])
    epoch = epochs_of_packed(source, job, num_threads=1)
    for _ in range(3):
        start = time.perf_counter()
        num_images = sum(len(batch) for batch in epoch())
        alone_s = (time.perf_counter() - start) / num_images
    decode_s, resize_s = (statistics.median(values[-num_images:]) for values in took_s.values())
    packed.decode_part = partial(_decode_as_a_pause, decode_s)
    chunks._resize = lambda *image, **options: time.sleep(resize_s)
    rows = []
    for num_threads in _CORES:
        epoch = epochs_of_packed(source, job, num_threads=num_threads)
        speeds = []
        for _ in range(_REPEATS + 1):
            start = time.perf_counter()
            speeds.append(sum(len(batch) for batch in epoch()) / (time.perf_counter() - start))
        row = {
            "num_threads": num_threads,
            "images_per_s": round(statistics.median(speeds[1:])),
            "ideal_images_per_s": round(num_threads / alone_s),
            "pauses_us": round(1e6 * (decode_s + resize_s)),
        }
        print(row)
        rows.append(row)
    return rows


def _timed(function: Callable[..., Any], took_s: list[float], *values: Any, **named: Any) -> Any:
    start = time.perf_counter()
    given = function(*values, **named)
    took_s.append(time.perf_counter() - start)
    return given


def _decode_as_a_pause(
    seconds: float, encoded: Any, *, height: int, width: int, channels: int, scratch: Scratch, scale: int
) -> Any:
    time.sleep(seconds)
    num_values = height * width * channels
    return scratch.pixels(num_values)[:num_values].reshape(height, width, channels)


def measure_memory(images: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for memory that suffices, and for memory that does not, with and without reading ahead."""
    job = make_job("packed_400", images, folder / "job", num_threads=2)
    assert isinstance(job, ImagenetJob)
    many = job.folder / "many"
    copy_packed(pack_images(job), many / "packed", copies=_COPIES, num_workers=2)
    data_mib = sum(path.stat().st_size for path in (many / "packed").glob("*.tar")) / 2**20
    limit_mib = _LEAST_MIB + _LIMIT_FRAC * data_mib
    rows = []
    for limited, expect in ((False, True), (True, True), (True, False)):
        with _limited(limit_mib) if limited else contextlib.nullcontext() as group:
            seconds = _in_group(["memory", "--images", str(images), "--cell", str(many), str(expect)], group)
        num_images = _COPIES * len(set(job.paths))
        row = {
            "memory": f"{limit_mib:,.0f} MiB" if limited else "not limited",
            "reads_ahead": expect,
            "data_mib": round(data_mib),
            "images_per_s": round(num_images / statistics.median(seconds)),
        }
        print(row)
        rows.append(row)
    return rows


def _seconds_per_epoch(folder: Path, *, expect: bool) -> str:
    """Seconds of three epochs over a packed data set, all shuffled; one before, which checks all bytes, is dropped."""
    job = ImagenetJob(paths=[], folder=folder, num_threads=2)
    epoch = epochs_of_packed(pack_images(job), job, num_threads=2, expect=expect)
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        for _ in epoch():
            pass
        seconds.append(time.perf_counter() - start)
    return " ".join(f"{each:.3f}" for each in seconds[1:])


@contextlib.contextmanager
def _limited(limit_mib: float) -> Iterator[Path]:
    group = (_GROUPS if _GROUPS.exists() else _GROUPS.parent) / f"exactvision_{os.getpid()}"
    group.mkdir()
    try:
        name = "memory.limit_in_bytes" if _GROUPS.exists() else "memory.max"
        (group / name).write_text(str(round(limit_mib * 2**20)))
        yield group
    finally:
        group.rmdir()


def _in_group(arguments: list[str], group: Path | None) -> list[float]:
    """What this program prints when it is called with these arguments, in a control group."""
    subprocess.run(["sync"], check=True)
    Path("/proc/sys/vm/drop_caches").write_text("3")  # pages that were cached by others are not counted here

    def join() -> None:
        if group is not None:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    command = [sys.executable, "-m", "benchmarks.scaling", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=join)
    return [float(word) for word in done.stdout.split()]


def _save(rows: list[dict[str, Any]], path: Path) -> None:
    said = about()
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, [*rows[0], *said])
        writer.writeheader()
        writer.writerows({**row, **said} for row in rows)


_MEASURES = {"threads": measure_threads, "cores": measure_cores, "memory": measure_memory}

if __name__ == "__main__":
    torch.set_num_threads(1)
    np.seterr(all="raise")
    main()
