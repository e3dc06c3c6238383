"""Scratch memory: it is used again, grows where it must, and gives the bytes that are on disk."""

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines import scratch as scratch_module
from pipelines.scratch import Arena, Scratch


def test_a_file_is_read_as_it_is_on_disk_whatever_was_read_before(tmp_path: Path) -> None:
    scratch, rng = Scratch(), np.random.default_rng(0)
    for number, num_bytes in enumerate([10, 100_000, 0, 7, 100_001, 99]):
        path = tmp_path / str(number)
        path.write_bytes(rng.bytes(num_bytes))
        assert bytes(scratch.read_file(str(path))) == path.read_bytes()


def test_a_file_that_cannot_be_read_is_an_os_error_and_leaves_no_file_open(tmp_path: Path) -> None:
    num_open = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Scratch().read_file(str(tmp_path / "gone"))
    with pytest.raises(IsADirectoryError):
        Scratch().read_file(str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == num_open


@pytest.mark.parametrize("room", ["pixels", "window"])
def test_memory_is_the_same_until_more_is_needed(room: str) -> None:
    ask = getattr(Scratch(), room)
    first = ask(1000)
    assert (first.dtype, first.ndim, len(first) >= 1000) == (np.uint8, 1, True)
    assert np.shares_memory(ask(10), first)
    assert np.shares_memory(ask(1000), first)
    larger = ask(100_000)
    assert len(larger) >= 100_000
    assert np.shares_memory(ask(1000), larger)


@pytest.mark.parametrize("room", ["pixels", "window"])
def test_one_giant_image_does_not_stay_in_memory(room: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch_module, "_MOST_KEPT", 10_000)
    ask = getattr(Scratch(), room)
    kept, giant = ask(1000), ask(10_001)
    assert len(giant) >= 10_001
    assert np.shares_memory(ask(1000), kept)
    assert not np.shares_memory(ask(10_001), giant)


def test_pixels_and_window_do_not_lie_in_the_same_memory() -> None:
    scratch = Scratch()
    assert not np.shares_memory(scratch.pixels(1000), scratch.window(1000))


def test_an_arena_keeps_every_file_until_it_is_cleared(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    contents = [rng.integers(0, 256, size, dtype=np.uint8).tobytes() for size in (10, 0, 3000, 100, 7, 40_000, 5)]
    paths = [tmp_path / str(number) for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    arena = Arena()
    for _ in range(4):  # it grows, then it has room for all
        arena.clear()
        files = [arena.read_file(os.fsencode(path)) for path in paths]
        assert [bytes(file) for file in files] == contents
    with pytest.raises(FileNotFoundError):
        arena.read_file(str(tmp_path / "none"))
