"""Learning from other networks, too: a loss function beside those of `engine.losses`.

Legend of shape letters: N samples of a micro-batch, K classes, C channels, H height, W width.

view -> student                       -> logits, feature maps -> label loss
  |                                          |         |
  +---> renormalised, resized -> teachers -> logits, feature maps -> distillation loss, attention loss

Teachers see what the student sees, crops, flips and mixed images and all, and give the same whatever the micro-batch or
the rank: they are in evaluation mode.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.nearest import nearest
from configs.schema import InputSpec
from engine.losses import LabelLoss, LossFn, StepOutput, at_least_float32, check_logits, count_correct
from pipelines.batch import Batch


class Teacher(NamedTuple):
    """A network that is learned from, in evaluation mode and without gradients.

    name: as distill.teachers has it. module: the student's views, as `adapt` gives them -> logits (N, K). adapt: a view
    of the student's (N, C, H, W) -> one of this network's. digest: of its weights.
    """

    name: str
    module: nn.Module
    adapt: Callable[[Tensor], Tensor]
    digest: str

    def logits(self, inputs: Sequence[Tensor]) -> Tensor:
        """Logits (N, K) of the student's views, without a gradient."""
        with torch.no_grad():
            return at_least_float32(self.module(*(self.adapt(view) for view in inputs)))


def distilled(
    label_loss: LabelLoss,
    teachers: Sequence[Teacher],
    *,
    num_classes: int,
    temperature: float,
    weight: float,
    attention: "AttentionTransfer | None" = None,
    attention_weight: float = 0.0,
) -> LossFn:
    """The loss by labels and teachers, and how many images are right.

    It is weight * T^2 * KL(teachers || student) + (1 - weight) * label loss + attention_weight * attention loss.
    Both sides of the divergence are softmax(logits / T); of several teachers, these probabilities are averaged. The
    label loss may shift the student's logits, the divergence takes them as they are. All are means over the images.
    The sums to report are how many images are right, how many are taken for what the teachers take them for, and the
    parts of the loss.

    Args:
        label_loss: The loss by the labels.
        teachers: One or more, on the device.
        num_classes: K.
        temperature: T.
        weight: Part of the teachers.
        attention: Whether and where feature maps are to match.
        attention_weight: Factor on that part.

    Source:
        Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network", 2015.
    """

    def loss_fn(module: nn.Module, batch: Batch) -> StepOutput:
        with contextlib.nullcontext() if attention is None else attention.listening():
            logits_NK = check_logits(module(*batch.inputs), wanted=(len(batch.labels_N), num_classes))
            teachers_NK = [teacher.logits(batch.inputs) for teacher in teachers]
            parts = {
                "label_loss": label_loss(logits_NK, batch),
                "distill_loss": temperature**2 * _divergence(logits_NK, teachers_NK, temperature=temperature),
            }
            loss = (1 - weight) * parts["label_loss"] + weight * parts["distill_loss"]
            if attention is not None:
                parts["attention_loss"] = attention.loss()
                loss = loss + attention_weight * parts["attention_loss"]
        guesses_N = average_probabilities(teachers_NK, temperature=1.0).argmax(dim=1)
        counts = {
            "top1_frac": count_correct(logits_NK, batch),
            "teacher_agreement_frac": (logits_NK.detach().argmax(dim=1) == guesses_N).sum(),
        }
        return StepOutput(loss, counts | {name: part.detach() * len(batch.labels_N) for name, part in parts.items()})

    return loss_fn


def average_probabilities(teachers_NK: Sequence[Tensor], *, temperature: float) -> Tensor:
    """The mean of the teachers' softmax(logits / temperature), (N, K)."""
    probs = [(logits_NK / temperature).softmax(dim=1) for logits_NK in teachers_NK]
    return probs[0] if len(probs) == 1 else torch.stack(probs).mean(dim=0)


def _divergence(logits_NK: Tensor, teachers_NK: Sequence[Tensor], *, temperature: float) -> Tensor:
    log_probs_NK = (at_least_float32(logits_NK) / temperature).log_softmax(dim=1)
    targets_NK = average_probabilities(teachers_NK, temperature=temperature)
    return F.kl_div(log_probs_NK, targets_NK, reduction="batchmean")  # the sum over classes, the mean over images


def adapter(
    *, seen: InputSpec, wanted: InputSpec, device: torch.device, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """What makes of the student's views (N, C, H, W), normalised for it, such as a teacher takes.

    Args:
        seen: The student's, complete.
        wanted: The teacher's, complete. Grey images become colour where it wants that.
        device: Where it is computed.
        dtype: Of the views.

    Raises:
        ValueError: The student sees colour, the teacher only grey.
    """
    assert seen.mean is not None, "complete_input leaves no field open"
    assert seen.std is not None, "as above"
    assert wanted.mean is not None, "as above"
    assert wanted.std is not None, "as above"
    assert wanted.size_px is not None, "as above"
    if len(wanted.mean) < len(seen.mean):
        raise ValueError(
            "it was trained on grey images, and this run sees colour; use --input.channels 1, or another teacher."
        )
    size_px, mode = wanted.size_px, wanted.interpolation
    own_mean, own_std, mean, std = (
        torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)
        for values in (seen.mean, seen.std, wanted.mean, wanted.std)
    )
    scale, shift = (own_std / std).to(device, dtype), ((own_mean - mean) / std).to(device, dtype)
    is_same = (seen.mean, seen.std) == (wanted.mean, wanted.std)

    def adapt(view_NCHW: Tensor) -> Tensor:
        if not is_same:
            view_NCHW = view_NCHW * scale + shift
        if view_NCHW.shape[-2:] != (size_px, size_px):
            view_NCHW = F.interpolate(view_NCHW, size=(size_px, size_px), mode=mode, antialias=True)
        return view_NCHW

    return adapt


class AttentionTransfer:
    """Matches the student's feature maps to a teacher's, by where in the image they are large.

    The attention map of a layer is the sum over channels of its squares, as a vector of length 1; the loss is the mean
    squared difference of two such maps, summed over the pairs of layers. The larger map is pooled to the smaller one
    first. It has no parameters. A layer that is called several times gives its last output, and as later layers have
    left it that write into it in place.

    Source:
        Zagoruyko, Komodakis, "Paying More Attention to Attention", 2017; their code has no pooling.

    Args:
        student: The network that is trained, before it is wrapped for several processes or compiled: the layers
            themselves are listened to, and stay the same.
        teacher: Where the maps come from that are to be matched.
        layers: Student's layer -> teacher's layer, names of modules.

    Raises:
        ValueError: There is no such layer; the message lists the nearest names.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, *, layers: Mapping[str, str]) -> None:
        self._pairs = list(layers.items())
        self._student = _Taps(student, [name for name, _ in self._pairs], whose="the network")
        self._teacher = _Taps(teacher, [name for _, name in self._pairs], whose="the teacher")

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within, the outputs of forward passes are kept for `loss`."""
        with self._student.listening(), self._teacher.listening():
            yield

    def loss(self) -> Tensor:
        """Of the last forward passes of both: a scalar, mean over the images."""
        losses = [
            _map_distance(self._student.outputs[name], self._teacher.outputs[other]) for name, other in self._pairs
        ]
        return torch.stack(losses).sum()

    def check(self) -> None:
        """Checks the outputs of the last forward passes.

        Raises:
            ValueError: A layer gave nothing, or no maps, or maps of a single place, which are all alike.
        """
        self._student.check()
        self._teacher.check()
        for name, other in self._pairs:
            shapes = [
                tuple(taps.outputs[one].shape[2:]) for taps, one in ((self._student, name), (self._teacher, other))
            ]
            if min(height for height, _ in shapes) * min(width for _, width in shapes) == 1:
                raise ValueError(
                    f"distill.features: the maps of {name!r} and {other!r} have {shapes[0]} and {shapes[1]} places; of "
                    "one place all maps are alike, so nothing would be learned from them. Take earlier layers."
                )


class _Taps:
    """Keeps what layers of a network give, while it is listened to.

    Args:
        module: The network.
        names: Of layers.
        whose: What messages call the network.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], *, whose: str) -> None:
        self.outputs: dict[str, Tensor] = {}
        self._names, self._whose, self._is_listening = names, whose, False
        layers = {name: layer for name, layer in module.named_modules() if name}
        for name in names:
            if name not in layers:
                few = f"{len(layers)} layers, of which the uppermost are {', '.join(dict(module.named_children()))}"
                raise ValueError(
                    f"distill.features: {whose} has no layer {name!r}; {nearest(name, list(layers), if_many=few)}"
                )
            layers[name].register_forward_hook(self._keep_as(name))

    def _keep_as(self, name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(layer: nn.Module, inputs: object, output: Tensor) -> None:
            if self._is_listening:
                self.outputs[name] = output

        return keep

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        self._is_listening = True
        try:
            yield
        finally:
            self._is_listening = False
            self.outputs.clear()

    def check(self) -> None:
        for name in self._names:
            output = self.outputs.get(name)
            if not isinstance(output, Tensor) or output.ndim != 4:
                given = (
                    "is not used for an image"
                    if output is None
                    else f"gives shape {tuple(output.shape)}"
                    if isinstance(output, Tensor)
                    else f"gives a {type(output).__name__}"
                )
                raise ValueError(
                    f"distill.features: layer {name!r} of {self._whose} {given}; wanted: one that gives feature maps "
                    "(images, channels, height, width), such as a convolution or a block of them."
                )


def attention_map(output_NCHW: Tensor, *, size: tuple[int, int]) -> Tensor:
    """(N, H * W) of `size`, rows of length 1: the sum over channels of squares, pooled."""
    squares_NHW = at_least_float32(output_NCHW).pow(2).sum(dim=1)
    if squares_NHW.shape[-2:] != size:
        squares_NHW = F.adaptive_avg_pool2d(squares_NHW, size)
    return F.normalize(squares_NHW.flatten(1), dim=1)


def _map_distance(student_NCHW: Tensor, teacher_NCHW: Tensor) -> Tensor:
    height = min(student_NCHW.shape[2], teacher_NCHW.shape[2])
    width = min(student_NCHW.shape[3], teacher_NCHW.shape[3])
    own, wanted = (attention_map(output, size=(height, width)) for output in (student_NCHW, teacher_NCHW))
    return F.mse_loss(own, wanted)
