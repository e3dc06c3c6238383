"""Whether a batch fits into memory, found out before training: on a CPU the system ends a program that takes too much.

module, one image and two -> forward passes, with what autograd keeps counted -> bytes per image and for any number of
them -> held against what is free
"""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from engine.freezing import in_evaluation

_GIB = 2**30

Autocast = Callable[[], contextlib.AbstractContextManager[Any]]


class Kept(NamedTuple):
    """Bytes that autograd keeps for the backward pass: for each image, and once for any number of them.

    Kept once is what is computed from parameters: standardised weights, tables of positions, copies in bf16.
    """

    per_image: float
    once: float


def check_memory(
    module: nn.Module,
    image_CHW: tuple[int, int, int],
    *,
    num_images: int,
    device: torch.device,
    num_ranks: int = 1,
    autocast: Autocast = contextlib.nullcontext,
) -> None:
    """Checks that the activations of a micro-batch can be held.

    Args:
        module: The network, on `device`; its state stays as it was.
        image_CHW: Channels, height and width of its input.
        num_images: Images of one rank in one micro-batch.
        device: Where it computes.
        num_ranks: Ranks that take theirs from the same memory.
        autocast: The precision of the forward pass.

    Raises:
        MemoryError: They need more than is free; the message gives the number of images that fit.
    """
    kept = activation_bytes(module, image_CHW, device=device, autocast=autocast)
    free = free_bytes(device)
    if free is None:
        return
    free //= num_ranks
    needed = kept.per_image * num_images + kept.once
    if needed <= free:
        return
    fitting = int((0.5 * free - kept.once) // kept.per_image) if kept.per_image else 1
    share = f" for each of {num_ranks} processes" if num_ranks > 1 else ""
    raise MemoryError(
        f"{num_images:,} images at a time need at least {needed / _GIB:.1f} GiB ({kept.per_image / 2**20:.2f} MiB "
        f"each, for what the network keeps for its backward pass), and {free / _GIB:.1f} GiB are free on {device}"
        f"{share}; about {max(fitting, 1):,} at a time are safe"
    )


def activation_bytes(
    module: nn.Module,
    image_CHW: tuple[int, int, int],
    *,
    device: torch.device,
    autocast: Autocast = contextlib.nullcontext,
) -> Kept:
    """Bytes that autograd keeps, parameters not counted; what is computed besides is not known here."""
    with in_evaluation(module):  # so that no running statistic changes
        one, two = (
            _count_kept(module, (num_images, *image_CHW), device=device, autocast=autocast) for num_images in (1, 2)
        )
    return Kept(per_image=max(two - one, 0), once=max(2 * one - two, 0))


def _count_kept(
    module: nn.Module, shape_NCHW: tuple[int, int, int, int], *, device: torch.device, autocast: Autocast
) -> int:
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    dtype = next((parameter.dtype for parameter in module.parameters()), torch.float32)
    images = torch.zeros(shape_NCHW, device=device, dtype=dtype).to(memory_format=torch.channels_last)
    with torch.enable_grad(), autocast(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = module(images)  # held, so that nothing is freed and counted twice
    del output
    return sum(kept.values())


def free_bytes(device: torch.device) -> int | None:
    """Bytes of memory that can still be taken; None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [
        _read_number(Path("/proc/meminfo"), after="MemAvailable:", unit=1024),
        _free_of_group(Path("/sys/fs/cgroup")),
    ]
    known = [number for number in free if number is not None]
    return min(known) if known else None


def _free_of_group(group: Path) -> int | None:
    """What a container's limit leaves, by control groups of version 2."""
    limit = _read_number(group / "memory.max")
    used = _read_number(group / "memory.current")
    reclaimable = _read_number(group / "memory.stat", after="inactive_file ")
    return None if limit is None or used is None else limit - used + (reclaimable or 0)


def _read_number(path: Path, *, after: str = "", unit: int = 1) -> int | None:
    try:
        text = path.read_text()
    except OSError:
        return None
    for line in text.splitlines():
        words = line.removeprefix(after).split()
        if line.startswith(after) and words and words[0].isdecimal():
            return int(words[0]) * unit
    return None
