"""Loss functions of the form `loss_fn(module, batch) -> StepOutput`; what is learned is decided here alone."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.batch import Batch


class StepOutput(NamedTuple):
    """loss: scalar, mean over the samples. sums: quantities to report, each summed over the samples, detached."""

    loss: Tensor
    sums: dict[str, Tensor]


LossFn = Callable[[nn.Module, Batch], StepOutput]


def supervised(*, label_smoothing: float) -> LossFn:
    """Cross entropy with the labels, and how many are right.

    Of a mixed image both labels count, by its weight; right is the one that weighs more.
    """

    def loss_fn(module: nn.Module, batch: Batch) -> StepOutput:
        logits_NK = module(*batch.inputs)
        labels_N = batch.labels_N
        if batch.mix is None:
            loss = F.cross_entropy(logits_NK, labels_N, label_smoothing=label_smoothing)
        else:
            partner_labels_N, weight_N = batch.mix
            losses_N, partner_losses_N = (
                F.cross_entropy(logits_NK, labels, label_smoothing=label_smoothing, reduction="none")
                for labels in (labels_N, partner_labels_N)
            )
            loss = (weight_N * losses_N + (1 - weight_N) * partner_losses_N).mean()
            labels_N = torch.where(weight_N >= 0.5, labels_N, partner_labels_N)
        correct = (logits_NK.detach().argmax(dim=1) == labels_N).sum()
        return StepOutput(loss, {"top1_frac": correct})

    return loss_fn
