"""Values from YAML held against annotations, and parameters read from signatures."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, List, Literal, Optional, Tuple, Union  # noqa: UP035

import pytest
from torch import nn

from models.arguments import Blueprint, can_be_written, check_arguments, offer, parameters_of

# annotation -> values that fit, values that do not, what is asked for
KINDS: list[tuple[Any, list[Any], list[Any], str]] = [
    (int, [0, -3], [1.0, True, "1", None, [1]], "int"),
    (float, [0.5, 1, float("nan")], [True, "1", None], "float or int"),
    (bool, [True, False], [0, 1, "true", None], "bool"),
    (str, ["", "a"], [1, None, ["a"]], "str"),
    (int | None, [1, None], ["1", 1.0, False], "int or null"),
    (Optional[float], [1, 0.5, None], ["x", True], "float or int or null"),  # noqa: UP045
    (Union[int, Tuple[int, int]], [1, [1, 2]], [[1], [1, 2, 3], "1"], "int or a list of 2: int, int"),  # noqa: UP006, UP007
    (Literal["a", "b"] | None, ["a", None], ["c", 1], "a or b or null"),
    (list[int], [[], [1], (1, 2)], [1, ["1"], [True], None, {}], "a list of int"),
    (List[float], [[1, 0.5]], [["a"]], "a list of float or int"),  # noqa: UP006
    (Sequence[int], [[1]], ["1", [None]], "a list of int"),
    (tuple[int, ...], [[], [1, 2, 3]], [1, [1.0]], "a list of int"),
    (tuple[int, str], [[1, "a"]], [["a", 1], [1], []], "a list of 2: int, str"),
    (list[list[int]], [[[1], []]], [[1], [["a"]]], "a list of a list of int"),
    (list, [[], [1, "a"]], [1, "a"], "a list"),
    (dict, [{}], [[], 1], "dict"),
]


def check(kind: Any, value: Any) -> None:
    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=kind)
    check_arguments(Blueprint("net", nn.Identity, {"x": parameter}, {}), {"x": value})


@pytest.mark.parametrize(("kind", "fitting", "others", "wanted"), KINDS, ids=[str(kind[0]) for kind in KINDS])
def test_a_value_that_fits_passes_and_another_is_told_what_is_wanted(
    kind: Any, fitting: list[Any], others: list[Any], wanted: str
) -> None:
    for value in fitting:
        check(kind, value)
    for value in others:
        with pytest.raises(ValueError, match=r"^net: x=") as caught:
            check(kind, value)
        assert str(caught.value).endswith(f"; wanted: {wanted}.")


@pytest.mark.parametrize("kind", [Any, inspect.Parameter.empty, Callable[..., nn.Module], type[nn.Module], nn.Module])
def test_annotations_that_are_not_of_plain_values_let_everything_pass(kind: Any) -> None:
    for value in (1, "a", [1], None, {}):
        check(kind, value)


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [
        (int, True),
        (Any, True),
        (inspect.Parameter.empty, True),
        (list[int] | None, True),
        (str | Callable[..., Any], True),
        (Callable[..., Any] | None, False),
        (type[nn.Module], False),
        (list[nn.Module], False),
    ],
)
def test_what_yaml_has_a_value_for_is_offered(kind: Any, wanted: bool) -> None:
    parameter = inspect.Parameter("x", inspect.Parameter.KEYWORD_ONLY, annotation=kind)
    assert can_be_written(parameter) is wanted


class Parent(nn.Module):
    def __init__(self, width: int = 3, depth: int = 1) -> None:
        super().__init__()


class Child(Parent):
    def __init__(self, *, width: str = "a", **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Grandchild(Child):
    pass


class Open(nn.Module):
    def __init__(self, a: int, **kwargs: Any) -> None:
        super().__init__()


class Quoted(nn.Module):
    def __init__(self, a: "int", b: "NoSuchName" = 1) -> None:  # type: ignore[name-defined]  # noqa: F821
        super().__init__()


def build(a, /, b, *others, c=1, **more):  # type: ignore[no-untyped-def]
    return nn.Identity()


@pytest.mark.parametrize(
    ("target", "names", "is_open"),
    [
        (Parent, ["width", "depth"], False),
        (Child, ["width", "depth"], False),
        (Grandchild, ["width", "depth"], False),
        (Open, ["a"], True),
        (build, ["b", "c"], True),
        (Quoted, ["a", "b"], False),
        (nn.Module, [], False),
    ],
)
def test_parameters_are_those_of_the_signature_and_of_what_the_rest_goes_on_to(
    target: Callable[..., Any], names: list[str], is_open: bool
) -> None:
    parameters, found_open = parameters_of(target)
    assert (list(parameters), found_open) == (sorted(names, key=list(parameters).index), is_open)
    assert set(parameters) == set(names)


def test_the_nearest_class_has_the_last_word() -> None:
    parameters, _ = parameters_of(Child)
    assert parameters["width"].default == "a"


def test_all_names_are_offered_however_many() -> None:
    names = [f"name_{number}" for number in range(40)]
    offered = offer("name_7x", names)
    assert offered.startswith("nearest: name_7")
    assert offered.endswith("valid: " + ", ".join(names))
    assert offer("x", []) == "it takes no arguments"
