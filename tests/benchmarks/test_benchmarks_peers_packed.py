"""Jobs of images stored beforehand: what is stored, who reads it, and that a peer harms nobody's files."""

import os
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from benchmarks import loader
from benchmarks.ours import OURS_PACKED_JPEG
from benchmarks.peers_job import ImagenetJob
from benchmarks.peers_packed import PEERS_PACKED_JPEG, PEERS_PACKED_RAW, import_litdata
from benchmarks.peers_pixels import RESIZES_PIXELS, RESIZES_STORED, mean_difference_from_pillow
from benchmarks.recipes import read_csv
from benchmarks.stored_images import store_images

PACKAGES = {  # of the peers that are not among the project's own packages
    "ffcv": "ffcv",
    "spdl": "spdl.io",
    "webdataset": "webdataset",
    "litdata": "litdata",
    "mosaicml": "streaming",
}
NUM_IMAGES = 12


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files, 600 to 622 px wide and 450 high, of smooth colours."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    for number in range(NUM_IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        image = coarse.resize((600 + 2 * number, 450), Image.Resampling.BICUBIC)
        image.save(folder / f"{number}.JPEG", quality=95, subsampling="4:4:4")
    return folder


@pytest.fixture
def make_job(photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ImagenetJob]:
    monkeypatch.setattr(loader, "_IMAGENET_REPEATS", 1)

    def make(name: str) -> ImagenetJob:
        job = loader.make_job(name, photographs, tmp_path / name / "contender", 1)
        assert isinstance(job, ImagenetJob)
        return job

    return make


def size_of(path: str) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def test_photographs_are_stored_once_as_jpeg_at_ffcvs_settings(
    make_job: Callable[[str], ImagenetJob], photographs: Path
) -> None:
    job = make_job("packed_400")
    assert (job.stored, job.long_side_px, job.quality) == ("jpeg", 400, 90)
    written = [os.stat(path).st_mtime_ns for path in job.paths]
    for path, original in zip(job.paths, job.originals or (), strict=True):
        with Image.open(original) as image:
            expected = image.resize((400, round(400 * 450 / image.width)), Image.Resampling.BILINEAR)
        with Image.open(path) as stored:
            assert stored.format == "JPEG"
            assert JpegImagePlugin.get_sampling(stored) == 2  # Pillow's number for 4:2:0
            assert stored.size == expected.size
            assert np.abs(np.asarray(stored).astype(int) - np.asarray(expected)).mean() < 2
            assert stored.quantization[0][0] == 3  # quality 90 in the standard's table: 16 * 0.2, rounded
    assert list(job.originals or ()) == sorted(map(str, photographs.iterdir()))
    assert [os.stat(path).st_mtime_ns for path in make_job("packed_400").paths] == written


def test_images_stay_at_their_size_where_none_is_told_or_where_they_are_smaller(
    make_job: Callable[[str], ImagenetJob], photographs: Path, tmp_path: Path
) -> None:
    sizes = [size_of(path) for path in sorted(map(str, photographs.iterdir()))]
    assert [make_job("packed_original").load(index)[0].size for index in range(NUM_IMAGES)] == sizes
    small = store_images(
        sorted(map(str, photographs.iterdir())), folder=tmp_path / "s", stored="raw", long_side_px=9999, quality=90
    )
    assert [size_of(path) for path in small] == sizes


def test_pixels_are_stored_as_they_are(make_job: Callable[[str], ImagenetJob]) -> None:
    job = make_job("packed_raw")
    for index, original in enumerate(job.originals or ()):
        with Image.open(original) as image:
            expected = image.resize((400, round(400 * 450 / image.width)), Image.Resampling.BILINEAR)
        assert np.array_equal(job.load(index)[0], expected)
        assert os.stat(job.paths[index]).st_size == pytest.approx(np.asarray(expected).size, abs=20)
        assert job.load_original(index)[0].size == size_of(original)


def test_the_jobs_have_these_contenders() -> None:
    archives = {"ffcv", "webdataset", "litdata", "mosaicml"}
    files = {"dali", "albumentations", "albumentations_area", "torchvision_tensors", "torchvision_pil", "timm", "spdl"}
    assert set(PEERS_PACKED_JPEG) == {*archives, *files, "decode"}
    assert set(PEERS_PACKED_RAW) == {*archives, "torchvision_pil"}
    assert "threads_files" in OURS_PACKED_JPEG


@pytest.mark.filterwarnings("default")  # peers' own: torchvision's decoder is deprecated, others leave files open
@pytest.mark.parametrize("name", ["packed_400", "packed_raw"])
def test_every_contender_that_is_installed_gives_batches_of_the_job(
    name: str, make_job: Callable[[str], ImagenetJob], tmp_path: Path
) -> None:
    seen = 0
    for contender, build in loader._CONTENDERS[name].items():
        if contender == "decode" or not _installed(contender):
            continue
        job = make_job(name)
        folder = tmp_path / contender
        folder.mkdir()
        small = ImagenetJob(**{**vars(job), "folder": folder, "batch_size": 2, "size_px": 32})
        epoch = build(small)
        batches = [torch.as_tensor(images).clone() for images in epoch()]
        assert len(batches) in (NUM_IMAGES // 2, 4), contender  # some drop the end of each shard or worker
        for images in batches:
            assert images.dtype == torch.uint8, contender
            assert sorted(images.shape) == [2, 3, 32, 32], contender
            assert images.float().std() > 5, contender
        assert sum(1 for _ in epoch()) == len(batches), contender
        seen += 1
    assert seen >= (1 if name == "packed_raw" else 5)


@pytest.mark.filterwarnings("default")  # peers' own: torchvision's decoder is deprecated, others leave files open
@pytest.mark.parametrize(("name", "resizes"), [("packed_400", RESIZES_STORED), ("packed_raw", RESIZES_PIXELS)])
def test_pixels_of_every_contender_are_told_from_what_was_stored(
    name: str, resizes: dict, make_job: Callable[[str], ImagenetJob]
) -> None:
    missing = set(loader._CONTENDERS[name]) - set(resizes) - {"decode"}
    assert not missing
    paths = make_job(name).paths[:4]
    for contender in ("torchvision_pil", "webdataset", "mosaicml", "litdata"):
        # the same pixels by Pillow; by torch's own resize, which rounds in other places, nearly
        assert mean_difference_from_pillow(resizes[contender], paths=paths, size_px=64) < 0.6, contender
    assert mean_difference_from_pillow(resizes["torchvision_pil"], paths=paths, size_px=64) == 0
    if _installed("ffcv"):  # areas are averaged, but nothing is encoded anew
        assert mean_difference_from_pillow(resizes["ffcv"], paths=paths, size_px=64) < 1.5


def _installed(contender: str) -> bool:
    package = PACKAGES.get(contender)
    if package is None:
        return True
    try:
        if contender == "spdl":
            from benchmarks.peers_imagenet import import_spdl_io

            import_spdl_io()
        else:
            __import__(package)
    except ImportError:
        return False
    return True


def test_litdata_is_told_where_its_caches_lie_before_it_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER"):
        monkeypatch.setenv(name, str(tmp_path.parent))  # so that it is as it was after the test
    monkeypatch.setitem(sys.modules, "litdata", types.ModuleType("litdata"))
    import_litdata(tmp_path)
    told = {os.environ[name] for name in ("DATA_OPTIMIZER_CACHE_FOLDER", "DATA_OPTIMIZER_DATA_CACHE_FOLDER")}
    assert len(told) == 2
    assert all(Path(folder).is_relative_to(tmp_path) for folder in told)


@pytest.mark.filterwarnings("default")  # peers' own: torchvision's decoder is deprecated, others leave files open
def test_litdata_leaves_the_folders_data_and_chunks_of_the_temporary_folder_alone(
    make_job: Callable[[str], ImagenetJob], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("litdata", reason="a peer, of benchmarks/peers.txt")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("data", "chunks"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "somebody's").touch()
    job = make_job("packed_400")
    PEERS_PACKED_JPEG["litdata"](job)
    assert [(tmp_path / name / "somebody's").exists() for name in ("data", "chunks")] == [True, True]


def test_a_contender_has_a_temporary_folder_of_its_own(tmp_path: Path) -> None:
    code = "import tempfile; print(tempfile.gettempdir())"
    process = loader._start([sys.executable, "-c", code], errors=tmp_path / "e.txt", temporary=tmp_path / "own")
    assert process.communicate()[0].strip() == str(tmp_path / "own")


# --- why a contender was not measured


def test_reasons_go_into_the_table_and_the_csv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loader, "_RESULTS", tmp_path)
    measured = {
        "litdata": "ModuleNotFoundError: No module named 'boto3'",
        "ffcv": loader.Measured([90.4, 100.2, 110.0], [50.0, 51.0, 52.0], [10.0, 12.0, 11.0]),
    }
    loader._save("packed_400", loader.report(measured, differences={"ffcv": 1.48}))
    assert (
        "litdata                not measured: ModuleNotFoundError: No module named 'boto3'" in capsys.readouterr().out
    )
    ffcv, litdata = read_csv(tmp_path / "loader_packed_400.csv")
    assert (ffcv["contender"], ffcv["images_per_s"], ffcv["lowest"], ffcv["highest"]) == ("ffcv", "100", "90", "110")
    assert (ffcv["memory_mib"], ffcv["difference_of_255"], ffcv["repeats"], ffcv["reason"]) == ("12", "1.480", "3", "")
    assert litdata["reason"] == "ModuleNotFoundError: No module named 'boto3'"
    assert (litdata["contender"], litdata["images_per_s"], litdata["repeats"]) == ("litdata", "", "0")
    assert litdata["date"] == ffcv["date"] != ""
    assert "webdataset" in litdata["versions"]
