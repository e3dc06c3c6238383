"""What the launcher has said and started: options of its own, processes, cores, memory.

environment -> launcher_settings, check_launch; machine -> cores_per_rank, keep_freed_memory
"""

import ctypes
import os
import platform
from collections.abc import Mapping
from typing import NamedTuple

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_UNSUPPORTED = {
    "ACCELERATE_USE_DEEPSPEED": "false",
    "ACCELERATE_USE_FSDP": "false",
    "ACCELERATE_USE_MEGATRON_LM": "false",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "false",
    "ACCELERATE_DYNAMO_BACKEND": "no",
}
_INSTEAD = {
    "ACCELERATE_USE_FSDP": "leave it out, and add --speed.shard true, which shares out parameters likewise",
    "ACCELERATE_DYNAMO_BACKEND": "leave it out, and add --speed.compile default",
}
_PRECISIONS = ("no", "bf16", "fp16")  # accelerate's names of mixed precision


class LauncherSettings(NamedTuple):
    """What `accelerate launch` was told by options of its own; None where it was not."""

    accumulation: int | None
    precision: str | None


def launcher_settings(environ: Mapping[str, str]) -> LauncherSettings:
    """What `accelerate launch` was told about accumulation and precision.

    Raises:
        ValueError: It was told something that this program does not do.
    """
    steps = environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    mixed = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    for name, value in _UNSUPPORTED.items():
        if environ.get(name, value).lower() not in (value, "0", ""):
            instead = _INSTEAD.get(name, "leave it out")
            raise ValueError(
                f"accelerate launch was told {name}={environ[name]}, which train.py does not do; {instead}."
            )
    if mixed not in _PRECISIONS:
        raise ValueError(f"accelerate launch was told mixed precision {mixed}; use no, bf16 or fp16.")
    if not steps.isdecimal() or int(steps) < 1:
        raise ValueError(f"accelerate launch was told to accumulate {steps} steps; give a whole number from 1 on.")
    accumulation = int(steps)
    return LauncherSettings(
        accumulation=accumulation if accumulation > 1 else None, precision=mixed if mixed != "no" else None
    )


def check_launch(environ: Mapping[str, str], *, world_size: int | None) -> None:
    """Checks that the processes that were asked for are the processes that there are.

    `accelerate launch --cpu --num_processes 2` starts the script alone, with world size 1 and no word (accelerate
    1.15): it sets MASTER_ADDR, but neither RANK nor WORLD_SIZE.

    Args:
        environ: The environment of this process.
        world_size: What run.world_size asks for, or None.

    Raises:
        ValueError: They are not; the message says what to type.
    """
    present = int(environ.get("WORLD_SIZE", "1"))
    by_accelerate = "ACCELERATE_MIXED_PRECISION" in environ
    by_slurm = int(environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    alone = "WORLD_SIZE" not in environ and ((by_accelerate and "MASTER_ADDR" in environ) or by_slurm)
    if not alone and world_size in (None, present):
        return
    asked = world_size or environ.get("SLURM_STEP_NUM_TASKS", "N")
    found = "this process was started alone" if alone else f"run.world_size={world_size}, but there are {present}"
    raise ValueError(
        f"several processes were asked for, but {found}: each would train by itself. Type\n"
        f"  ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes {asked} train.py ...   (on CPU)\n"
        f"  accelerate launch --multi_gpu --num_processes {asked} train.py ...   (on GPUs)\n"
        f"  torchrun --nproc-per-node {asked} -- train.py ...   (either)"
    )


def cores_per_rank(local_world_size: int) -> int:
    """CPU cores that this process may use (affinity, Slurm, taskset), shared among the processes on this machine."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // local_world_size)


def keep_freed_memory() -> None:
    """Tells glibc to keep large blocks that are freed instead of returning them to the system each time.

    A training step on the CPU frees and takes the same hundreds of MiB again, and the system clears every page anew:
    1,611 -> 2,479 images/s for simple_cnn at 32 px, batch 256, median of 5, for 5 % more memory (2 cores
    of an AMD EPYC, torch 2.14.1, 2026-11-20; `python -m benchmarks.cpu_memory`).
    Elsewhere than on glibc this does nothing.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
