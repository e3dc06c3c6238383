"""Configuration -> what is minimised: a loss by the labels, beside teachers where there are any."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from torch import nn

from configs.nearest import nearest
from configs.schema import Config, InputSpec, LossConfig
from engine.build import largest_input
from engine.distillation import AttentionTransfer, distilled
from engine.losses import LabelLoss, LossFn, bce, cross_entropy, focal, shift_logits, supervised, weigh_classes
from engine.runtime import Runtime
from engine.teachers import BuildModel, BuildPretrained, check_teachers, load_teachers


class Labelled(Protocol):
    """The training images, as far as a loss goes by them. class_names: one per label. labels_N: int64 (N,)."""

    @property
    def class_names(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def labels_N(self) -> npt.NDArray[np.int64]: ...  # noqa: D102


class Loss(NamedTuple):
    """loss_fn: what `engine.fit` takes. teachers: name -> hash of its weights, for checkpoints to remember."""

    loss_fn: LossFn
    teachers: dict[str, str]


def build_loss(
    config: Config,
    student: nn.Module,
    train: Labelled,
    *,
    spec: InputSpec,
    builders: tuple[BuildModel, BuildPretrained],
    runtime: Runtime,
) -> Loss:
    """What is minimised: by the labels alone or, where distill names teachers, by these, too.

    Args:
        config: loss and distill are read.
        student: The network that is trained, placed, before it is wrapped for several processes or compiled.
        train: The training images.
        spec: What the network sees, complete.
        builders: What makes the networks of run folders, and pretrained ones.
        runtime: Where it is computed.

    Raises:
        OSError: A teacher is not there.
        ValueError: A class that is not there has a weight; classes are to be balanced, and one has no images; a teacher
            does not fit the data; or a layer whose feature maps are to match is not there, or gives none.
    """
    label_loss = build_label_loss(config.loss, train, runtime=runtime)
    distill, num_classes = config.distill, len(train.class_names)
    if not distill.teachers:
        return Loss(supervised(num_classes=num_classes, label_loss=label_loss), {})
    teachers = load_teachers(
        distill.teachers, class_names=train.class_names, spec=spec, builders=builders, runtime=runtime
    )
    layers = distill.features
    attention = AttentionTransfer(student, teachers[0].module, layers=layers) if layers else None
    check_teachers(
        teachers,
        student=student,
        attention=attention,
        image_CHW=largest_input(config, spec),
        num_classes=num_classes,
        runtime=runtime,
    )
    loss_fn = distilled(
        label_loss,
        teachers,
        num_classes=num_classes,
        temperature=distill.temperature,
        weight=distill.weight,
        attention=attention,
        attention_weight=distill.features_weight,
    )
    return Loss(loss_fn, {teacher.name: teacher.digest for teacher in teachers})


def build_label_loss(loss: LossConfig, train: Labelled, *, runtime: Runtime) -> LabelLoss:
    """The loss by the labels.

    Raises:
        ValueError: As `build_loss`.
    """
    class_names = list(train.class_names)
    for name in loss.class_weights:
        if name not in class_names:
            raise ValueError(f"loss.class_weights.{name}: there is no such class; {nearest(name, class_names)}")
    counts_K = np.bincount(train.labels_N, minlength=len(class_names)).tolist()
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
    weights_K = None if weights_K is None else weights_K.to(runtime.device, runtime.dtype)
    shift_K = shift_logits(counts_K, tau=loss.adjustment_tau) if loss.balance == "logit_adjustment" else None
    shift_K = None if shift_K is None else shift_K.to(runtime.device, runtime.dtype)
    smoothing = loss.label_smoothing
    match loss.name:
        case "cross_entropy":
            return cross_entropy(label_smoothing=smoothing, class_weights_K=weights_K, logit_shift_K=shift_K)
        case "bce":
            return bce(label_smoothing=smoothing, target_threshold=loss.target_threshold, class_weights_K=weights_K)
        case "focal":
            return focal(
                gamma=loss.focal_gamma,
                label_smoothing=smoothing,
                class_weights_K=weights_K,
                logit_shift_K=shift_K,
            )
