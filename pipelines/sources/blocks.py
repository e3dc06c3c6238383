"""Arrays in one file that every later start maps instead of reading: indexes lie in such files.

meta, arrays -> save_blocks -> a row of .npy blocks: JSON in uint8, one block per array, the CRC-32 of all before it
             -> load_blocks -> meta, arrays (mapped, read-only)

A process holds no copy of the arrays; all processes of a machine share the pages they touch. A file is never changed,
only replaced by a new one, so whoever has mapped it keeps what was mapped.
"""

import filecmp
import io
import json
import os
import secrets
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

_NUM_BYTES_CRC = 128 + 4  # the last block: the header of an .npy and one uint32
_ALIGNMENT = 64  # bytes
_READ_AT_ONCE = 2**20  # bytes


def save_blocks(path: Path, *, meta: Mapping[str, Any], arrays: Sequence[npt.NDArray[Any]]) -> None:
    """Writes the file whole or not at all; of several processes that write at once one wins.

    Args:
        path: The file.
        meta: What JSON can hold.
        arrays: Those with the widest items first, so that each starts at a multiple of its item's size.

    Raises:
        OSError: The folder of `path` cannot be made or written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(unfinished, "xb") as file:
            _write_blocks(file, meta, arrays)
            file.flush()
            os.fsync(file.fileno())
        # a file that is the same stays: others, perhaps on other machines, have it mapped
        if not (path.exists() and filecmp.cmp(unfinished, path, shallow=False)):
            os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_blocks(path: Path) -> tuple[dict[str, Any], list[npt.NDArray[Any]]]:
    """What `save_blocks` wrote: meta, and the arrays mapped read-only.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is not whole.
    """
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if not _is_whole(file, num_bytes):
            raise ValueError("it is not whole")
        meta = json.loads(_map_block(file).tobytes())
        arrays = []
        while file.tell() < num_bytes - _NUM_BYTES_CRC:
            arrays.append(_map_block(file))
    return meta, arrays


def _write_blocks(file: BinaryIO, meta: Mapping[str, Any], arrays: Sequence[npt.NDArray[Any]]) -> None:
    text = json.dumps(meta).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    crc = _write_block(file, np.frombuffer(text, dtype=np.uint8), 0)
    for array in arrays:
        crc = _write_block(file, array, crc)
    _write_block(file, np.array(crc, dtype=np.uint32), 0)


def _write_block(file: BinaryIO, array: npt.NDArray[Any], crc: int) -> int:
    """Writes an .npy, and gives the CRC-32 of everything so far."""
    header, array = io.BytesIO(), np.ascontiguousarray(array)
    np.lib.format.write_array_header_1_0(header, np.lib.format.header_data_from_array_1_0(array))
    for part in (header.getvalue(), array.reshape(-1).view(np.uint8).data):
        file.write(part)
        crc = zlib.crc32(part, crc)
    return crc


def _is_whole(file: BinaryIO, num_bytes: int) -> bool:
    """Whether the CRC-32 at the end is that of what lies before; 0.05 s for 1,280,000 files."""
    left, crc = num_bytes - _NUM_BYTES_CRC, 0
    while left > 0:
        part = file.read(min(left, _READ_AT_ONCE))
        if not part:
            return False
        left, crc = left - len(part), zlib.crc32(part, crc)
    last = file.read()
    file.seek(0)
    return left == 0 and len(last) == _NUM_BYTES_CRC and last[-4:] == np.uint32(crc).tobytes()


def _map_block(file: BinaryIO) -> npt.NDArray[Any]:
    """The block that starts here, mapped from this very file, whatever now lies at its path; then goes on behind it."""
    np.lib.format.read_magic(file)
    shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    start = file.tell()
    if 0 in shape:
        return np.empty(shape, dtype=dtype)
    mapped = np.memmap(file, dtype=dtype, mode="r", offset=start, shape=shape)
    file.seek(start + mapped.nbytes)
    return mapped.view(np.ndarray)  # the same memory without the class, which makes every access slower
