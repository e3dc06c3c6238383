"""Networks taken apart: their layers, in order.

network -> list_layers -> names of parameters, layer by layer
"""

from collections.abc import Iterator

from torch import nn

_LISTS = (nn.Sequential, nn.ModuleList)


def list_layers(module: nn.Module) -> list[list[str]]:
    """Names of a network's parameters, layer by layer from the images to the logits, each parameter once.

    A network of timm's says itself which they are (`group_matcher`). Of others, what stands in a stack, a list of
    modules of one kind such as the blocks of a stage, is a layer, and so is whatever stands beside the stacks. What has
    no matrix or filters, such as a norm, belongs to the layer before it; parameters that stand in none of these, such
    as a class token, to the first.
    """
    if hasattr(module, "group_matcher"):
        return _timm_layers(module)
    layers: list[list[str]] = [[]]
    for path, part in _parts(module, path=""):
        names = [f"{path}.{name}" for name, _ in part.named_parameters()]
        if layers == [[]] or all(parameter.dim() < 2 for parameter in part.parameters()):
            layers[-1] += names
        else:
            layers.append(names)
    listed = {name for names in layers for name in names}
    layers[0] = [name for name, _ in module.named_parameters() if name not in listed] + layers[0]
    return layers


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


def _timm_layers(module: nn.Module) -> list[list[str]]:
    from timm.models import group_parameters

    groups = group_parameters(module, module.group_matcher(coarse=False))  # type: ignore[operator]
    return [list(names) for _, names in sorted(groups.items())]
