"""What makes several processes one training: gradients added in one order, BatchNorm over all batches."""

import torch
from torch import Tensor, distributed, nn


def mean_in_order_of_ranks(
    _: None,
    bucket: distributed.GradBucket,  # type: ignore[name-defined]  # it is there
) -> torch.futures.Future[Tensor]:
    """Gradients averaged over ranks, added up in the order of the ranks: the same bits wherever they lie in a bucket.

    An all-reduce among more than two adds in an order that depends on the place in the bucket, and DDP places gradients
    anew after the first step of each start: a run continued on four processes would differ in the last bit.
    """
    own = bucket.buffer()
    own /= distributed.get_world_size()
    parts = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(parts, own)
    own.copy_(sum(parts[1:], start=parts[0]))
    future: torch.futures.Future[Tensor] = torch.futures.Future()
    future.set_result(own)
    return future


def synchronise_norms(module: nn.Module) -> None:
    """Has BatchNorm take its statistics over the batches of all ranks, in place; parameters and names stay.

    By timm's conversion: torch's own turns timm's BatchNormAct2d into a layer without its activation.
    """
    from timm.layers.norm_act import convert_sync_batchnorm  # takes a second

    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.modules.batchnorm._BatchNorm) and not isinstance(child, nn.SyncBatchNorm):
                synchronised = convert_sync_batchnorm(child)  # type: ignore[no-untyped-call]
                for hooks in ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_always_called"):
                    getattr(synchronised, hooks).update(getattr(child, hooks))  # those of gradient checkpointing
                parent.add_module(name, synchronised)
