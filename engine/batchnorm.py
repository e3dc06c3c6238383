"""BatchNorm's running statistics measured anew: for averaged weights, which never saw a batch, and other image sizes.

some training images, as evaluation shows them -> network in evaluation mode, each BatchNorm layer normalising by its
batch -> sums over all images and ranks -> running mean and variance

Legend of shape letters: C channels.
"""

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from engine.runtime import Runtime
from pipelines.batch import Batch, Loader


def has_batch_norm(module: nn.Module) -> bool:
    """Whether the network has running statistics that could be measured."""
    return bool(_layers(module))


def measure_bn(module: nn.Module, loader: Loader, *, runtime: Runtime, frozen_norms: Collection[str] = ()) -> None:
    """Sets the running mean and variance of the BatchNorm layers to those of the loader's images; in place.

    Mean and (unbiased) variance are those of all values that a layer is given, over all images and ranks together, not
    means over batches: they are summed in float64. What a layer is given depends on the layers before it, which
    normalise each batch by its own statistics, as in training. So the batches matter a little, and these are the same
    at any number of processes (`pipelines.order.EvaluationOrder`); the statistics then agree to the rounding of
    float64, and are the same bits on all ranks. Nothing else is in training mode: no dropout.

    torch's `update_bn` takes the mean over batches of their means and unbiased variances, each batch weighing the same;
    of one batch it gives the same.

    Args:
        module: images (N, C, H, W) -> anything; not wrapped for several processes.
        loader: The images; rows with valid False do not count.
        runtime: Device, autocast and all-reduce.
        frozen_norms: Paths of layers that keep their statistics and normalise by them, as they do in training
            (`engine.freezing.find_frozen_norms`).

    Source: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization", 2018, section 3.2.
    """
    moments = {layer: _Moments(layer) for layer in _layers(module, frozen_norms=frozen_norms)}
    if not moments:
        return
    was_training = module.training
    module.eval()
    handles = [layer.register_forward_pre_hook(each.take, with_kwargs=True) for layer, each in moments.items()]
    try:
        with torch.no_grad():
            for inputs in _valid_inputs(loader, runtime=runtime):
                with runtime.autocast():
                    module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
        module.train(was_training)
    sums = runtime.sum_over_ranks(torch.cat([each.sums for each in moments.values()]))
    for each in moments.values():
        own, sums = sums[: len(each.sums)], sums[len(each.sums) :]
        each.settle(own)


class _Moments:
    """What one layer has been given so far: float64 on its device, number of values, their sums, sums of squares.

    sums: float64 (1 + 2 C,).

    Args:
        layer: Of BatchNorm, with running statistics.
    """

    def __init__(self, layer: _BatchNorm) -> None:
        self._layer = layer
        self._before = [buffer.clone() for buffer in self._statistics()]
        device = self._before[0].device
        self.sums = torch.zeros(1 + 2 * layer.num_features, dtype=torch.float64, device=device)

    def take(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Adds what the layer is about to normalise, and has it normalised by its own statistics.

        The layer stays in evaluation mode and is given them as running statistics: so it sends nothing to other ranks
        (SyncBatchNorm), and counts no batch.
        """
        values: Tensor = next(iter((*args, *kwargs.values())))
        axes = [axis for axis in range(values.dim()) if axis != 1]
        number = values.numel() // values.shape[1]
        sums_C = values.sum(axes, dtype=torch.float64)
        squares_C = torch.linalg.vector_norm(values, dim=axes, dtype=torch.float64).square()
        self.sums += torch.cat([sums_C.new_tensor([number]), sums_C, squares_C])
        self._set(sums_C / number, (squares_C / number - (sums_C / number).square()).clamp(min=0))

    def settle(self, sums: Tensor) -> None:
        """Sets the running statistics to those of sums over all ranks; to what they were, if they hold nothing."""
        number = sums[0].item()
        if not number:  # a layer of training alone
            self._set(*self._before)
            return
        sums_C, squares_C = sums[1:].chunk(2)
        centred_C = (squares_C - sums_C.square() / number).clamp(min=0)
        self._set(sums_C / number, centred_C / max(number - 1, 1))

    def _statistics(self) -> tuple[Tensor, Tensor]:
        mean_C, var_C = self._layer.running_mean, self._layer.running_var
        assert mean_C is not None, "_layers has looked"
        assert var_C is not None, "as above"
        return mean_C, var_C

    def _set(self, mean_C: Tensor, var_C: Tensor) -> None:
        for buffer, value in zip(self._statistics(), (mean_C, var_C), strict=True):
            buffer.copy_(value)


def _layers(module: nn.Module, *, frozen_norms: Collection[str] = ()) -> list[_BatchNorm]:
    """The BatchNorm layers with running statistics, each once, but for those at these paths."""
    return [
        one
        for path, one in module.named_modules()
        if isinstance(one, _BatchNorm) and one.running_mean is not None and path not in frozen_norms
    ]


def _valid_inputs(loader: Loader, *, runtime: Runtime) -> Iterator[tuple[Tensor, ...]]:
    """The inputs of each batch that has any, without rows that only fill up."""

    def valid(batch: Batch) -> tuple[Tensor, ...]:
        return batch.inputs if batch.valid_N.all() else tuple(view[batch.valid_N] for view in batch.inputs)

    for batch in loader:
        runtime.watchdog.beat("measuring BatchNorm")
        if batch.valid_N.any():
            yield valid(batch)
    loader.take_bad_samples()  # images of train: training lists them
