"""Gradient checkpointing: activations within blocks are computed again in the backward pass, and not kept.

network -> checkpoint_blocks -> the same network, its names and its gradients to the bit (Chen et al. 2016)

timm's networks are told to do it themselves, in the others blocks are found. What a block does but compute must not
happen twice: dropout drops the same again, since torch restores its generators, and BatchNorm, whose statistics torch
would count a second time, is given copies of them that are thrown away.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpoint_blocks(module: nn.Module) -> None:
    """Has a network keep the inputs of its blocks alone for the backward pass, in place.

    Raises:
        ValueError: It has no blocks.
    """
    if not _switch_on(module):
        blocks = find_blocks(module)
        if not blocks:
            raise ValueError(
                f"speed.gradient_checkpointing=true, but {type(module).__name__} has no blocks whose activations could "
                "be computed again: parts with parts of their own, in nn.Sequential or nn.ModuleList; set it to false."
            )
        for block in blocks:
            _recompute(block)
    for norm in module.modules():
        if isinstance(norm, _BatchNorm):
            norm.register_forward_pre_hook(_put_aside)
            norm.register_forward_hook(_put_back, always_call=True)  # the second pass ends with an exception


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """Parts with parts of their own, in nn.Sequential or nn.ModuleList; of sequences of those, their members.

    As engine.sharding has them.
    """
    blocks: list[nn.Module] = []
    for child in module.children():
        if _is_sequence(module) and _has_parts(child) and not _is_sequence_of_blocks(child):
            blocks.append(child)
        else:
            blocks += find_blocks(child)
    return blocks


def _switch_on(module: nn.Module) -> bool:
    """Has a network of timm's do it by its own means; False where it has none, or says that it cannot."""
    switch = getattr(module, "set_grad_checkpointing", None)
    if switch is None:
        return False
    try:
        switch(True)
    except AssertionError:  # so says timm
        return False
    return True


def _recompute(block: nn.Module) -> None:
    """Gives a block a class of its own, as fully_shard does: names stay, and copies of the network compute likewise."""
    kind = type(block)

    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:  # dynamo traces a function, and no bound method or partial
            return kind.forward(self, *args, **kwargs)

        return checkpoint(run, *args, use_reentrant=False, **kwargs)

    block.__class__ = type(f"Checkpointed{kind.__name__}", (kind,), {"forward": forward})


def _put_aside(norm: nn.Module, _: Any) -> None:
    """Before the second pass, which runs within the backward pass: the statistics are replaced by copies.

    Compiled, there is no second pass of this code: what is computed again, and what not, the compiler decides.
    """
    if torch.compiler.is_compiling() or torch._C._current_graph_task_id() == -1:  # as torch.utils.checkpoint asks it
        return
    norm.__dict__["_put_aside"] = dict(norm._buffers)
    norm._buffers.update({name: value.clone() for name, value in norm._buffers.items() if isinstance(value, Tensor)})


def _put_back(norm: nn.Module, *_: Any) -> None:
    if not torch.compiler.is_compiling():
        norm._buffers.update(norm.__dict__.pop("_put_aside", {}))


def _is_sequence(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList)


def _has_parts(module: nn.Module) -> bool:
    return any(True for _ in module.children())


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    return _is_sequence(module) and any(_has_parts(child) for child in module.children())
