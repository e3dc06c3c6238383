"""torchvision's and timm's networks with the weights that they publish: torchvision/resnet18, timm/resnet18.a1_in1k.

name -> what is published of it: classes, size, mean, std -> weights from the library's cache, or downloaded -> network

Caches are torch's ($TORCH_HOME/hub/checkpoints) and Hugging Face's ($HF_HOME/hub).
"""

from typing import Any, NamedTuple

from torch import nn
from torchvision import models

from models.names import nearest_names
from models.timm_zoo import PREFIX as TIMM
from models.torchvision_zoo import PREFIX as TORCHVISION
from models.torchvision_zoo import list_torchvision


class Pretrained(NamedTuple):
    """A network as it was published, on the CPU in evaluation mode, and what it takes.

    size_px: height and width. mean, std: per channel, on the scale 0 to 1. crop_frac: part of the short side that its
    evaluation keeps.
    """

    module: nn.Module
    size_px: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    crop_frac: float


def load_pretrained(name: str, *, num_classes: int) -> Pretrained:
    """The network with its published weights; of torchvision's those that it calls DEFAULT.

    Args:
        name: torchvision/NAME or timm/NAME.
        num_classes: Classes of the data, which must be as many as the network tells apart.

    Raises:
        OSError: The weights are not in the cache, and cannot be downloaded.
        ValueError: Unknown name, one without weights, or other classes.
    """
    return _load_torchvision(name, num_classes) if name.startswith(TORCHVISION) else _load_timm(name, num_classes)


def _load_torchvision(name: str, num_classes: int) -> Pretrained:
    if name not in list_torchvision():
        raise ValueError(_unknown(name, list_torchvision()))
    weights = models.get_model_weights(name.removeprefix(TORCHVISION))["DEFAULT"]
    _check_classes(name, len(weights.meta["categories"]), num_classes)
    module = _load(name, models.get_model_builder(name.removeprefix(TORCHVISION)), weights=weights, progress=False)
    shown = weights.transforms()
    return Pretrained(
        module.eval(),
        size_px=shown.crop_size[0],
        mean=tuple(shown.mean),
        std=tuple(shown.std),
        interpolation=shown.interpolation.value,
        crop_frac=min(shown.crop_size[0] / shown.resize_size[0], 1.0),
    )


def _load_timm(name: str, num_classes: int) -> Pretrained:
    import timm  # takes a second
    from timm.data.config import resolve_data_config

    own_name, tagged = name.removeprefix(TIMM), timm.list_pretrained()
    names = {*tagged, *(one.partition(".")[0] for one in tagged)}  # without its tag, timm's own choice
    if own_name not in names:
        raise ValueError(_unknown(name, [TIMM + one for one in sorted(names)]))
    published = timm.get_pretrained_cfg(own_name)
    _check_classes(name, 0 if published is None else published.num_classes, num_classes)
    module = _load(name, timm.create_model, model_name=own_name, pretrained=True)
    shown: dict[str, Any] = resolve_data_config(model=module)  # type: ignore[no-untyped-call]
    return Pretrained(
        module.eval(),
        size_px=shown["input_size"][-1],
        mean=tuple(shown["mean"]),
        std=tuple(shown["std"]),
        interpolation="bilinear" if shown["interpolation"] == "bilinear" else "bicubic",
        crop_frac=shown["crop_pct"],
    )


def _load(name: str, build: Any, **arguments: Any) -> nn.Module:
    try:
        module: nn.Module = build(**arguments)
    except Exception as error:  # each library and each cache says in its own way that there is no network
        raise OSError(
            f"the weights of {name} cannot be had: {type(error).__name__}: {str(error).strip()}. Where this machine "
            "has no way out, load the network once on one that has, and copy its cache ($TORCH_HOME, $HF_HOME)."
        ) from error
    return module


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
