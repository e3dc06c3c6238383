"""Loaders side by side whose batches end on a GPU, normalised in half precision: ours, DALI by hand, timm.

    python -m benchmarks.gpu_loaders --images DIR                          # JPEG files below it; all contenders
    python -m benchmarks.gpu_loaders --images DIR --only hand dali threads_4 --out loaders.json
    python -m benchmarks.gpu_loaders --images DIR --device cpu --copies 4 --batch 64

Each contender (benchmarks/gpu_contenders.py) is a process of its own, and takes turns with the others, of an epoch
each; the first turn builds and warms up, and is not counted. All processes are started at once, since imports are slow,
but none computes beside another's turn. A number of threads can be part of a name: threads_4, dali_threads_8. With
fewer threads than the others, what computes on the CPU has a shorter epoch.

gpu_memory_mib is by how much the GPU's used memory grew in a contender's own turns, all others waiting: what it holds
beside CUDA's own context, not the most that it held within a turn. python_us_per_image is the process's CPU time in
feeding_only, which does all that Python does for `dali`, and no decoding.
"""

import argparse
import faulthandler
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks.gpu_contenders import CONTENDERS, CPU_BOUND, NO_IMAGES, GpuJob, split_name
from benchmarks.peers_job import Epoch, ImagenetJob
from benchmarks.photographs import link_as_image_folder, list_jpegs
from benchmarks.reasons import reason_in
from benchmarks.turns import Racer, answer_and_wait
from pipelines.parallel import num_cores

Device = Literal["cuda", "cpu"]

_LIMIT_S = 120.0  # of a turn: a contender that hangs would keep all others waiting
_LEAST_BATCHES = 4  # of an epoch with fewer threads
_FEEDING_THREADS = (1, 2, 4, 8, 16)
_HUNG = "Timeout ("  # as faulthandler begins
_MIB = 2**20


class _Settings(NamedTuple):
    """What all contenders are told.

    images: a folder with JPEG files below it. folder: for what they share and write. copies: how often an epoch goes
    over the files. limit_s: the longest that a turn may take.
    """

    images: Path
    folder: Path
    device: Device
    batch_size: int
    num_threads: int
    copies: int
    limit_s: float


@dataclass
class _Entry:
    """A contender in a race: its process, its answers, and why it has left, if it has."""

    name: str
    racer: Racer
    errors: Path
    turns: list[dict[str, Any]] = field(default_factory=list)
    reason: str = ""


def main() -> None:
    """Measures, and prints a line for each contender."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, required=True, help="a folder with JPEG files below it")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=256, help="images")
    parser.add_argument("--threads", type=int, default=num_cores(), help="default: all cores")
    parser.add_argument("--copies", type=int, default=40, help="how often an epoch goes over the files; default: 40")
    parser.add_argument("--repeats", type=int, default=3, help="turns that count; default: 3")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=f"default: all of {', '.join(CONTENDERS)}")
    parser.add_argument("--out", type=Path, help="a JSON file, written again after each round")
    parser.add_argument("--limit", type=float, default=_LIMIT_S, help="seconds of a turn; default: %(default)g")
    parser.add_argument("--contender", help=argparse.SUPPRESS)  # one, in this process
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        settings = _Settings(
            options.images,
            options.folder,
            options.device,
            options.batch,
            options.threads,
            options.copies,
            options.limit,
        )
        _serve(options.contender, settings)
        return
    measure(
        options.images,
        device=options.device,
        names=options.only or default_names(options.threads),
        batch_size=options.batch,
        num_threads=options.threads,
        copies=options.copies,
        repeats=options.repeats,
        out=options.out,
        limit_s=options.limit,
    )


def default_names(num_threads: int) -> list[str]:
    """All contenders, and with fewer threads those that tell what threads are worth."""
    fewer = {"threads": (1, 4, 8), "dali_threads": (4, 8), "dali_cpu_threads": (4, 8)}
    fewer["feeding_only_threads"] = _FEEDING_THREADS
    return [*CONTENDERS, *(f"{base}_{num}" for base, nums in fewer.items() for num in nums if num < num_threads)]


def measure(
    images: Path,
    *,
    device: Device,
    names: Sequence[str],
    batch_size: int,
    num_threads: int,
    copies: int,
    repeats: int,
    out: Path | None,
    limit_s: float = _LIMIT_S,
) -> list[dict[str, Any]]:
    """Lets the contenders take turns; a row for each, with figures or the reason why there are none.

    Args:
        images: A folder with JPEG files below it.
        device: Where batches end.
        names: Contenders, some perhaps with a number of threads.
        batch_size: Images.
        num_threads: Threads, or processes, of those contenders whose names do not say it.
        copies: How often an epoch goes over the files.
        repeats: Turns of each that count, 1 or more.
        out: A JSON file that gets the rows, written again after each round; None = nowhere.
        limit_s: The longest that a turn may take, in seconds.

    Raises:
        ValueError: There is no such contender, or there are too few images.
    """
    for name in names:
        split_name(name)
    with tempfile.TemporaryDirectory() as folder:
        settings = _Settings(images, Path(folder), device, batch_size, num_threads, copies, limit_s)
        link_as_image_folder(_find_images(images), _tree(settings))
        entries = [_start(name, settings) for name in names]
        try:
            _race(entries, settings, repeats=repeats, out=out)
        finally:
            with ThreadPoolExecutor(len(entries)) as pool:  # at once: each takes a second to end
                list(pool.map(_leave, entries))
    rows = _rows(entries, settings)
    for row in rows:
        print(_line(row), flush=True)
    return rows


def measure_feeding(
    images: Path, *, batch_size: int, copies: int, repeats: int, num_threads: Sequence[int] = _FEEDING_THREADS
) -> list[dict[str, Any]]:
    """How many images a second Python could feed DALI with at most: `feeding_only` with each number of threads."""
    return measure(
        images,
        device="cpu",
        names=[f"feeding_only_threads_{num}" for num in num_threads],
        batch_size=batch_size,
        num_threads=max(num_threads),
        copies=copies,
        repeats=repeats,
        out=None,
    )


def _find_images(images: Path) -> list[str]:
    paths = list_jpegs(images)
    if len(paths) < 2:
        raise ValueError(f"{images} has only one JPEG file below it, and a data set needs two classes; add another.")
    return [str(path) for path in paths]


def _tree(settings: _Settings) -> Path:
    return settings.folder / "tree"


# --- the race


def _start(name: str, settings: _Settings) -> _Entry:
    """Starts a contender; it is not waited for."""
    errors = settings.folder / f"{name}.txt"
    errors.touch()
    command = [sys.executable, "-m", "benchmarks.gpu_loaders", "--contender", name]
    command += ["--images", str(settings.images), "--folder", str(settings.folder), "--device", settings.device]
    command += ["--batch", str(settings.batch_size), "--threads", str(settings.num_threads)]
    command += ["--copies", str(settings.copies), "--limit", str(settings.limit_s)]
    return _Entry(name, Racer(command, name=name), errors)


def _race(entries: list[_Entry], settings: _Settings, *, repeats: int, out: Path | None) -> None:
    for entry in entries:
        _attempt(entry, entry.racer.__enter__)
    for repeat in range(repeats + 1):
        first = repeat % len(entries)  # nobody always comes first
        for entry in entries[first:] + entries[:first]:
            if not entry.reason:
                _take_turn(entry, f"{repeat}/{repeats}")
        if out is not None:
            _save(_rows(entries, settings), out)


def _take_turn(entry: _Entry, number: str) -> None:
    answer = _attempt(entry, entry.racer.take_turn)
    if answer is not None:
        entry.turns.append(answer)
        print(f"{number} {entry.name}: {_speed(answer):,.0f} images/s", file=sys.stderr, flush=True)


def _attempt(entry: _Entry, act: Callable[[], Any]) -> Any:
    """What `act` gives; of a contender that has ended, the reason is kept, and it takes part no more."""
    try:
        return act()
    except (RuntimeError, ValueError) as error:  # it has ended, or answered no JSON
        entry.racer.__exit__(type(error))  # waits, so that its memory is free before the next turn
        errors = entry.errors.read_text(errors="replace")
        entry.reason = _reason(errors) if isinstance(error, RuntimeError) else str(error)
        print(f"{entry.name} has ended: {error}\n{errors}", file=sys.stderr, flush=True)
        return None


def _reason(errors: str) -> str:
    if any(line.startswith(_HUNG) for line in errors.splitlines()):
        return "a turn, or what comes before the first one, took longer than --limit"
    return reason_in(errors)


def _leave(entry: _Entry) -> None:
    if not entry.reason:
        entry.racer.__exit__(None)


def _speed(turn: dict[str, Any]) -> float:
    return float(turn["num_images"] / turn["seconds"])


def _rows(entries: list[_Entry], settings: _Settings) -> list[dict[str, Any]]:
    python_us = {entry.name: _python_us(entry) for entry in entries if split_name(entry.name)[0] in NO_IMAGES}
    python_us["dali"] = python_us.get("feeding_only")
    return [_row(entry, settings) | {"python_us_per_image": python_us.get(entry.name)} for entry in entries]


def _python_us(entry: _Entry) -> float | None:
    values = [1e6 * turn["cpu_s"] / turn["num_images"] for turn in entry.turns[1:]]
    return round(statistics.median(values), 2) if values and not entry.reason else None


def _row(entry: _Entry, settings: _Settings) -> dict[str, Any]:
    turns = [] if entry.reason else entry.turns
    speeds = [_speed(turn) for turn in turns[1:]]
    growths = [turn["gpu_memory_mib"] for turn in turns if turn["gpu_memory_mib"] is not None]
    warm_up = turns[0] if turns else {}
    return {
        "contender": entry.name,
        "images_per_s": round(statistics.median(speeds), 1) if speeds else None,
        "lowest": round(min(speeds), 1) if speeds else None,
        "highest": round(max(speeds), 1) if speeds else None,
        "repeats": len(speeds),
        "gpu_memory_mib": round(sum(growths), 1) if growths else None,
        "batch_size": settings.batch_size,
        "num_threads": split_name(entry.name)[1] or settings.num_threads,
        "value_mean": warm_up.get("value_mean"),
        "value_std": warm_up.get("value_std"),
        "reason": entry.reason,
    }


def _line(row: dict[str, Any]) -> str:
    if row["images_per_s"] is None:
        return f"{row['contender']:24} not measured: {row['reason']}"
    speeds = "".join(f"{row[key]:11,.0f}" for key in ("images_per_s", "lowest", "highest"))
    memory = "" if row["gpu_memory_mib"] is None else f", GPU {row['gpu_memory_mib']:,.0f} MiB"
    python = "" if row["python_us_per_image"] is None else f", Python {row['python_us_per_image']:.1f} us per image"
    return f"{row['contender']:24}{speeds} images/s, {row['num_threads']} threads{memory}{python}"


def _save(rows: list[dict[str, Any]], out: Path) -> None:
    """Whole or not at all."""
    unfinished = out.with_name(f"{out.name}.tmp")
    unfinished.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    unfinished.replace(out)


# --- a contender


def _serve(name: str, settings: _Settings) -> None:
    """Warms up in its first turn, and gives an epoch for each of the others."""
    with open(settings.folder / f"{name}.txt", "w") as errors:
        os.dup2(errors.fileno(), sys.stderr.fileno())  # of libraries and of a crash, too
    _limit(settings.limit_s)
    job = build_job(name, settings)
    torch.set_num_threads(job.images.num_threads)
    if job.on_gpu:
        torch.zeros(1, device=job.device)  # CUDA's context, which every program has, is there before memory is told
    base, _ = split_name(name)
    epoch = CONTENDERS[base](job)
    answer: dict[str, Any] = {"warm": True}
    is_first = True
    while _wait(answer):
        _limit(settings.limit_s)
        answer = take_turn(epoch, job, check=is_first and base not in NO_IMAGES)
        is_first = False
    del epoch
    gc.collect()  # DALI's pipelines end while all that they use is still there


def _wait(answer: dict[str, Any]) -> bool:
    faulthandler.cancel_dump_traceback_later()
    return answer_and_wait(answer)


def _limit(seconds: float) -> None:
    """Ends this process, and says where it hung, unless it is done in time."""
    faulthandler.dump_traceback_later(seconds, exit=True)


def build_job(name: str, settings: _Settings) -> GpuJob:
    """What a contender has to do; the tree must be there.

    Raises:
        ValueError: There are too few images for a batch.
    """
    base, own_threads = split_name(name)
    num_threads = own_threads or settings.num_threads
    paths = _find_images(settings.images)
    num_batches = settings.copies * len(paths) // settings.batch_size
    if num_batches == 0:
        raise ValueError(
            f"{settings.copies} x {len(paths)} images do not fill a batch of {settings.batch_size}; use more copies."
        )
    if base in CPU_BOUND and num_threads < settings.num_threads:
        least = min(num_batches, _LEAST_BATCHES)
        num_batches = max(least, num_batches * num_threads // settings.num_threads)
    folder = settings.folder / name
    folder.mkdir()
    images = ImagenetJob(paths=paths, folder=folder, batch_size=settings.batch_size, num_threads=num_threads)
    device = torch.device(settings.device, 0) if settings.device == "cuda" else torch.device("cpu")
    return GpuJob(images=images, tree=_tree(settings), device=device, num_batches=num_batches)


def take_turn(epoch: Epoch, job: GpuJob, *, check: bool) -> dict[str, Any]:
    """An epoch: its images, seconds, this process's CPU time, and how much more of the GPU's memory is used after it.

    Args:
        epoch: A contender's.
        job: What it was made for.
        check: Whether its first batch is looked at, and mean and standard deviation of the values are told.

    Raises:
        ValueError: A batch that was looked at is not what the job asks for.
    """
    used_before_mib = _used_mib(job)
    cpu_before_s, start_s = time.process_time(), time.perf_counter()
    num_images, found = 0, {}
    for batch in epoch():
        if check and num_images == 0:
            found = check_batch(batch, job)
        num_images += len(batch)
    if job.on_gpu:
        torch.cuda.synchronize(job.device)
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - cpu_before_s
    used_mib = _used_mib(job)
    growth_mib = None if used_mib is None or used_before_mib is None else used_mib - used_before_mib
    return {"num_images": num_images, "seconds": seconds, "cpu_s": cpu_s, "gpu_memory_mib": growth_mib, **found}


def _used_mib(job: GpuJob) -> float | None:
    if not job.on_gpu:
        return None
    free, total = torch.cuda.mem_get_info(job.device)
    return (total - free) / _MIB


def check_batch(images_NCHW: torch.Tensor, job: GpuJob) -> dict[str, float]:
    """Mean and standard deviation of a batch's values.

    Raises:
        ValueError: It is not float16 (N, 3, S, S) on the device, or not finite.
    """
    size_px = job.images.size_px
    wanted = (torch.float16, (job.images.batch_size, 3, size_px, size_px), job.device)
    given = (images_NCHW.dtype, tuple(images_NCHW.shape), images_NCHW.device)
    if given != wanted:
        raise ValueError(f"a batch is {given}; wanted: {wanted}.")
    values = images_NCHW.float()
    if not torch.isfinite(values).all():
        raise ValueError("a batch has values that are not finite.")
    return {"value_mean": round(values.mean().item(), 4), "value_std": round(values.std().item(), 4)}


if __name__ == "__main__":
    main()
