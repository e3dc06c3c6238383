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


def supervised(*, num_classes: int, label_smoothing: float) -> LossFn:
    """Cross entropy with the labels, and how many are right.

    Of a mixed image both labels count, by its weight; right is the one that weighs more. The function that is given
    back raises ValueError where the network does not give a row of `num_classes` logits per image.
    """

    def loss_fn(module: nn.Module, batch: Batch) -> StepOutput:
        labels_N = batch.labels_N
        logits_NK = _check_logits(module(*batch.inputs), wanted=(len(labels_N), num_classes))
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


def _check_logits(output: object, *, wanted: tuple[int, int]) -> Tensor:
    """What a network of one's own may do in training alone, which the image shown to it before cannot tell."""
    if isinstance(output, Tensor) and output.shape == wanted:
        return output
    given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ValueError(
        f"in training the network gives {given} for {wanted[0]} images of {wanted[1]} classes; wanted: one tensor of "
        f"logits {wanted}, as in evaluation. Look at its forward()."
    )
