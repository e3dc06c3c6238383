"""The steps of `augment.operations` as a table, made of their dataclasses, so that docs/augmentation.md has no other.

STEPS of configs/operations.py -> step_table -> Markdown
"""

import dataclasses
import inspect
from typing import Any

from configs.operations import STEPS

_HEAD = "| step | field | default | one number x means | limits | meaning |\n| --- | --- | --- | --- | --- | --- |\n"


def step_table() -> str:
    """A line for each kind of step with what it does, and one for each of its fields."""
    names: dict[type, list[str]] = {}
    for name, step in STEPS.items():
        names.setdefault(step, []).append(f"`{name}`")
    return _HEAD + "".join(_lines(step, ", ".join(own)) for step, own in names.items())


def _lines(step: Any, names: str) -> str:
    meanings = _meanings(step)
    lines = [f"| {names} | | | | | **{inspect.getdoc(step).splitlines()[0]}** |"]  # type: ignore[union-attr]
    for field in dataclasses.fields(step):
        alone = _alone(field) if "around" in field.metadata else ""
        limits = f"{field.metadata['least']:g} to {field.metadata['most']:g}"
        lines.append(f"| | `{field.name}` | {_default(field)} | {alone} | {limits} | {meanings[field.name]} |")
    return "\n".join(lines) + "\n"


def _alone(field: "dataclasses.Field[Any]") -> str:
    if field.metadata["around"] == 1:
        return "1 - x to 1 + x" if field.metadata["least"] else "1 - x, but not below 0, to 1 + x"
    return {0: "-x to x", None: "x"}[field.metadata["around"]]


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default is dataclasses.MISSING:
        return "must be given"
    if isinstance(field.default, tuple):
        return f"[{', '.join(f'{value:g}' for value in field.default)}]"
    return f"{field.default:g}"


def _meanings(step: type) -> dict[str, str]:
    """What the docstring's Attributes say of each field."""
    meanings: dict[str, str] = {}
    name = ""
    for line in inspect.cleandoc(step.__doc__ or "").partition("Attributes:\n")[2].splitlines():
        text = line.strip()
        if line.startswith("     "):  # the line before goes on
            meanings[name] += f" {text}"
        else:
            name, _, meanings[name] = text.partition(": ")
    return meanings
