"""Networks taken apart: their layers, in order.

network -> list_layers -> names of parameters, layer by layer
"""

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList)


def list_layers(module: nn.Module) -> list[list[str]]:
    """Names of a network's parameters, layer by layer from the images to the logits, each parameter once.

    A network of timm's says itself which they are (`group_matcher`). Of others, each member of a Sequential or a
    ModuleList is a layer, at the innermost level at which members have lists of their own no more, and so is whatever
    stands between these; what has no weights to multiply by, such as a norm, belongs to the layer before it, and
    parameters outside all modules, such as class tokens and position embeddings, to the first.
    """
    if hasattr(module, "group_matcher"):
        return _timm_layers(module)
    layers: list[list[str]] = [[name for name, _ in module.named_parameters(recurse=False)]]
    for path, part in _parts(module, path=""):
        names = [f"{path}.{name}" for name, _ in part.named_parameters()]
        if not names:
            continue
        if all(parameter.dim() < 2 for parameter in part.parameters()) or not any(layers):
            layers[-1] += names
        elif len(layers) == 1 and not _has_weights(module, layers[0]):
            layers[0] += names
        else:
            layers.append(names)
    return [names for names in layers if names]


def _has_weights(module: nn.Module, names: list[str]) -> bool:
    """Whether among a module's own parameters is one of a layer, and not only tokens and embeddings."""
    return any("." in name for name in names)


def _parts(module: nn.Module, *, path: str) -> list[tuple[str, nn.Module]]:
    """The layers of a module that is no list, or the members of one, in order: (path, module)."""
    parts: list[tuple[str, nn.Module]] = []
    for name, child in module.named_children():
        child_path = f"{path}.{name}" if path else name
        inner = [one for one in child.modules() if isinstance(one, _LISTS) and len(one) > 1]
        holds_lists = isinstance(child, _LISTS) or any(_is_stack(one) for one in inner)
        parts += _parts(child, path=child_path) if holds_lists else [(child_path, child)]
    return parts


def _is_stack(part: nn.Module) -> bool:
    """Whether a list holds layers of one kind after each other, as stages and encoders do, and not the parts of one."""
    children = [type(child) for child in part.children()]
    return len(children) > 1 and len(set(children)) == 1 and children[0] not in (nn.Conv2d, nn.Linear)


def _timm_layers(module: nn.Module) -> list[list[str]]:
    from timm.models import group_parameters

    groups = group_parameters(module, module.group_matcher(coarse=False))  # type: ignore[operator]
    return [list(names) for _, names in sorted(groups.items())]
