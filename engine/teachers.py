"""Teachers by name: run folders of train.py, and networks with pretrained weights.

runs/NAME        -> the checkpoint that the run is judged by -> its card: model, input, classes -> weights |
torchvision/NAME -> the library's cache                                                                    | -> Teacher
timm/NAME                                                                                                  |

They belong to no module that is trained: no optimizer, checkpoint or count of parameters meets them. A checkpoint's
card keeps a hash of their weights, so that a run is not continued under another teacher.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from configs.schema import InputSpec, ModelConfig
from engine.checkpoint import load_weights
from engine.distillation import AttentionTransfer, Teacher, adapter
from engine.freezing import in_evaluation
from engine.origin import load_origin
from engine.runtime import Runtime

_ZOOS = ("torchvision/", "timm/")


class BuildModel(Protocol):
    """What `models.build.build_model` is."""

    def __call__(self, model: ModelConfig, *, num_classes: int, spec: InputSpec, seed: int) -> nn.Module:
        """The network, with initial weights."""
        ...


class BuildPretrained(Protocol):
    """What `models.build.build_pretrained` is."""

    def __call__(self, name: str, *, num_classes: int) -> tuple[nn.Module, InputSpec]:
        """The network, with published weights, and what it takes."""
        ...


def load_teachers(
    names: Sequence[str],
    *,
    class_names: Sequence[str],
    spec: InputSpec,
    builders: tuple[BuildModel, BuildPretrained],
    runtime: Runtime,
) -> tuple[Teacher, ...]:
    """The teachers, on the device, in evaluation mode, their parameters frozen.

    Args:
        names: Run folders, torchvision/NAME or timm/NAME.
        class_names: Of the data.
        spec: What the student sees, complete.
        builders: What makes the network of a run folder, and one of the others.
        runtime: Where they go; one process of each machine reads first, for it may be downloading.

    Raises:
        OSError: There is no whole checkpoint, or pretrained weights cannot be had.
        ValueError: A teacher knows other classes than the data, or takes other images.
    """
    build_model, build_pretrained = builders

    def load(name: str) -> Teacher:
        with _naming(name):
            if name.startswith(_ZOOS):
                module, wanted = build_pretrained(name, num_classes=len(class_names))
            else:
                module, wanted = _load_run(name, class_names=class_names, build_model=build_model)
            digest = hash_weights(module)
            module = runtime.place(module.requires_grad_(False).eval())
            adapt = adapter(seen=spec, wanted=wanted, device=runtime.device, dtype=runtime.dtype)
            return Teacher(name, module, adapt, digest)

    with runtime.first_on_this_machine():
        return tuple(load(name) for name in names)


def check_teachers(
    teachers: Sequence[Teacher],
    *,
    student: nn.Module,
    attention: AttentionTransfer | None,
    image_CHW: tuple[int, int, int],
    num_classes: int,
    runtime: Runtime,
) -> None:
    """Shows one black image to student and teachers; the modes of all stay as they were.

    Args:
        teachers: As `load_teachers` gives them.
        student: The network that is trained.
        attention: Listens to both; None where only logits are matched.
        image_CHW: Channels, height and width of the student's input.
        num_classes: K.
        runtime: Device and precision.

    Raises:
        ValueError: A teacher does not take such images, or does not give K logits; or a layer whose maps are to match
            gives none.
    """
    image = torch.zeros(1, *image_CHW, device=runtime.device, dtype=runtime.dtype)
    for teacher in teachers:
        with _naming(teacher.name), runtime.autocast():
            _check_output(teacher, image, num_classes=num_classes)
    if attention is None:
        return
    with attention.listening(), torch.no_grad(), runtime.autocast():
        with in_evaluation(student):
            student(image)
        teachers[0].logits([image])
        attention.check()


def hash_weights(module: nn.Module, *, but: str | None = None) -> str:
    """SHA-256 of the names, types, shapes and values of all parameters and buffers, but those of the layer `but`."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if but is not None and name.startswith(f"{but}."):
            continue
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(memoryview(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def _load_run(name: str, *, class_names: Sequence[str], build_model: BuildModel) -> tuple[nn.Module, InputSpec]:
    origin = load_origin(name)
    if origin.is_knn:
        raise ValueError(
            "its last layer are nearest neighbours (strategy.classifier=knn), which evaluate.py alone builds; take a "
            "run with another classifier."
        )
    _check_classes(origin.class_names, class_names)
    module = build_model(origin.model, num_classes=len(class_names), spec=origin.spec, seed=0)
    load_weights(module, origin.checkpoint)
    return module, origin.spec


def _check_classes(known: Sequence[str], wanted: Sequence[str]) -> None:
    if list(known) == list(wanted):
        return
    missing = [f"- {name}" for name in wanted if name not in known]
    beyond = [f"+ {name}" for name in known if name not in wanted]
    why = ", ".join(missing + beyond) or "the same ones in another order"
    raise ValueError(
        f"it knows other classes than the data (- the data has, + it knows): {why}. Train it on the same classes, or "
        "fine-tune it on this data first."
    )


def _check_output(teacher: Teacher, image_NCHW: Tensor, *, num_classes: int) -> None:
    try:
        logits_NK: Any = teacher.logits([image_NCHW])
    except Exception as error:  # whatever a network does with an image it is not made for
        raise ValueError(f"it fails on a black image: {type(error).__name__}: {error}") from error
    if logits_NK.shape != (1, num_classes):
        raise ValueError(
            f"it gives {tuple(logits_NK.shape)} for one image; wanted: logits (1, {num_classes}), one for each class."
        )


@contextlib.contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors within say which teacher they are about."""
    try:
        yield
    except (ValueError, OSError) as error:
        kind = OSError if isinstance(error, OSError) else ValueError  # some of their kinds take no text alone
        raise kind(f"distill.teachers: {name}: {error}") from error
