"""Shard files: any part, by any thread, after a way through pickle; files are opened once, and closed."""

import gc
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from pipelines.sources.shards import Shards


@pytest.fixture
def paths(tmp_path: Path) -> list[str]:
    rng = np.random.default_rng(0)
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(rng.bytes(100_000))
    return [str(tmp_path / f"{number}.tar") for number in range(3)]


def read(shards: Shards, shard: int, start: int, num_bytes: int) -> bytes:
    room = memoryview(bytearray(num_bytes))
    shards.read(shard, start=start, room=room)
    return bytes(room)


def num_open() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_more_shards_can_be_open_than_files_by_default(paths: list[str]) -> None:
    code = (
        "import resource, sys; from pipelines.sources.shards import Shards; "
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1])); "
        "shards = Shards(sys.argv[1:] * 40); "
        "print(len({shards.file(shard) for shard in range(120)}), sum(len(shards.mapped(k)) for k in range(120)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["120", str(120 * 100_000)], done.stderr


def test_threads_read_any_part(paths: list[str]) -> None:
    shards, rng = Shards(paths), np.random.default_rng(1)
    spans = [(int(rng.integers(3)), int(start), int(rng.integers(0, 9000))) for start in rng.integers(0, 90_000, 200)]
    whole = [Path(path).read_bytes() for path in paths]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda span: read(shards, *span), spans))
    assert found == [whole[shard][start : start + count] for shard, start, count in spans]


def test_files_are_opened_when_read_once_each_and_closed_at_the_end(paths: list[str]) -> None:
    gc.collect()
    before = num_open()
    shards = Shards(paths)
    assert num_open() == before
    for _ in range(3):
        read(shards, 0, 0, 10)
        read(shards, 2, 5, 10)
        shards.expect(np.array([2, 0]), np.array([0, 5]), np.array([1000, 10]))
    assert num_open() == before + 2
    copy = pickle.loads(pickle.dumps(shards))
    assert num_open() == before + 2
    assert read(copy, 1, 3, 50) == read(shards, 1, 3, 50)
    del shards, copy
    gc.collect()
    assert num_open() == before


def test_reading_behind_the_end_and_a_missing_file_are_told(paths: list[str]) -> None:
    shards = Shards([*paths, "/nowhere/3.tar"])
    with pytest.raises(ValueError, match=r"0\.tar ends before byte 100010: it has been cut short"):
        read(shards, 0, 99_990, 20)
    with pytest.raises(FileNotFoundError):
        read(shards, 3, 0, 1)
