"""A sample of a WebDataset shard -> its label, and what the index says of its image.

Legend: a sample has an image (.jpg, .png, ..., .npy) and a label (.cls, or "label" or "cls" of its .json).
"""

import json
from dataclasses import replace
from typing import Any, NamedTuple

from pipelines.packing.members import Found, Span, read_span
from pipelines.packing.stored import Stored, describe_encoded, describe_raw
from pipelines.sources.folder import explain

_IMAGES = ("jpg", "jpeg", "png", "webp", "ppm", "bmp", "npy")  # the first that a sample has is its image
_MOST_LABEL_BYTES = 2**24


class Examined(NamedTuple):
    """A sample that can be used; stored: without its content. label: the class number, or the class name."""

    name: str
    label: str
    span: Span
    stored: Stored


class Examiner:
    """Examines samples.

    Args:
        class_names: What labels count in, or are found in; None = whatever labels there are.
        decode: Whether images are decoded whole.
    """

    def __init__(self, class_names: tuple[str, ...] | None, *, decode: bool) -> None:
        self._class_names, self._decode = class_names, decode

    def examine(self, path: str, found: Found) -> Examined:
        """A sample of the shard `path`.

        Raises:
            ValueError: It has no image or no label, or one that cannot be used; the message gives the reason.
        """
        if found.fault is not None:
            raise ValueError(found.fault)
        suffix = next((suffix for suffix in _IMAGES if suffix in found.spans), None)
        if suffix is None:
            have = ", ".join(f".{name}" for name in found.spans)
            raise ValueError(f"it has no image (.{', .'.join(_IMAGES)}), only {have}")
        try:
            label = self._class_of(_label_of(path, found))
            content = read_span(path, found.spans[suffix])
            stored = describe_raw(content) if suffix == "npy" else describe_encoded(content, decode=self._decode)
        except OSError as error:
            raise ValueError(explain(error)) from error
        return Examined(f"{found.key}.{suffix}", label, found.spans[suffix], replace(stored, content=b""))

    def _class_of(self, label: str) -> str:
        """The label, held against the class names: then a number."""
        if self._class_names is None:
            return label
        if label.isdecimal():
            if int(label) >= len(self._class_names):
                raise ValueError(f"its label is {label}, and there are {len(self._class_names)} class names, from 0 on")
            return label
        if label not in self._class_names:
            raise ValueError(f"its label {label!r} is not among the class names")
        return str(self._class_names.index(label))


def _label_of(path: str, found: Found) -> str:
    """The class number in its shortest form, or the class name."""
    for suffix in ("cls", "json"):
        span = found.spans.get(suffix)
        if span is None:
            continue
        if span.num_bytes > _MOST_LABEL_BYTES:
            raise ValueError(f"its .{suffix} has {span.num_bytes:,} bytes, which is no label")
        try:
            text = read_span(path, span).decode()
            said: Any = text if suffix == "cls" else _label_in(json.loads(text))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"its .{suffix} cannot be read ({type(error).__name__})") from error
        if said is not None:
            return _checked(said)
    have = ", ".join(f".{name}" for name in found.spans)
    raise ValueError(f'it has no label (.cls, or "label" or "cls" in its .json), only {have}')


def _label_in(said: Any) -> Any:
    if not isinstance(said, dict):
        return None
    return said["label"] if said.get("label") is not None else said.get("cls")


def _checked(said: Any) -> str:
    if isinstance(said, bool) or not isinstance(said, int | str):
        raise ValueError(f"its label is {str(said)[:50]}, which is neither a number nor a name")
    label = str(said).strip()
    if not label:
        raise ValueError("its label is empty")
    digits = label.removeprefix("-")
    if digits.isascii() and digits.isdecimal():
        if label.startswith("-"):
            raise ValueError(f"its label is {label[:50]}, and class numbers start at 0")
        if len(digits) > 18:
            raise ValueError(f"its label is a number of {len(digits)} digits, which is no class")
        return str(int(digits))
    return label
