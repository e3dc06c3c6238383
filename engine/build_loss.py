"""Configuration -> what is minimised: a loss by the labels, beside teachers where there are any."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from configs.nearest import nearest
from configs.schema import Config, LossConfig
from engine.losses import LabelLoss, LossFn, bce, cross_entropy, focal, shift_logits, supervised, weigh_classes


def build_loss(
    config: Config,
    *,
    class_names: Sequence[str],
    labels_N: npt.NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
) -> LossFn:
    """The loss function.

    Args:
        config: loss is read.
        class_names: Of the data.
        labels_N: int64 (N,), of the training images, for the sizes of the classes.
        device: Where it is computed.
        dtype: Of the logits.

    Raises:
        ValueError: A class that is not there has a weight; or classes are to be balanced, and one has no images.
    """
    label_loss = build_label_loss(config.loss, class_names=class_names, labels_N=labels_N, device=device, dtype=dtype)
    return supervised(num_classes=len(class_names), label_loss=label_loss)


def build_label_loss(
    loss: LossConfig,
    *,
    class_names: Sequence[str],
    labels_N: npt.NDArray[np.int64],
    device: torch.device,
    dtype: torch.dtype,
) -> LabelLoss:
    """The loss by the labels; arguments and errors as of `build_loss`."""
    for name in loss.class_weights:
        if name not in class_names:
            raise ValueError(f"loss.class_weights.{name}: there is no such class; {nearest(name, class_names)}")
    counts_K = np.bincount(labels_N, minlength=len(class_names)).tolist()
    if loss.balance != "none" and 0 in counts_K:
        raise ValueError(
            f"loss.balance={loss.balance} goes by the number of training images of each class, but "
            f"{class_names[counts_K.index(0)]} has none; add some, remove the class, or use --loss.balance none."
        )
    weights_K = weigh_classes(
        counts_K,
        balance=loss.balance,
        effective_beta=loss.effective_beta,
        factors={class_names.index(name): factor for name, factor in loss.class_weights.items()},
    )
    weights_K = None if weights_K is None else weights_K.to(device, dtype)
    shift_K = shift_logits(counts_K, tau=loss.adjustment_tau) if loss.balance == "logit_adjustment" else None
    shift_K = None if shift_K is None else shift_K.to(device, dtype)
    smoothing = loss.label_smoothing
    match loss.name:
        case "cross_entropy":
            return cross_entropy(label_smoothing=smoothing, class_weights_K=weights_K, logit_shift_K=shift_K)
        case "bce":
            return bce(
                label_smoothing=smoothing, target_threshold=loss.target_threshold, class_weights_K=weights_K
            )
        case "focal":
            return focal(
                gamma=loss.focal_gamma,
                label_smoothing=smoothing,
                class_weights_K=weights_K,
                logit_shift_K=shift_K,
            )
