"""How threads that read packed shards scale, and what it costs when the data is larger than memory.

    python -m benchmarks.scaling threads --images /DIR    # 1, 2, 4, 8 threads; what of it is under Python's lock (GIL)
    python -m benchmarks.scaling memory --images /DIR     # memory for half of the data, with and without reading ahead

Images below /DIR (*.JPEG) are packed with a long side of 400 px. The share of the time in which some thread holds the
lock is told by gilknocker, which asks for it a thousand times a second; an image's microseconds under the lock are what
limits any number of cores: no more images per second than one second holds of them. `memory` needs to be root, for a
control group limits the memory of a process and of the pages that it caches; the data is the images many times over.
"""

import argparse
import contextlib
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.loader import about, make_job
from benchmarks.ours import epochs_of_packed, pack_images
from benchmarks.peers_job import ImagenetJob

RESULTS = Path(__file__).parent / "results"
_THREADS = (1, 2, 4, 8)
_REPEATS = 5
_JOBS = {"jpeg": "packed_400", "raw": "packed_raw"}
_COPIES, _LIMIT_FRAC = 80, 0.5  # of the images in the data that does not fit; of it in memory
_GROUPS = Path("/sys/fs/cgroup/memory")  # version 1; of version 2 it is the folder above
_LEAST_MIB = 900  # what the program needs for itself


def main() -> None:
    """Measures, prints, and writes benchmarks/results/loader_threads.csv or loader_memory.csv."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["threads", "memory"])
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--cell", nargs=2, help=argparse.SUPPRESS)  # packed folder, whether it reads ahead
    options = parser.parse_args()
    if options.cell:
        print(_seconds_per_epoch(Path(options.cell[0]), expect=options.cell[1] == "True"))
        return
    with tempfile.TemporaryDirectory() as folder:
        measure = measure_threads if options.what == "threads" else measure_memory
        rows = measure(options.images, Path(folder))
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


def measure_memory(images: Path, folder: Path) -> list[dict[str, Any]]:
    """A row for memory that suffices, and for memory that does not, with and without reading ahead."""
    job = make_job("packed_400", images, folder / "job", num_threads=2)
    assert isinstance(job, ImagenetJob)
    pack_images(job, copies=_COPIES)
    data_mib = sum(path.stat().st_size for path in (job.folder / "packed").glob("*.tar")) / 2**20
    limit_mib = _LEAST_MIB + _LIMIT_FRAC * data_mib
    rows = []
    for limited, expect in ((False, True), (True, True), (True, False)):
        with _limited(limit_mib) if limited else contextlib.nullcontext() as group:
            seconds = _in_group(["memory", "--images", str(images), "--cell", str(job.folder), str(expect)], group)
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    np.seterr(all="raise")
    main()
