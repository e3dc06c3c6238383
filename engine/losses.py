"""Loss functions of the form `loss_fn(module, batch) -> StepOutput`; what is learned is decided here alone.

`engine.distillation` makes others, for learning from other networks, too.

Legend of shape letters: N samples of a micro-batch, K classes.

batch -> module -> logits -> label loss of each image -> mean over the images -> loss

A loss is a mean over images, never divided by a sum of weights: so micro-batches and ranks, each weighing as much as it
has images, add up to the loss of one large batch.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipelines.batch import Batch

Balance = Literal["none", "inverse", "effective", "logit_adjustment"]


class StepOutput(NamedTuple):
    """loss: scalar, mean over the samples. sums: quantities to report, each summed over the samples, detached.

    Sums of integers stay integers, exact over any number of micro-batches and ranks; others are added up in float64.
    """

    loss: Tensor
    sums: dict[str, Tensor]


LossFn = Callable[[nn.Module, Batch], StepOutput]
LabelLoss = Callable[[Tensor, Batch], Tensor]
"""Logits (N, K) and their batch -> the loss by its labels: a scalar, mean over the images."""
_RowLoss = Callable[[Tensor, Tensor], Tensor]  # logits (N, K), labels (N,) -> losses (N,)


def supervised(*, num_classes: int, label_smoothing: float = 0.0, label_loss: LabelLoss | None = None) -> LossFn:
    """The loss by the labels, and how many are right.

    Of a mixed image both labels count, by its weight; right is the one that weighs more. The function that is given
    back raises ValueError where the network does not give a row of `num_classes` logits per image.

    Args:
        num_classes: K.
        label_smoothing: Of plain cross entropy.
        label_loss: Another loss, of those below, in its place.
    """
    label_loss = label_loss or cross_entropy(label_smoothing=label_smoothing)

    def loss_fn(module: nn.Module, batch: Batch) -> StepOutput:
        logits_NK = check_logits(module(*batch.inputs), wanted=(len(batch.labels_N), num_classes))
        return StepOutput(label_loss(logits_NK, batch), {"top1_frac": count_correct(logits_NK, batch)})

    return loss_fn


def cross_entropy(
    *, label_smoothing: float = 0.0, class_weights_K: Tensor | None = None, logit_shift_K: Tensor | None = None
) -> LabelLoss:
    """Cross entropy of the softmax.

    Args:
        label_smoothing: Part of each label that is shared among all classes.
        class_weights_K: (K,), what an image of each class counts, as `weigh_classes` has it. Of a mixed image, the loss
            by each label counts by the class of that label.
        logit_shift_K: (K,), added to the logits, as `shift_logits` has it.
    """
    losses_of = functools.partial(F.cross_entropy, label_smoothing=label_smoothing, reduction="none")

    def label_loss(logits_NK: Tensor, batch: Batch) -> Tensor:
        if logit_shift_K is not None:
            logits_NK = logits_NK + logit_shift_K
        if batch.mix is None and class_weights_K is None:
            return F.cross_entropy(logits_NK, batch.labels_N, label_smoothing=label_smoothing)
        return _mean_by_labels(losses_of, logits_NK, batch, class_weights_K=class_weights_K)

    return label_loss


def focal(
    *,
    gamma: float,
    label_smoothing: float = 0.0,
    class_weights_K: Tensor | None = None,
    logit_shift_K: Tensor | None = None,
) -> LabelLoss:
    """Cross entropy of the softmax in which each class counts by (1 - its probability) ** gamma.

    With a target t: - sum over classes of t_k (1 - p_k)^gamma log p_k. This is linear in the target: where it is one
    class, it is - (1 - p)^gamma log p; smoothed and mixed targets take the mean of that over the classes they name.

    Args:
        gamma: 0 gives cross entropy.
        label_smoothing: As in `cross_entropy`.
        class_weights_K: As in `cross_entropy`.
        logit_shift_K: As in `cross_entropy`.

    Source:
        Lin et al., "Focal Loss for Dense Object Detection", 2017, there for sigmoids.
    """

    def losses_of(logits_NK: Tensor, labels_N: Tensor) -> Tensor:
        log_probs_NK = logits_NK.log_softmax(dim=1)
        # below gamma 1 the slope at 0 is infinite, and an infinity times 0 would be no number
        missing_NK = (-log_probs_NK.expm1()).clamp(min=torch.finfo(log_probs_NK.dtype).tiny)
        losses_NK = -(missing_NK**gamma) * log_probs_NK
        losses_N = losses_NK.gather(1, labels_N[:, None]).squeeze(1)
        return losses_N.lerp(losses_NK.mean(dim=1), label_smoothing) if label_smoothing else losses_N

    def label_loss(logits_NK: Tensor, batch: Batch) -> Tensor:
        logits_NK = at_least_float32(logits_NK)
        if logit_shift_K is not None:
            logits_NK = logits_NK + logit_shift_K
        return _mean_by_labels(losses_of, logits_NK, batch, class_weights_K=class_weights_K)

    return label_loss


def bce(
    *, label_smoothing: float = 0.0, target_threshold: float | None = None, class_weights_K: Tensor | None = None
) -> LabelLoss:
    """Binary cross entropy of each class against all others, mean over images and classes.

    A target is mixed, then smoothed (1 - label_smoothing + label_smoothing / K where the label is, label_smoothing / K
    elsewhere), then held against the threshold.

    Args:
        label_smoothing: Part of each label that is shared among all classes.
        target_threshold: Targets above it become 1, others 0; None leaves them as they are.
        class_weights_K: (K,), what an image of each class counts; a mixed one counts the mean by its parts.

    Source:
        Wightman, Touvron, Jegou, "ResNet strikes back", 2021; as timm's BinaryCrossEntropy.
    """

    def label_loss(logits_NK: Tensor, batch: Batch) -> Tensor:
        logits_NK = at_least_float32(logits_NK)
        targets_NK = soft_targets(batch, num_classes=logits_NK.shape[1], dtype=logits_NK.dtype)
        targets_NK = targets_NK * (1 - label_smoothing) + label_smoothing / logits_NK.shape[1]
        if target_threshold is not None:
            targets_NK = (targets_NK > target_threshold).to(logits_NK.dtype)
        if class_weights_K is None:
            return F.binary_cross_entropy_with_logits(logits_NK, targets_NK)
        losses_N = F.binary_cross_entropy_with_logits(logits_NK, targets_NK, reduction="none").mean(dim=1)
        return (losses_N * _mean_by_parts([class_weights_K[labels_N] for labels_N in _labels_of(batch)], batch)).mean()

    return label_loss


def soft_targets(batch: Batch, *, num_classes: int, dtype: torch.dtype) -> Tensor:
    """The labels as (N, K), rows that sum to 1: of mixed images both, by their parts."""
    return _mean_by_parts([F.one_hot(labels_N, num_classes).to(dtype) for labels_N in _labels_of(batch)], batch)


def count_correct(logits_NK: Tensor, batch: Batch) -> Tensor:
    """How many images are taken for their label; of mixed ones, for the one that weighs more."""
    labels_N = batch.labels_N
    if batch.mix is not None:
        labels_N = torch.where(batch.mix.weight_N >= 0.5, labels_N, batch.mix.partner_labels_N)
    return (logits_NK.detach().argmax(dim=1) == labels_N).sum()


def weigh_classes(
    counts_K: Sequence[int], *, balance: Balance, effective_beta: float, factors: Mapping[int, float]
) -> Tensor | None:
    """What an image of each class counts: float64 (K,), of mean 1 over the training images; None where all are 1.

    Divided by their mean, weights change which images count more, and not how large the loss is: the learning rate
    keeps its meaning.

    Args:
        counts_K: Training images of each class; none may be 0 where `balance` is inverse or effective.
        balance: inverse = 1 / count; effective = (1 - beta) / (1 - beta ** count); others = 1.
        effective_beta: beta.
        factors: Label -> a factor on that.

    Source:
        Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", 2019, who divide by the mean over the
        classes.
    """
    if balance not in ("inverse", "effective") and not factors:
        return None
    counts = torch.tensor(counts_K, dtype=torch.float64)
    weights = torch.ones_like(counts)
    if balance == "inverse":
        weights = 1 / counts
    elif balance == "effective":
        weights = (1 - effective_beta) / (1 - effective_beta**counts)
    for label, factor in factors.items():
        weights[label] *= factor
    return weights * (counts.sum() / (weights * counts).sum())


def shift_logits(counts_K: Sequence[int], *, tau: float) -> Tensor:
    """The log of each class's part of the training images, times `tau`: float64 (K,). No count may be 0.

    Source:
        Menon et al., "Long-tail Learning via Logit Adjustment", 2021: added to the logits in training alone.
    """
    counts = torch.tensor(counts_K, dtype=torch.float64)
    return tau * (counts / counts.sum()).log()


def check_logits(output: object, *, wanted: tuple[int, int]) -> Tensor:
    """What a network of one's own may do in training alone, which the image shown to it before cannot tell."""
    if isinstance(output, Tensor) and output.shape == wanted:
        return output
    given = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
    raise ValueError(
        f"in training the network gives {given} for {wanted[0]} images of {wanted[1]} classes; wanted: one tensor of "
        f"logits {wanted}, as in evaluation. Look at its forward()."
    )


def at_least_float32(values: Tensor) -> Tensor:
    """bf16 and fp16 as float32, as autocast does for the losses that it knows; others as they are."""
    return values.float() if values.dtype in (torch.bfloat16, torch.float16) else values


def _mean_by_labels(losses_of: _RowLoss, logits_NK: Tensor, batch: Batch, *, class_weights_K: Tensor | None) -> Tensor:
    """The mean over images of a loss that is linear in the target: by each label, weighted by its class."""
    losses = []
    for labels_N in _labels_of(batch):
        losses_N = losses_of(logits_NK, labels_N)
        losses.append(losses_N if class_weights_K is None else losses_N * class_weights_K[labels_N])
    return _mean_by_parts(losses, batch).mean()


def _labels_of(batch: Batch) -> list[Tensor]:
    return [batch.labels_N] if batch.mix is None else [batch.labels_N, batch.mix.partner_labels_N]


def _mean_by_parts(values: Sequence[Tensor], batch: Batch) -> Tensor:
    """Of what there is for each label of `_labels_of`, (N, ...), the mean by the parts that the images have in them."""
    if batch.mix is None:
        return values[0]
    weight = batch.mix.weight_N.view(-1, *[1] * (values[0].ndim - 1))
    return weight * values[0] + (1 - weight) * values[1]
