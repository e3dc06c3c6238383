"""Averages of the weights over time: a run with one is judged by it, and trains on from the weights themselves.

weights after some steps   -> Ema -> exponential moving average
weights after some epochs  -> Swa -> equal mean; BatchNorm measured anew (engine/batchnorm.py)

Both are arithmetic on the device, in the parameters' dtype; nothing here waits for it.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn, get_swa_multi_avg_fn

from pipelines.batch import Loader

# (averages, present values, how many were averaged before): moves the averages in place
AveragingFn = Callable[[list[Tensor], list[Tensor], int], Any]


class Ema(NamedTuple):
    """Exponential moving average of the weights.

    decay: part that it keeps at each update. warmup: whether it keeps less at first, at update t at most (1 + t) /
    (10 + t), so that it forgets the weights that training began with. every_steps: optimizer steps between updates.

    Source: the warm-up is TensorFlow's `ExponentialMovingAverage(num_updates=...)`.
    """

    decay: float
    warmup: bool
    every_steps: int

    def at(self, num_averaged: int) -> AveragingFn:
        """How weights come into an average that holds `num_averaged` already, at least one."""
        limit = (1 + num_averaged) / (10 + num_averaged) if self.warmup else 1.0
        return get_ema_multi_avg_fn(min(self.decay, limit))  # type: ignore[no-untyped-call, no-any-return]


class Swa(NamedTuple):
    """Stochastic weight averaging: the equal mean of the weights at the end of each epoch.

    start_epoch: the first such epoch; epochs count from 0. bn_loader: training images by which BatchNorm's statistics
    are measured; None = the network has none.

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018; there the
    weights before the first of these epochs are in the mean, too.
    """

    start_epoch: int
    bn_loader: Loader | None

    def at(self, num_averaged: int) -> AveragingFn:
        """How weights come into an average that holds `num_averaged` already, at least one."""
        return get_swa_multi_avg_fn()  # type: ignore[no-untyped-call, no-any-return]


class Average:
    """Averaged weights, in a second network on the same device.

    The first weights are taken as they are. Floating-point buffers are averaged as parameters are: BatchNorm's running
    statistics then go with weights that lag behind as they do. Other buffers, which count, are copied.

    module: that network, in evaluation mode. num_averaged: how many weights are in it.

    Args:
        module: The network that is trained, not wrapped for several processes.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).requires_grad_(False).eval()
        self.num_averaged = 0

    @torch.no_grad()
    def add(self, module: nn.Module, kind: Ema | Swa) -> None:
        """Takes the present weights of the network that is trained into the average."""
        pairs = list(zip(_tensors(self.module), _tensors(module), strict=True))
        averaged = [pair for pair in pairs if self.num_averaged and pair[0].is_floating_point()]
        if averaged:
            means, values = ([pair[place] for pair in averaged] for place in range(2))
            kind.at(self.num_averaged)(means, values, self.num_averaged)
        for mean, value in pairs:
            if not (self.num_averaged and mean.is_floating_point()):
                mean.copy_(value)
        self.num_averaged += 1


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    yield from module.buffers()
