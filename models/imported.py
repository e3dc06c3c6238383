"""Your own network by import path: mypackage.mymodule:MyNet.

class or function -> its signature -> which of channels, classes and size it takes, and under which name -> Blueprint

    class MyNet(nn.Module):
        def __init__(self, in_channels, num_classes, width=32): ...

is given in_channels and num_classes from the data, and width from --model.args.width.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from models.arguments import FOLLOWS, Blueprint, parameters_of

# what follows from the data -> the names it may have in a signature
ALIASES = {
    "in_channels": ("in_channels", "in_chans", "num_channels"),
    "num_classes": ("num_classes",),
    "size_px": ("size_px", "img_size", "image_size"),
}


def find_imported(name: str, target: Any) -> Blueprint:
    """What can be built by a class or function.

    Args:
        name: The import path, for messages.
        target: The object it names.

    Raises:
        ValueError: It is neither class nor function, or some of its arguments cannot be given by name.
    """
    if isinstance(target, nn.Module):
        raise ValueError(f"model.name={name} is a network already built; name its class, or a function that builds it.")
    if not callable(target) or (inspect.isclass(target) and not issubclass(target, nn.Module)):
        raise ValueError(
            f"model.name={name} is {_describe(target)}; name a class of torch.nn.Module, or a function that returns "
            "one."
        )
    parameters, is_open = parameters_of(target)
    given = {
        quantity: next(keyword for keyword in keywords if keyword in parameters)
        for quantity, keywords in ALIASES.items()
        if not parameters.keys().isdisjoint(keywords)
    }
    # with in_channels in the signature, num_channels is an argument like any other
    own = parameters.keys() - given.values()
    refused = {keyword: FOLLOWS for keywords in ALIASES.values() for keyword in keywords if keyword not in own}

    def build(**arguments: Any) -> nn.Module:
        return _build(name, target, given=given, arguments=arguments)

    return Blueprint(
        name=name,
        build=build,
        parameters={key: one for key, one in parameters.items() if key not in refused},
        refused=refused,
        takes_others=is_open,
    )


def _build(name: str, target: Callable[..., Any], *, given: Mapping[str, str], arguments: dict[str, Any]) -> nn.Module:
    from_data = {quantity: arguments.pop(quantity) for quantity in ALIASES}
    module = target(**{keyword: from_data[quantity] for quantity, keyword in given.items()}, **arguments)
    if not isinstance(module, nn.Module):
        raise ValueError(f"model.name={name} returned {_describe(module)}, not a torch.nn.Module.")
    return module


def _describe(value: Any) -> str:
    return f"the class {value.__name__}" if inspect.isclass(value) else f"an object of type {type(value).__name__}"
