"""Networks taken apart: their layers, in order, the stages that these make, and the last of them, the head.

network -> list_layers -> names of parameters, layer by layer
network -> find_head   -> path of the last layer -> list_stages -> names of parameters, stage by stage, the head's last
"""

import itertools
from collections.abc import Iterator, Sequence

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList)
_LEAST_STAGES = 4  # below the head, where a network has as many parts: those of a resnet without its stem
_MOST_STAGES = 7  # likewise; where there are more, they become a stem and four


def list_layers(module: nn.Module) -> list[list[str]]:
    """Names of a network's parameters, layer by layer from the images to the logits, each parameter once.

    A network of timm's says itself which they are (`group_matcher`). Of others, what stands in a stack, a list of
    modules of one kind such as the blocks of a stage, is a layer, and so is whatever stands beside the stacks. What has
    no matrix or filters, such as a norm, belongs to the layer before it; parameters that stand in none of these, such
    as a class token, to the first.
    """
    if hasattr(module, "group_matcher"):
        return _timm_groups(module, coarse=False)
    return [names for _, names in _layers(module)]


def find_head(module: nn.Module, *, num_classes: int) -> str:
    """The path of a network's last layer: a linear one, or a 1x1 convolution, with an output for each class.

    A network of timm's says itself where it is. Of others, it is the last in the order in which they are written.

    Args:
        module: The network.
        num_classes: Classes that it tells apart.

    Raises:
        ValueError: There is no such layer, or there are several whose logits are put together.
    """
    path = _timm_classifier(module) if hasattr(module, "get_classifier") else ""
    paths: list[str] = [
        one_path
        for one_path, one in module.get_submodule(path).named_modules(prefix=path)
        if _num_outputs(one) == num_classes
    ]
    if not paths:
        raise ValueError(
            f"{type(module).__name__} has no last layer to train anew: no nn.Linear, and no nn.Conv2d of 1x1, with "
            f"{num_classes} outputs{f' in {path}' if path else ''}; let it end in nn.Linear(..., num_classes)."
        )
    return paths[-1]


def list_head(module: nn.Module, head: str) -> list[str]:
    """Names of the parameters of the layer `head`, a path as `find_head` gives it."""
    prefix = f"{head}." if head else ""
    return [prefix + name for name, _ in module.get_submodule(head).named_parameters()]


def list_stages(module: nn.Module, *, head: str) -> list[list[str]]:
    """Names of a network's parameters, stage by stage from the images to the logits, each parameter once.

    The last stage is the head. A network of timm's says itself which the others are (`group_matcher`). Of others, they
    are the parts by which the paths of its layers begin: as many components of a path as it takes to tell four parts
    apart, such as layer1, features.1 or encoder.layers.encoder_layer_1. Where there are more than seven parts, such as
    a transformer's blocks, the first stays alone and the others become four stages of about as many.

    Args:
        module: The network.
        head: Path of its last layer.
    """
    last = list_head(module, head)
    if hasattr(module, "group_matcher"):
        below = _timm_stages(module, without=last)
    else:
        layers = [(path, [name for name in names if name not in last]) for path, names in _layers(module)]
        below = _group_by_path([(path, names) for path, names in layers if names])
    return [*_merge(below), last]


def _layers(module: nn.Module) -> list[tuple[str, list[str]]]:
    """The layers of a network that is not timm's: path of the part that a layer begins with, names of parameters."""
    layers: list[tuple[str, list[str]]] = []
    for path, part in _parts(module, path=""):
        names = [f"{path}.{name}" for name, _ in part.named_parameters()]
        if layers and all(parameter.dim() < 2 for parameter in part.parameters()):
            layers[-1][1].extend(names)
        elif names:
            layers.append((path, names))
    listed = {name for _, names in layers for name in names}
    loose = [name for name, _ in module.named_parameters() if name not in listed]
    path, first = layers[0] if layers else ("", [])
    return [(path, loose + first), *layers[1:]]


def _parts(module: nn.Module, *, path: str) -> Iterator[tuple[str, nn.Module]]:
    """The layers within a module, in order: (path, module)."""
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        if isinstance(child, _LISTS) or any(_is_stack(part) for part in child.modules()):
            yield from _parts(child, path=child_path)
        else:
            yield child_path, child


def _is_stack(part: nn.Module) -> bool:
    """Whether this is a list of several modules of one kind, each made of others."""
    kinds = {type(child) for child in part.children()}
    return isinstance(part, _LISTS) and len(part) > 1 and len(kinds) == 1 and any(part[0].children())


def _group_by_path(layers: Sequence[tuple[str, list[str]]]) -> list[list[str]]:
    """Neighbouring layers together, by as few components of their paths as tell four parts apart."""
    groups: list[list[str]] = []
    for depth in range(1, 1 + max((path.count(".") + 1 for path, _ in layers), default=0)):
        groups = _group_at(layers, depth=depth)
        if len(groups) >= _LEAST_STAGES:
            break
    return groups


def _group_at(layers: Sequence[tuple[str, list[str]]], *, depth: int) -> list[list[str]]:
    together = itertools.groupby(layers, key=lambda layer: layer[0].split(".")[:depth])
    return [[name for _, names in group for name in names] for _, group in together]


def _merge(groups: list[list[str]]) -> list[list[str]]:
    """At most seven; of more, the first and four of about as many each, longer ones later.

    Where halvings stand between stages (features.1 to 7 of a ConvNeXt), these so go with the stage after them.
    """
    if len(groups) <= _MOST_STAGES:
        return groups
    bounds = [1 + place * (len(groups) - 1) // _LEAST_STAGES for place in range(_LEAST_STAGES + 1)]
    merged = [list(itertools.chain(*groups[start:end])) for start, end in itertools.pairwise(bounds)]
    return [groups[0], *merged]


def _num_outputs(layer: nn.Module) -> int | None:
    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) else None


def _timm_classifier(module: nn.Module) -> str:
    """The path of what a network of timm's calls its classifier, a layer or a module that ends in one.

    Raises:
        ValueError: It has several.
    """
    paths = {id(one): path for path, one in module.named_modules()}
    said = module.get_classifier()  # type: ignore[operator]
    declared = getattr(module, "pretrained_cfg", {}).get("classifier")
    found = [paths[id(one)] for one in (said if isinstance(said, tuple | list) else [said]) if id(one) in paths]
    if isinstance(declared, tuple | list):  # says more where the classifier is a module of several
        there = [path for path in declared if path in paths.values() and _num_outputs(module.get_submodule(path))]
        found = there if len(there) > 1 else found
    if len(found) > 1:
        raise ValueError(
            f"{type(module).__name__} has {len(found)} last layers ({', '.join(found)}), whose logits are put "
            "together; fine-tuning gives a network one: use another network, such as the same without distillation."
        )
    return found[0] if found else ""


def _timm_stages(module: nn.Module, *, without: Sequence[str]) -> list[list[str]]:
    try:
        groups = _timm_groups(module, coarse=True)
    except AssertionError:  # so says timm where a network has no coarse groups (RDNet)
        groups = _timm_groups(module, coarse=False)
    parameters = dict(module.named_parameters())
    stages: list[list[str]] = []
    for names in groups:
        rest = [name for name in names if name not in without]
        if stages and all(parameters[name].dim() < 2 for name in rest):  # a norm before the head
            stages[-1] += rest
        elif rest:
            stages.append(rest)
    return stages


def _timm_groups(module: nn.Module, *, coarse: bool) -> list[list[str]]:
    from timm.models import group_parameters

    groups = group_parameters(module, module.group_matcher(coarse=coarse))  # type: ignore[operator]
    return [list(names) for _, names in sorted(groups.items())]
