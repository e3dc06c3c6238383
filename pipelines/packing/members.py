"""The samples of a WebDataset shard: members of a tar file whose names are the same up to the first dot.

a/7.jpg a/7.cls a/8.jpg a/8.cls -> (a/7: jpg, cls), (a/8: jpg, cls)

Names are only compared and told; nothing is extracted, and no name is used as a path.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_KEY = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)  # the key, and the suffix behind the first dot
_READ_AT_ONCE = 2**20  # bytes


class Span(NamedTuple):
    """Where the content of a member lies in the file, in bytes."""

    start: int
    num_bytes: int


class Found(NamedTuple):
    """A sample: its key, its members by suffix in small letters, and what is wrong with it, if anything."""

    key: str
    spans: dict[str, Span]
    fault: str | None


def find_samples(path: Path) -> Iterator[Found]:
    """The samples of a shard, in its order; folders, links and members that have no suffix are passed over.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is no tar file, compressed, or not whole.
    """
    key: str | None = None
    fault: str | None = None
    spans: dict[str, Span] = {}
    for name, span in _members(path):
        match = _KEY.fullmatch(name)
        if match is None:
            continue
        suffix = match[2].lower()
        if match[1] != key:
            if key is not None:
                yield Found(key, spans, fault)
            key, spans, fault = match[1], {}, None
        if suffix in spans:
            fault = f"it has two members .{suffix}"
        spans[suffix] = span
    if key is not None:
        yield Found(key, spans, fault)


def _members(path: Path) -> Iterator[tuple[str, Span]]:
    """Names and places of the regular files in a tar file."""
    num_bytes = path.stat().st_size
    try:
        with tarfile.open(path, "r:", errors="surrogateescape") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                if member.issparse():
                    raise ValueError(f"{path} has a sparse member, {member.name!r}; write it anew without --sparse.")
                if member.offset_data + member.size > num_bytes:
                    raise ValueError(_cut_short(path))
                if member.isreg():
                    yield member.name, Span(member.offset_data, member.size)
            _check_end(path, tar.offset, num_bytes)
    except tarfile.TarError as error:
        raise ValueError(
            f"{path} cannot be read as a tar file ({error}): it is damaged, cut short or compressed; copy it again, or "
            "decompress it first."
        ) from error


def _check_end(path: Path, end: int, num_bytes: int) -> None:
    """Checks that a tar file ends where its reader stopped: that stops at a broken header without a word."""
    if end >= num_bytes:
        raise ValueError(_cut_short(path))
    with open(path, "rb") as file:
        file.seek(end)
        while part := file.read(_READ_AT_ONCE):
            if part.count(0) != len(part):
                raise ValueError(
                    f"{path} is not whole, or several tar files in one: behind byte {end} lies no header of a member; "
                    "copy it again."
                )


def _cut_short(path: Path) -> str:
    return f"{path} ends without a tar file's end: it has been cut short; copy it again."


def read_span(path: str, span: Span) -> bytes:
    """The content of a member.

    Raises:
        OSError: The file cannot be read.
        ValueError: It has become shorter.
    """
    with open(path, "rb", buffering=0) as file:
        content = os.pread(file.fileno(), span.num_bytes, span.start)
    if len(content) != span.num_bytes:
        raise ValueError("the shard has become shorter")
    return content
