"""torchvision's and timm's networks with the weights that they publish: torchvision/resnet18, timm/resnet18.a1_in1k.

name -> describe_published: classes, size, mean, std; nothing is built or downloaded
     -> the library's own network, its weights from the library's cache, or downloaded -> module, or its tensors

Caches are torch's ($TORCH_HOME/hub/checkpoints) and Hugging Face's ($HF_HOME/hub). Without a tag in the name, the
weights are those that torchvision calls DEFAULT, and those that timm takes.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision import models
from torchvision.models.vision_transformer import VisionTransformer, interpolate_embeddings

from models.names import nearest_names
from models.timm_zoo import PREFIX as TIMM
from models.timm_zoo import find_timm
from models.torchvision_zoo import PREFIX as TORCHVISION
from models.torchvision_zoo import has_torchvision, list_torchvision, list_torchvision_weights, own_name


class Published(NamedTuple):
    """What is published of a network's weights.

    Attributes:
        num_classes: Classes that its last layer tells apart; 0 where it has none.
        class_names: Their names, where they are published.
        size_px: Height and width of the images it was trained or is scored on.
        mean: Per channel, on the scale 0 to 1.
        std: Likewise.
        interpolation: bilinear or bicubic.
        crop_frac: Part of the short side that its evaluation keeps.
    """

    num_classes: int
    class_names: tuple[str, ...] | None
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_frac: float


def describe_published(name: str) -> Published:
    """What the weights of a name tell apart and take, without building or downloading anything.

    Args:
        name: torchvision/NAME or timm/NAME, with a tag or without.

    Raises:
        ValueError: Unknown name, or one without weights.
    """
    return _describe_torchvision(name) if name.startswith(TORCHVISION) else _describe_timm(name)


def load_pretrained(name: str, *, num_classes: int) -> nn.Module:
    """The library's own network with its published weights and its last layer, on the CPU in evaluation mode.

    Args:
        name: As of `describe_published`.
        num_classes: Classes of the data, which must be as many as the network tells apart.

    Raises:
        OSError: The weights are not in the cache, and cannot be downloaded.
        ValueError: Unknown name, one without weights, or other classes.
    """
    _check_classes(name, describe_published(name).num_classes, num_classes)
    return _load(name).eval()


def load_published(name: str, *, size_px: int) -> dict[str, Tensor]:
    """The tensors of the library's own network with its published weights, its last layer among them, by name.

    They are read by the library, which knows the names that it gave them in former years. Position embeddings are
    resampled to the size of the images, by the library's own function.

    Args:
        name: As of `describe_published`.
        size_px: Height and width of the images.

    Raises:
        OSError: The weights are not in the cache, and cannot be downloaded.
        ValueError: Unknown name, one without weights, or weights that cannot be had for this size.
    """
    published_px = describe_published(name).size_px
    is_sized = name.startswith(TIMM) and find_timm(name).is_sized
    arguments: dict[str, Any] = {"img_size": size_px} if is_sized else {}
    if own_name(name) == "inception_v3" and name.startswith(TORCHVISION):
        arguments["aux_logits"] = False  # a head beside the last layer; GoogLeNet's are gone by themselves
    with torch.random.fork_rng(devices=[]):
        try:
            module = _load(name, **arguments)
        except OSError as error:
            if is_sized and size_px != published_px and "size mismatch" in str(error):
                raise ValueError(
                    f"the weights of {name} are for images of {published_px} px and do not fit a network for {size_px}"
                    f"; use --input.size_px {published_px}."
                ) from error
            raise
    state = module.state_dict()
    if isinstance(module, VisionTransformer):
        state = interpolate_embeddings(size_px, module.patch_size, state)
    return dict(state)


def _describe_torchvision(name: str) -> Published:
    weights = _find_weights(name)
    shown = weights.transforms()
    return Published(
        num_classes=len(weights.meta["categories"]),
        class_names=tuple(weights.meta["categories"]),
        size_px=shown.crop_size[0],
        mean=tuple(shown.mean),
        std=tuple(shown.std),
        interpolation=shown.interpolation.value,
        crop_frac=min(shown.crop_size[0] / shown.resize_size[0], 1.0),
    )


def _find_weights(name: str) -> Any:
    if not has_torchvision(name):
        raise ValueError(_unknown(name, list_torchvision_weights() if "." in name else list_torchvision()))
    return models.get_model_weights(own_name(name))[name.partition(".")[2] or "DEFAULT"]


def _describe_timm(name: str) -> Published:
    import timm  # takes a second
    from timm.data.config import resolve_data_config

    tagged = timm.list_pretrained()
    names = {*tagged, *(one.partition(".")[0] for one in tagged)}  # without its tag, timm's own choice
    if not name.startswith(TIMM) or name.removeprefix(TIMM) not in names:
        raise ValueError(_unknown(name, [TIMM + one for one in sorted(names)]))
    published = timm.get_pretrained_cfg(name.removeprefix(TIMM))
    assert published is not None  # it is one of those names
    shown: dict[str, Any] = resolve_data_config(pretrained_cfg=published.to_dict())  # type: ignore[no-untyped-call]
    class_names = published.label_names or ()
    return Published(
        num_classes=published.num_classes,
        class_names=tuple(class_names) if len(class_names) == published.num_classes > 0 else None,
        size_px=shown["input_size"][-1],
        mean=tuple(shown["mean"]),
        std=tuple(shown["std"]),
        interpolation="bilinear" if shown["interpolation"] == "bilinear" else "bicubic",
        crop_frac=min(shown["crop_pct"], 1.0),
    )


def _load(name: str, **arguments: Any) -> nn.Module:
    """The network as the library builds it with its weights."""
    try:
        if name.startswith(TORCHVISION):
            build = models.get_model_builder(own_name(name))
            module: nn.Module = build(weights=_find_weights(name), progress=False, **arguments)
            return module
        import timm

        module = timm.create_model(name.removeprefix(TIMM), pretrained=True, **arguments)
        return module
    except Exception as error:  # each library and each cache says in its own way that there is no network
        raise OSError(
            f"the weights of {name} cannot be had: {type(error).__name__}: {str(error).strip()}. Where this machine "
            "has no way out, load the network once on one that has, and copy its cache ($TORCH_HOME, $HF_HOME)."
        ) from error


def _check_classes(name: str, there: int, num_classes: int) -> None:
    if there != num_classes:
        raise ValueError(
            f"{name} tells {there} classes apart, but the data has {num_classes}: fine-tune it on the data first, and "
            "name the run folder of that."
        )


def _unknown(name: str, names: list[str]) -> str:
    close = nearest_names(name, names)
    like = f"; nearest: {', '.join(close)}" if close else ""
    return f"there is no network {name!r} with pretrained weights{like}; `python -m models.list` searches the names."
