"""Loss functions of the form `loss_fn(module, batch) -> StepOutput`; what is learned is decided here alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.batch import Batch


class StepOutput(NamedTuple):
    """loss: scalar, mean over the samples. sums: quantities to report, each summed over the samples, detached."""

    loss: Tensor
    sums: dict[str, Tensor]


LossFn = Callable[[nn.Module, Batch], StepOutput]


def supervised(*, label_smoothing: float) -> LossFn:
    """Cross entropy with the labels, and how many are right."""

    def loss_fn(module: nn.Module, batch: Batch) -> StepOutput:
        logits_NK = module(*batch.inputs)
        loss = F.cross_entropy(logits_NK, batch.labels_N, label_smoothing=label_smoothing)
        correct = (logits_NK.detach().argmax(dim=1) == batch.labels_N).sum()
        return StepOutput(loss, {"top1_frac": correct})

    return loss_fn
