"""Arrays in a file: what comes back, and that a file that is not whole never does."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources.blocks import load_blocks, save_blocks

ARRAYS = [
    np.arange(7, dtype=np.int64),
    np.arange(12, dtype=np.int32).reshape(6, 2),
    np.array([b"a/1.jpg", b"\xff\xfe.png"]),
    np.empty((0, 5), dtype=np.int32),
    np.array([], dtype=np.float64),
    np.array([True, False]),
]
META = {"version": 3, "name": "späte\udcff", "list": [1, [2, None]]}


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save_blocks(tmp_path / "new" / "x", meta=META, arrays=ARRAYS)
    meta, arrays = load_blocks(tmp_path / "new" / "x")
    assert meta == META
    assert len(arrays) == len(ARRAYS)
    for found, wanted in zip(arrays, ARRAYS, strict=True):
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
        np.testing.assert_array_equal(found, wanted)
        assert type(found) is np.ndarray
    with pytest.raises(ValueError, match="read-only"):
        arrays[0][0] = 1
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["x"]


def test_any_flipped_byte_and_any_other_length_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_blocks(path, meta=META, arrays=ARRAYS)
    whole = path.read_bytes()
    header = range(len(whole) - 132, len(whole) - 4)  # of the checksum itself: nothing is read from it
    for place in set(range(0, len(whole), 7)) - set(header):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="it is not whole"):
            load_blocks(path)
    for length in (0, 1, 131, 132, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="it is not whole"):
            load_blocks(path)
    path.write_bytes(whole + whole)
    with pytest.raises(ValueError, match="it is not whole"):
        load_blocks(path)


def test_the_same_again_leaves_the_file_and_something_else_replaces_it(tmp_path: Path) -> None:
    path = tmp_path / "x"
    save_blocks(path, meta=META, arrays=ARRAYS)
    before, (_, mapped) = path.stat().st_ino, load_blocks(path)
    save_blocks(path, meta=META, arrays=ARRAYS)
    assert path.stat().st_ino == before
    save_blocks(path, meta=META, arrays=[ARRAYS[0] + 1])
    assert path.stat().st_ino != before
    np.testing.assert_array_equal(mapped[0], ARRAYS[0], "whoever has mapped it keeps what was mapped")


def test_a_failed_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError("full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        save_blocks(tmp_path / "x", meta=META, arrays=ARRAYS)
    assert not list(tmp_path.iterdir())
