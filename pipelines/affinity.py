"""Threads on those CPU cores that are near a GPU.

GPU -> its address on the PCI bus -> Linux's list of the cores beside it -> those that this process may use
    -> threads that are started meanwhile inherit them
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch

_DEVICES = Path("/sys/bus/pci/devices")


def cores_near(device: torch.device) -> set[int]:
    """The cores that this process may use and that are near the GPU; none where that is not known, or for a CPU.

    By the bus, not by NVML: that counts GPUs without regard to CUDA_VISIBLE_DEVICES.
    """
    if device.type != "cuda" or not hasattr(os, "sched_getaffinity"):
        return set()
    properties = torch.cuda.get_device_properties(device)
    numbers = [getattr(properties, f"pci_{part}_id", None) for part in ("domain", "bus", "device")]
    if None in numbers:  # torch does not tell
        return set()
    domain, bus, slot = numbers
    try:
        text = (_DEVICES / f"{domain:04x}:{bus:02x}:{slot:02x}.0" / "local_cpulist").read_text()
    except OSError:  # as in some containers
        return set()
    return parse_cores(text) & os.sched_getaffinity(0)


def parse_cores(text: str) -> set[int]:
    """The numbers that Linux writes as `0-3,8,10-11`."""
    cores: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if first:
            cores |= set(range(int(first), int(last or first) + 1))
    return cores


@contextlib.contextmanager
def threads_start_on(cores: set[int]) -> Iterator[None]:
    """Threads that the calling thread starts meanwhile run on these cores alone; on any, where none are given."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)  # of this thread alone; those that it starts inherit it
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
