"""What a network can be told, read from its signature, and whether what model.args tells it fits.

class or function -> the parameters of its signature -> Blueprint -> check_arguments(args) -> build(...)

Only annotations of plain values are held against a value: numbers, strings, true and false, choices, lists of these,
and unions of these. Another annotation (a callable, a class) lets every value pass, and building decides.
"""

import collections.abc
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from configs.nearest import nearest

FOLLOWS = "follows from the data and is not an option"
NO_WEIGHTS = "is not offered: train.py starts from random weights, pretrained ones are not offered here"

_UNIONS = (types.UnionType, typing.Union)
_SEQUENCES = (list, tuple, collections.abc.Sequence)
_NO_KEYWORDS = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY)


class Blueprint(NamedTuple):
    """A network that can be built.

    Attributes:
        name: As messages call it.
        build: Makes it from in_channels, num_classes, size_px and the arguments, all by keyword.
        parameters: What model.args can give.
        refused: What model.args cannot give, and why.
        takes_others: Whether there may be arguments beyond `parameters`, which only building can tell.
        is_ours: Whether it is one of our own, whose errors need no explaining.
        has_stem: Whether model.stem applies.
        is_sized: Whether it is built for one image size.
    """

    name: str
    build: Callable[..., nn.Module]
    parameters: Mapping[str, inspect.Parameter]
    refused: Mapping[str, str]
    takes_others: bool = False
    is_ours: bool = False
    has_stem: bool = False
    is_sized: bool = False


def parameters_of(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters that can be given by keyword, and whether there are **kwargs beside them.

    Of a class, those of its parents' constructors too, as long as **kwargs goes on to them.

    Raises:
        ValueError: It has no signature (some builtins).
    """
    if not inspect.isclass(target):
        return _signature_of(target)
    parameters: dict[str, inspect.Parameter] = {}
    is_open = False
    for owner in target.__mro__:
        if owner is nn.Module:
            break
        if "__init__" in vars(owner):
            own, is_open = _signature_of(owner)
            parameters = own | parameters
            if not is_open:
                break
    return parameters, is_open


def can_be_written(parameter: inspect.Parameter) -> bool:
    """Whether YAML and the command line have a value for it; for a function or a class they have none."""
    return _is_plain(parameter.annotation)


def check_arguments(blueprint: Blueprint, args: Mapping[str, Any]) -> None:
    """Checks names and values of model.args.

    Raises:
        ValueError: An argument that follows from the data, is unknown or missing, or is of the wrong type; the message
            lists the valid ones, nearest first.
    """
    known = list(blueprint.parameters)
    for name, value in args.items():
        if name in blueprint.refused:
            raise ValueError(f"model.args.{name} {blueprint.refused[name]}; {offer(name, known)}")
        if name in blueprint.parameters:
            _check_value(blueprint.name, name, value, kind=blueprint.parameters[name].annotation)
        elif not blueprint.takes_others:
            raise ValueError(f"{blueprint.name} has no argument {name!r}; {offer(name, known)}")
    needed = [name for name, one in blueprint.parameters.items() if one.default is one.empty and name not in args]
    if needed:
        options = " ".join(f"--model.args.{name} VALUE" for name in needed)
        raise ValueError(f"{blueprint.name} needs {', '.join(needed)}; add {options}.")


def offer(name: str, valid: list[str]) -> str:
    """The valid names, nearest first, however many there are."""
    if not valid:
        return "it takes no arguments"
    return nearest(name, valid).replace("see --help", ", ".join(valid))  # --help does not list them


def _signature_of(target: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    try:
        signature = inspect.signature(target, eval_str=True)
    except (NameError, TypeError, AttributeError, SyntaxError):  # annotations that cannot be evaluated
        signature = inspect.signature(target)
    parameters = {name: one for name, one in signature.parameters.items() if one.kind not in _NO_KEYWORDS}
    is_open = any(one.kind is one.VAR_KEYWORD for one in signature.parameters.values())
    return parameters, is_open


def _is_plain(kind: Any) -> bool:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in _UNIONS:
        return any(_is_plain(one) for one in inner if one is not type(None))
    if origin in _SEQUENCES:
        return all(_is_plain(one) for one in inner if one is not Ellipsis)
    return origin in (bool, int, float, str, dict, typing.Literal, typing.Any, inspect.Parameter.empty)


def _check_value(model: str, name: str, value: Any, *, kind: Any) -> None:
    if _fits(value, kind):
        return
    if typing.get_origin(kind) is typing.Literal:
        choices = [str(choice) for choice in typing.get_args(kind)]
        raise ValueError(f"{model}: {name}={value!r} is not a choice; {nearest(str(value), choices)}")
    raise ValueError(f"{model}: {name}={value!r} is of type {_describe_type(value)}; wanted: {_describe(kind)}.")


def _fits(value: Any, kind: Any) -> bool:
    """Whether a value from YAML fits an annotation; True where the annotation is not of plain values."""
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in _UNIONS:
        return any(_fits(value, one) for one in inner)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in inner)
    if origin in _SEQUENCES:
        return isinstance(value, list | tuple) and _elements_fit(value, inner)
    if origin is float:
        return type(value) in (float, int)  # --model.args.dropout 0 means 0.0
    if origin is dict:
        return isinstance(value, dict)
    return type(value) is origin if origin in (bool, int, str, type(None)) else True


def _elements_fit(values: collections.abc.Sequence[Any], kinds: tuple[Any, ...]) -> bool:
    if len(kinds) < 2 or kinds[-1] is Ellipsis:
        return all(_fits(value, kinds[0]) for value in values) if kinds else True
    return len(values) == len(kinds) and all(map(_fits, values, kinds))


def _describe(kind: Any) -> str:
    origin, inner = typing.get_origin(kind) or kind, typing.get_args(kind)
    if origin in _UNIONS:
        return " or ".join(_describe(one) for one in inner)
    if origin is typing.Literal:
        return " or ".join(str(choice) for choice in inner)
    if origin in _SEQUENCES:
        if len(inner) > 1 and inner[-1] is not Ellipsis:
            return f"a list of {len(inner)}: {', '.join(_describe(one) for one in inner)}"
        return f"a list of {_describe(inner[0])}" if inner else "a list"
    names: dict[Any, str] = {float: "float or int", type(None): "null"}
    return names.get(origin, getattr(origin, "__name__", repr(origin)))


def _describe_type(value: Any) -> str:
    if isinstance(value, list | tuple) and value:
        return f"list of {' and '.join(sorted({type(one).__name__ for one in value}))}"
    return type(value).__name__
