"""Tar files, the same to the byte whoever writes them, in the layout that WebDataset reads: KEY.jpg, KEY.cls, ...

The header of a member holds nothing but its name and size: no owner, no time.
"""

import os
import tarfile
from typing import BinaryIO

_BLOCK = 512  # bytes
_END = bytes(2 * _BLOCK)


def write_member(file: BinaryIO, name: str, content: bytes) -> int:
    """Adds a member; gives the place of its content in the file.

    Raises:
        OSError: It cannot be written.
    """
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), 0o644
    file.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
    start = file.tell()
    file.write(content)
    file.write(bytes(-len(content) % _BLOCK))
    return start


def num_bytes_of_member(content: bytes) -> int:
    """What a member takes in the file."""
    return _BLOCK + len(content) + -len(content) % _BLOCK


def num_bytes_of_file(num_bytes_of_members: int) -> int:
    """What a file with members of that many bytes takes, with its end."""
    return -(-(num_bytes_of_members + len(_END)) // tarfile.RECORDSIZE) * tarfile.RECORDSIZE


def finish(file: BinaryIO) -> None:
    """Writes the end, and all of it to disk.

    Raises:
        OSError: It cannot be written.
    """
    file.write(_END)
    file.write(bytes(-file.tell() % tarfile.RECORDSIZE))
    file.flush()
    os.fsync(file.fileno())
