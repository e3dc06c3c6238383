"""A start with many files: our cached index beside torchvision's ImageFolder, `python -m benchmarks.index`.

NUM hard links to a few small JPEGs in 1000 classes -> first scan -> then in fresh processes, taking turns: the cached
start, and ImageFolder on the same tree. No disk is measured: what folders hold is in the kernel's memory for both, and
what the first scan reads too, being links to a few files.
"""

import argparse
import csv
import datetime
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

_NUM_CLASSES = 1000
_NUM_REPEATS = 5
_LINKS_PER_FILE = 50_000  # ext4 allows 65,000
_SETTLING_S = 2.1  # a folder that changed later than this before the scan would be listed at the next start too
_RESULTS = Path(__file__).parent / "results" / "index.csv"


class Measured(NamedTuple):
    """Of one process: seconds for the start, and MB of resident memory above that after the imports, at last and most.

    Pages of a mapped file count as soon as they are touched, though processes share them.
    """

    seconds: float
    rss_mb: float
    peak_mb: float


def main() -> None:
    """Makes the tree, scans it, times both starts, prints a table and writes the CSV."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=1_280_000, help="number of files")
    parser.add_argument("--folder", type=Path, help="where to make the tree, which then stays (default: /tmp, removed)")
    parser.add_argument("--start", choices=["index", "imagefolder"], help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.start:
        print(*(measure_index if arguments.start == "index" else measure_imagefolder)(arguments.folder))
    elif arguments.folder:
        compare(arguments.folder, num_files=arguments.num)
    else:
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            compare(Path(folder), num_files=arguments.num)


def compare(folder: Path, *, num_files: int) -> None:
    """Times everything on one tree."""
    make_tree(folder, num_files=num_files)
    shutil.rmtree(folder / "cache", ignore_errors=True)
    results = {"first scan, index written": [_start("index", folder)]}
    (folder / "images" / "train" / "c000").touch()  # as if a file had come: all folders are listed, no header is read
    time.sleep(_SETTLING_S)
    results["a folder changed"] = [_start("index", folder)]
    results |= {"nothing changed": [], "torchvision ImageFolder": []}
    for _ in range(_NUM_REPEATS):
        results["nothing changed"].append(_start("index", folder))
        results["torchvision ImageFolder"].append(_start("imagefolder", folder))
    _print_table(results, num_files=num_files)
    _write_csv(results, num_files=num_files)


def make_tree(folder: Path, *, num_files: int) -> None:
    """FOLDER/images/train/<class>/<image>.jpg, unless it is there already."""
    done = folder / f"made-{num_files}"
    if done.exists():
        return
    shutil.rmtree(folder / "images", ignore_errors=True)
    rng = np.random.default_rng(0)
    originals = [folder / f"original{number}.jpg" for number in range(num_files // _LINKS_PER_FILE + 1)]
    folder.mkdir(parents=True, exist_ok=True)
    for original in originals:
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(original)
    for number in range(num_files):
        label = number * _NUM_CLASSES // num_files
        path = folder / "images" / "train" / f"c{label:03}" / f"c{label:03}_{number:08}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        _link(originals[number % len(originals)], path)
    done.touch()
    time.sleep(_SETTLING_S)


def _link(original: Path, path: Path) -> None:
    try:
        os.link(original, path)
    except OSError:
        shutil.copy(original, path)


def measure_index(folder: Path) -> Measured:
    """Our start, in this process."""
    from pipelines.sources.scan import scan_folder

    before_mb, start_s = _memory_mb("VmRSS"), time.perf_counter()
    splits = scan_folder(str(folder / "images"), show_progress=False, cache=folder / "cache")
    assert splits["train"].fingerprint()
    return _measured(start_s, before_mb)


def measure_imagefolder(folder: Path) -> Measured:
    """torchvision's, in this process; it reads no file."""
    from torchvision.datasets import ImageFolder

    before_mb, start_s = _memory_mb("VmRSS"), time.perf_counter()
    images = ImageFolder(str(folder / "images" / "train"))
    assert len(images) > 0
    return _measured(start_s, before_mb)


def _measured(start_s: float, before_mb: float) -> Measured:
    seconds = time.perf_counter() - start_s
    return Measured(seconds, _memory_mb("VmRSS") - before_mb, _memory_mb("VmHWM") - before_mb)


def _memory_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{field}:"))


def _start(which: str, folder: Path) -> Measured:
    command = [sys.executable, "-m", "benchmarks.index", "--start", which, "--folder", str(folder)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Measured(*(float(value) for value in output.split()))


def _print_table(results: dict[str, list[Measured]], *, num_files: int) -> None:
    print(f"{num_files:,} files, {_NUM_CLASSES} classes; {_cpu()}, {os.cpu_count()} cores; median (min to max)")
    print(f"{'':27} {'runs':>4} {'seconds':>25} {'MB afterwards':>22} {'MB at most':>22}")
    for name, measured in results.items():
        columns = zip(*measured, strict=True)
        cells = [
            f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
            for values, digits in zip(columns, (3, 0, 0), strict=True)
        ]
        print(f"{name:27} {len(measured):4} {cells[0]:>25} {cells[1]:>22} {cells[2]:>22}")


def _write_csv(results: dict[str, list[Measured]], *, num_files: int) -> None:
    describe = ["git", "-C", str(_RESULTS.parents[2]), "describe", "--always", "--dirty"]
    where = {
        "date": datetime.date.today().isoformat(),
        "commit": subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "torchvision": version("torchvision"),
        "cpu": _cpu(),
        "num_files": num_files,
    }
    rows = [
        where | {"start": name, "repeat": repeat} | {key: round(value, 4) for key, value in one._asdict().items()}
        for name, measured in results.items()
        for repeat, one in enumerate(measured)
    ]
    _RESULTS.parent.mkdir(exist_ok=True)
    with open(_RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
