"""All that is to be shown on a GPU, in one go: `make gpu-check DATA=DIR CIFAR=DIR`.

    python -m benchmarks.gpu_check --images DIR --cifar DIR                # *.JPEG files; CIFAR-10's train/ and test/
    python -m benchmarks.gpu_check --images DIR --cifar DIR --device cpu   # tries the check itself where there is none

tests     pytest -m gpu
loaders   benchmarks.gpu_loaders: DALI by hand, ours, timm; memory of the GPU
training  benchmarks.throughput: networks fed by the loader against the same batch again and again
agreement benchmarks.gpu_agreement: pixels and predictions of the GPU path against the CPU path
sweeps    benchmarks.gpu_loaders again: what the GPU's JPEG decoder takes, and numbers of threads

Each part is a program of its own with a time limit, so that one that fails or hangs leaves the others; what is found
goes into benchmarks/results/gpu_check_<device>.json after each part, and is printed as a table of what was wanted, what
was found, and whether that is met. `make tables` brings it into docs/dali.md.
"""

import argparse
import csv
import importlib.util
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from benchmarks.loader import about
from benchmarks.photographs import list_jpegs
from benchmarks.reasons import reason_in
from benchmarks.recipes import RESULTS, ROOT
from benchmarks.verdicts_gpu import Verdict, judge, verdict_table

_GRACE_S = 20  # for a program to end after it is told to
_MOST_FILES = 1000


class Scale(NamedTuple):
    """How much is measured: options for each part's program.

    num_images: of a loader's turn. sweeps: the contenders of each. training: a program for each network.
    """

    tests: tuple[str, ...]
    num_images: int
    loaders: tuple[str, ...]
    sweeps: dict[str, tuple[str, ...]]
    training: tuple[tuple[str, ...], ...]
    agreement: tuple[str, ...]


class Check(NamedTuple):
    """images: JPEG files. cifar: CIFAR-10 as an image folder. folder: for what the parts write."""

    images: Path
    cifar: Path
    device: str
    scale: Scale
    folder: Path
    end_s: float


_LOADERS = ("hand", "hand_tail", "hand_fed", "hand_full", "dali", "dali_packed", "dali_cpu", "threads", "timm")
_DALI_LOADS = ("dali", "dali_load_65", "dali_load_90")
_SOME_THREADS = tuple(f"{base}threads_{num}" for base in ("dali_", "dali_cpu_", "") for num in (4, 8))
_OF_PHOTOGRAPHS = ("--contenders", "ours_bf16", "ours_bf16_dali", "--batch", "256", "--repeats", "3")
_OF_CIFAR = ("--contenders", "ours_bf16", "ours_bf16_resident", "--batch", "2000", "--repeats", "3")
SCALES = {  # by device
    "cuda": Scale(
        tests=("-m", "gpu"),
        num_images=10_000,
        loaders=("--batch", "256", "--repeats", "3"),
        sweeps={
            "load": ("hand", *(f"hand_load_{load}" for load in (0, 65, 80, 90, 100)), "hand_fancy", *_DALI_LOADS),
            "threads": ("dali", *_SOME_THREADS, "feeding_only"),
        },
        training=(
            ("--models", "resnet50", *_OF_PHOTOGRAPHS, "--warmup", "30", "--steps", "60"),
            ("--models", "resnet18", *_OF_PHOTOGRAPHS, "--warmup", "30", "--steps", "100"),
            ("--models", "airbench", *_OF_CIFAR, "--size", "32", "--classes", "10", "--warmup", "60", "--steps", "100"),
        ),
        agreement=("--num_images", "1000", "--epochs", "3"),
    ),
    "cpu": Scale(
        tests=("tests/pipelines/executors/test_executors_dali_devices.py", "-m", "not gpu"),
        num_images=500,
        loaders=("--batch", "64", "--repeats", "3"),
        sweeps={"threads": ("threads", "threads_1", "dali", "dali_threads_1", "feeding_only")},
        training=(
            (
                *("--models", "resnet18", "--contenders", "ours", "ours_dali", "--batch", "16"),
                *("--size", "96", "--warmup", "4", "--steps", "10", "--repeats", "3"),
            ),
            (
                *("--models", "resnet18", "--contenders", "ours", "ours_resident", "--batch", "32"),
                *("--size", "32", "--warmup", "4", "--steps", "10", "--repeats", "3"),
            ),
        ),
        agreement=("--num_images", "250", "--epochs", "3"),
    ),
}


def main() -> None:
    """Runs all parts, or some, and prints what they found; ends with 1 unless every part ran and every line is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="photographs: a folder of JPEG files")
    parser.add_argument(
        "--cifar", type=Path, required=True, help="CIFAR-10 as JPEGs in train/<class>/ and test/<class>/"
    )
    parser.add_argument("--device", choices=sorted(SCALES), default="cuda")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--minutes", type=float, default=9.0, help="for all of it; what is not through is stopped")
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/gpu_check_<device>.json")
    given = parser.parse_args()
    check_given(given)
    out = given.out or RESULTS / f"gpu_check_{given.device}.json"
    with tempfile.TemporaryDirectory() as folder:
        end_s = time.monotonic() + 60 * given.minutes
        images = link_some(given.images, Path(folder) / "photographs")
        check = Check(images, given.cifar, given.device, SCALES[given.device], Path(folder), end_s)
        found = run(check, given.parts, out=out)
    verdicts = judge(found)
    print(verdict_table(verdicts))
    failed = [part for part in given.parts if "failed" in found[part]]
    for part in failed:
        print(f"{part} failed: {found[part]['failed']}")
    sys.exit(1 if set(failed) - {"sweeps"} or is_short_of(verdicts, given.parts) else 0)


def is_short_of(verdicts: Sequence[Verdict], parts: Sequence[str]) -> bool:
    """Whether a line is not met; where all parts ran, or not measured: a contender that ended leaves no figure."""
    shown = (False, None) if set(parts) == set(PARTS) else (False,)
    return any(verdict.is_met in shown for verdict in verdicts)


def check_given(given: argparse.Namespace) -> None:
    """Ends with what is wrong, before anything is measured."""
    if given.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no GPU on this machine; use --device cpu, which tries the check itself.")
    try:
        list_jpegs(given.images)
    except ValueError as error:
        sys.exit(f"{error} Give a folder of photographs, such as some of ImageNet's.")
    for split in ("train", "test"):
        try:
            list_jpegs(given.cifar / split)
        except ValueError as error:
            sys.exit(f"{error} Give CIFAR-10 as JPEG files in train/<class>/ and test/<class>/.")


def link_some(images: Path, folder: Path) -> Path:
    """The folder, with links to the first of the JPEG files: more would take longer, and tell no more."""
    folder.mkdir()
    for number, path in enumerate(list_jpegs(images)[:_MOST_FILES]):
        (folder / f"{number:04}.JPEG").symlink_to(path.resolve())
    return folder


def run(check: Check, parts: Sequence[str], *, out: Path) -> dict[str, Any]:
    """What each part found, by its name; of one that failed, why, and what it found before. Written after each."""
    found: dict[str, Any] = {"about": describe(check.device)}
    for number, part in enumerate(parts, start=1):
        start_s = time.monotonic()
        left_s = max(0, check.end_s - start_s)
        print(f"--- {part} ({number} of {len(parts)}, {left_s:.0f} s left for all)", file=sys.stderr, flush=True)
        found[part] = PARTS[part](check)
        found[part]["seconds"] = round(time.monotonic() - start_s, 1)
        out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def describe(device: str) -> dict[str, str]:
    """When, on what and with which versions it is measured."""
    name = "no GPU"
    if device == "cuda":
        gib = torch.cuda.mem_get_info()[1] / 2**30
        name = f"{torch.cuda.get_device_name()}, {gib:.0f} GiB, CUDA {torch.version.cuda}"
    try:
        dali = importlib.import_module("nvidia.dali").__version__  # which may lie there without having been installed
    except ImportError:
        dali = "-"
    return {"device": name, "platform": platform.platform(), "dali": dali, **about()}


def run_tests(check: Check) -> dict[str, Any]:
    """How many tests passed, and which did not."""
    report = check.folder / "tests.xml"
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *check.scale.tests]
    if importlib.util.find_spec("xdist"):
        words += ["--numprocesses", "auto", "--maxprocesses", "4", "--dist", "loadfile"]
    failed = _run(words, check)
    if not report.exists():
        return {"failed": failed or "pytest wrote no report"}
    cases = list(ElementTree.parse(report).iter("testcase"))
    unlucky = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    num_skipped = sum(case.find("skipped") is not None for case in cases)
    return {
        "num_passed": len(cases) - len(unlucky) - num_skipped,
        "num_skipped": num_skipped,
        "not_passed": [f"{case.get('classname')}::{case.get('name')}" for case in unlucky],
    } | ({"failed": failed} if failed and not unlucky else {})


def run_loaders(check: Check) -> dict[str, Any]:
    """A row for each contender."""
    return _race(_LOADERS, check)


def run_sweeps(check: Check) -> dict[str, Any]:
    """For each sweep a row for each contender."""
    found = {name: _race(contenders, check) for name, contenders in check.scale.sweeps.items()}
    failed = "; ".join(f"{name}: {each['failed']}" for name, each in found.items() if "failed" in each)
    rows = {name: each.get("rows", []) for name, each in found.items()}
    return {"rows": rows} | ({"failed": failed} if failed else {})


def _race(contenders: Sequence[str], check: Check) -> dict[str, Any]:
    out = check.folder / "loaders.json"
    out.unlink(missing_ok=True)
    copies = -(-check.scale.num_images // len(list_jpegs(check.images)))
    command = ["-m", "benchmarks.gpu_loaders", "--images", str(check.images), "--device", check.device]
    command += ["--copies", str(copies), "--out", str(out), *check.scale.loaders, "--only", *contenders]
    failed = _run(command, check)
    return (json.loads(out.read_text()) if out.exists() else {}) | ({"failed": failed} if failed else {})


def run_training(check: Check) -> dict[str, Any]:
    """A row for each network and contender, of photographs and of small images."""
    rows: list[dict[str, str]] = []
    reasons = []
    for number, options in enumerate(check.scale.training):
        results = check.folder / f"throughput_{number}.csv"  # one for each: it keeps one measurement of a network
        command = ["-m", "benchmarks.throughput", "--images", str(check.images), "--results", str(results)]
        reasons.append(_run([*command, *options], check))
        if results.exists():
            with open(results, newline="") as file:
                rows += csv.DictReader(file)
    failed = "; ".join(reason for reason in reasons if reason)
    return {"rows": rows} | ({"failed": failed} if failed else {})


def run_agreement(check: Check) -> dict[str, Any]:
    """Rows of pixels, and of predictions."""
    out = check.folder / "agreement.json"
    command = ["-m", "benchmarks.gpu_agreement", "--images", str(check.images), "--cifar", str(check.cifar)]
    failed = _run([*command, "--device", check.device, "--out", str(out), *check.scale.agreement], check)
    return (json.loads(out.read_text()) if out.exists() else {}) | ({"failed": failed} if failed else {})


PARTS: dict[str, Callable[[Check], dict[str, Any]]] = {
    "tests": run_tests,
    "loaders": run_loaders,
    "training": run_training,
    "agreement": run_agreement,
    "sweeps": run_sweeps,
}


def _run(arguments: list[str], check: Check) -> str:
    """Runs a program as long as there is time; gives why it failed, or ''."""
    left_s = check.end_s - time.monotonic()
    if left_s <= 0:
        return "no time was left"
    errors = check.folder / "errors.txt"
    environ = os.environ | ({"ACCELERATE_USE_CPU": "true"} if check.device == "cpu" else {})
    with open(errors, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *arguments], cwd=ROOT, env=environ, stdout=sys.stderr, stderr=file, start_new_session=True
        )
        try:
            status = process.wait(left_s)
        except subprocess.TimeoutExpired:
            return f"stopped after {left_s:.0f} s, when the time was over"
        finally:
            _end(process)
    print(errors.read_text(), file=sys.stderr, end="")
    return reason_in(errors.read_text()) if status else ""


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Ends a program and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


if __name__ == "__main__":
    main()
