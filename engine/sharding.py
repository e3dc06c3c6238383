"""Parameters, gradients and optimizer state shared out among the processes, and put together again (FSDP2).

module -> shard_module -> each process keeps a part of every parameter (a DTensor), and has a block whole while it runs
state of a sharded module or optimizer -> gather_tensors -> what a run without sharding would save
what such a run has saved -> like, optimizer_state_like -> the part of this process

By torch's own `fully_shard` on CPUs and GPUs alike: Accelerate's plugin gives plain DDP on a CPU, without a word
(accelerate 1.15). As DDP does, it begins each step with rank 0's buffers everywhere.
"""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer


def shard_module(module: nn.Module) -> None:
    """Shares out the parameters of a module, in place; one that is shared out already stays so.

    Blocks, as `find_blocks` has them, are put together one at a time, what is left all at once. Every rank must hold
    the same weights.
    """
    from torch.distributed.fsdp import FSDPModule, fully_shard

    if isinstance(module, FSDPModule):
        return
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()  # filters in channels_last are refused (torch 2.14)
    for block in find_blocks(module):
        fully_shard(block)
    fully_shard(module)
    plain = [name for name, parameter in module.named_parameters() if not is_sharded(parameter)]
    assert not plain, f"not shared out: {plain}"


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """The parts of a network that a sequence of it is made of: residual blocks, stages of convolutions, layers.

    Parts with parts and parameters of their own, in nn.Sequential or nn.ModuleList; of nested ones the outer, of a
    sequence of sequences with parts those of the inner ones.
    """
    blocks: list[nn.Module] = []
    for child in module.children():
        if _is_sequence(module) and _has_parts(child) and not _is_sequence_of_blocks(child):
            blocks += [child] if any(True for _ in child.parameters()) else []
        else:
            blocks += find_blocks(child)
    return blocks


def is_sharded(value: Any) -> bool:
    """Whether a tensor is shared out."""
    if "torch.distributed.tensor" not in sys.modules:  # it takes a second to import, and without it there are none
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def local_part(value: Tensor) -> Tensor:
    """The part of a tensor that this process has: of one that is not shared out, all of it."""
    return value.to_local() if is_sharded(value) else value  # type: ignore[attr-defined]


def gather_tensors(value: Any, *, keep: bool) -> Any:
    """A copy of nested dicts, lists and tuples with shared out tensors whole, on the CPU; all ranks must call it.

    Args:
        value: The same structure on every rank.
        keep: Whether this rank wants them; elsewhere None takes the place of each, and memory stays free.
    """
    if isinstance(value, dict):
        return {name: gather_tensors(each, keep=keep) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)([gather_tensors(each, keep=keep) for each in value])
    if not is_sharded(value):
        return value
    whole = value.full_tensor()
    return whole.detach().cpu() if keep else None


def like(whole: Tensor, wanted: Tensor) -> Tensor:
    """`whole` shared out as `wanted` is; where that is not, `whole` itself."""
    if not is_sharded(wanted):
        return whole
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = wanted.device_mesh, wanted.placements  # type: ignore[attr-defined]
    # every rank has read the same file: each takes its part of its own copy
    return distribute_tensor(whole.to(wanted.device), mesh, placements, src_data_rank=None)


def optimizer_state_like(saved: dict[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """A saved state of an optimizer, with what has the shape of a parameter shared out as that parameter is."""
    parameters = [one for group in optimizer.param_groups for one in group["params"]]
    state = {
        index: {
            name: like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in values.items()
        }
        for index, values in saved["state"].items()
    }
    return saved | {"state": state}


class BufferSharing:
    """Gives rank 0's buffers to all ranks before the first forward pass of each step, as DDP does.

    Args:
        module: Whose buffers.
        optimizer: Whose steps.
    """

    def __init__(self, module: nn.Module, optimizer: Optimizer) -> None:
        self._module, self._is_due = module, True
        self._handles = [
            optimizer.register_step_post_hook(self._note_step),
            module.register_forward_pre_hook(self._share, prepend=True),
        ]

    def end(self) -> None:
        """From here on it does nothing."""
        for handle in self._handles:
            handle.remove()

    def _note_step(self, *_: Any) -> None:
        self._is_due = True

    @torch.no_grad()
    def _share(self, *_: Any) -> None:
        if self._is_due and self._module.training:
            self._is_due = False
            buffers: dict[torch.dtype, list[Tensor]] = {}
            for buffer in self._module.buffers():
                buffers.setdefault(buffer.dtype, []).append(buffer)
            for group in buffers.values():  # all of a kind at once: a ResNet has more than a hundred
                flat = torch.cat([buffer.flatten() for buffer in group])
                distributed.broadcast(flat, 0)
                for buffer, values in zip(group, torch.split(flat, [one.numel() for one in group]), strict=True):
                    buffer.copy_(values.view_as(buffer))


@contextlib.contextmanager
def without_reduction(module: nn.Module) -> Iterator[None]:
    """Within, gradients are added up on each rank, and not shared out."""
    module.set_requires_gradient_sync(False)  # type: ignore[operator]  # fully_shard gave it that
    try:
        yield
    finally:
        module.set_requires_gradient_sync(True)  # type: ignore[operator]


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _has_parts(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    return _is_sequence(module) and any(_has_parts(child) for child in module.children())
