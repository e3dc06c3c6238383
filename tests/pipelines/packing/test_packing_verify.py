"""What is not as it was packed is named, whatever byte it is; and other programs read the shards."""

import io
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
from executor_builders import DALI_IS_EXPECTED
from packed_cases import files_of, flip_byte, opened, pack_folder, write_many, write_varied

from pipelines.build import verify_packed
from pipelines.sources.packed import PackedSource


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack_folder(write_many(tmp_path / "r", 12), tmp_path / "d", shard_mib=0.011)
    return tmp_path / "d"


def faults(root: Path) -> list[str]:
    return list(verify_packed(root, show_progress=False))


@pytest.mark.parametrize("mode", ["keep", "jpeg", "raw"])
def test_what_was_packed_is_found_whole(tmp_path: Path, mode: str) -> None:
    pack_folder(write_varied(tmp_path / "r", with_bad=True), tmp_path / "d", mode)
    assert faults(tmp_path / "d") == []


def test_any_flipped_byte_is_found_and_said_to_be_in_which_sample_or_in_none(packed: Path) -> None:
    source = opened(packed)["train"]
    starts, sizes = source.index.offsets_N, source.index.num_bytes_N
    shard = Path(source.shards.paths[0])
    num_bytes, rng, hits = shard.stat().st_size, np.random.default_rng(0), [0, 0]
    for place in [0, 600, num_bytes - 1, *rng.integers(0, num_bytes, 12).tolist()]:
        hit = [
            i for i in np.flatnonzero(source.index.shards_N == 0).tolist() if starts[i] <= place < starts[i] + sizes[i]
        ]
        flip_byte(shard, place)
        first, *rest = faults(packed)
        flip_byte(shard, place)
        assert first.startswith(f"{shard}: its bytes are not those that were packed; ")
        assert len(rest) == len(hit)
        if hit:
            assert rest[0] == f"{source.describe(hit[0])}: its bytes are not those that were packed"
        else:
            assert "no image is hit: what differs are the tar's own headers, or labels (.cls)" in first
        hits[bool(hit)] += 1
    assert min(hits) >= 2
    assert faults(packed) == []


def test_a_missing_a_short_and_a_long_shard_are_named(packed: Path) -> None:
    source = opened(packed)["train"]
    paths = [Path(path) for path in source.shards.paths]
    assert len(paths) >= 3
    paths[0].unlink()
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[:1500])
    with open(paths[2], "ab") as file:
        file.write(bytes(512))
    found = faults(packed)
    assert f"{paths[0]}: cannot be read: FileNotFoundError: No such file or directory; copy it again" in found
    assert any(line.startswith(f"{paths[1]}: it has 1,500 bytes, but {len(whole):,} were packed") for line in found)
    assert any(line.startswith(f"{paths[2]}: it has ") and "no image is hit" in line for line in found)
    assert sum(f"{paths[0]} at byte" in line for line in found) == 0, "one line says it of all its samples"
    cut = [line for line in found if f"{paths[1]} at byte" in line]
    assert len(cut) >= 1
    assert all("it has been cut short" in line for line in cut)


# --- other programs


@pytest.fixture(params=["keep", "jpeg", "raw"])
def shards(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, PackedSource]:
    pack_folder(write_many(tmp_path / "r", 12), tmp_path / "d", request.param, shard_mib=0.05)
    return request.param, opened(tmp_path / "d")["train"]


def test_tar_lists_and_unpacks_them(shards: tuple[str, PackedSource], tmp_path: Path) -> None:
    _, source = shards
    out = tmp_path / "out"
    out.mkdir()
    for path in source.shards.paths:
        subprocess.run(["tar", "-xf", path, "-C", out], check=True, capture_output=True)
    names = sorted(files_of(out))
    assert len(names) == 24
    for i in range(12):
        (image,) = out.glob(f"{i:09}.[!c]*")
        assert image.read_bytes() == source.read_bytes(i)
        assert (out / f"{i:09}.cls").read_text() == str(source.labels_N[i])
    with tarfile.open(source.shards.paths[0]) as tar:
        assert {(member.uid, member.mtime, member.uname) for member in tar} == {(0, 0, "")}


# webdataset leaves closing its files to the garbage collector
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_webdataset_reads_them(shards: tuple[str, PackedSource]) -> None:
    webdataset = pytest.importorskip("webdataset", reason="the package webdataset is not installed")
    mode, source = shards
    suffix = "npy" if mode == "raw" else "jpg"
    samples = list(
        webdataset.WebDataset(list(source.shards.paths), shardshuffle=False).to_tuple("__key__", suffix, "cls")
    )
    assert [key for key, _, _ in samples] == [f"{i:09}" for i in range(12)]
    for i, (_, content, label) in enumerate(samples):
        assert content == source.read_bytes(i)
        assert int(label) == source.labels_N[i]
    decoded = (
        webdataset.WebDataset(list(source.shards.paths), shardshuffle=False).decode("rgb8").to_tuple(suffix, "cls")
    )
    for i, (pixels, label) in enumerate(decoded):
        np.testing.assert_array_equal(pixels, source.read_image(i, channels=3))
        assert label == source.labels_N[i]


@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="there are no builds of DALI for this machine")
def test_dali_reads_them(shards: tuple[str, PackedSource]) -> None:
    from nvidia.dali import fn, pipeline_def

    mode, source = shards
    suffix = "npy" if mode == "raw" else "jpg"

    @pipeline_def(batch_size=12, num_threads=1, device_id=None)
    def read() -> tuple[object, ...]:
        return tuple(fn.readers.webdataset(paths=list(source.shards.paths), ext=[suffix, "cls"]))

    graph = read()
    graph.build()
    contents, labels = graph.run()
    for i in range(12):
        content = np.asarray(contents[i]).tobytes()
        assert content == source.read_bytes(i)
        assert int(np.asarray(labels[i]).tobytes()) == source.labels_N[i]
        if mode == "raw":
            np.testing.assert_array_equal(np.load(io.BytesIO(content)), source.read_image(i, channels=3))
