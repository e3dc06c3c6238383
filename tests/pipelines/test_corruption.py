"""1,000 broken files among good ones: no executor crashes or hangs, all do the same, and every broken file is told."""

import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from configs.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    InputSpec,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from pipelines.build import Place, build_data, build_evaluation_loader, build_training_loader

NUM_BROKEN = 1000
NUM_GOOD = 300
SIZE_PX = 48
BACKENDS = ("threads", "reference", "resident", *(["dali"] if DALI_IS_EXPECTED else []))
PLACE = Place(torch.device("cpu"), torch.float32, 0, 1, 2)
MOST_MIB = 700  # what a giant header (7 GB of pixels) would go far beyond


def make_jpeg(path: Path, rng: np.random.Generator) -> bytes:
    """A small JPEG; a copy of a real one, if REAL_JPEGS names a folder of such."""
    real = sorted(Path(os.environ["REAL_JPEGS"]).glob("*.JPEG")) if "REAL_JPEGS" in os.environ else []
    if real:
        path.write_bytes(real[rng.integers(len(real))].read_bytes())
        return path.read_bytes()
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    coarse.resize((64, 48), Image.Resampling.BICUBIC).save(path, quality=92)
    return path.read_bytes()


def truncated(jpeg: bytes, rng: np.random.Generator) -> bytes:
    return jpeg[: rng.integers(2, len(jpeg) - 2)]


def bits_flipped(jpeg: bytes, rng: np.random.Generator) -> bytes:
    broken = bytearray(jpeg)
    for place in rng.integers(20, len(jpeg), 12):
        broken[place] ^= 1 << int(rng.integers(8))
    return bytes(broken)


def wrong_extension(jpeg: bytes, rng: np.random.Generator) -> bytes:
    return b"RIFF\x24\x00\x00\x00WAVEfmt " + bytes(rng.integers(0, 256, 400, dtype=np.uint8))


def empty(jpeg: bytes, rng: np.random.Generator) -> bytes:
    return b""


def html(jpeg: bytes, rng: np.random.Generator) -> bytes:
    return b"<!DOCTYPE html><html><body>404 Not Found</body></html>"


def giant_header(jpeg: bytes, rng: np.random.Generator) -> bytes:
    """The frame header (marker SOF0) claims 50,000 x 50,000 pixels."""
    start = max(jpeg.rfind(b"\xff\xc0\x00\x11"), jpeg.rfind(b"\xff\xc0\x00\x0b"))  # colour or grey
    side = (50000).to_bytes(2, "big")
    return jpeg[: start + 5] + side + side + jpeg[start + 9 :]


BREAKERS = (truncated, bits_flipped, wrong_extension, empty, html, giant_header)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes; in each, good and broken files lie mixed."""
    root = tmp_path_factory.mktemp("broken")
    rng = np.random.default_rng(0)
    for number in range(NUM_GOOD + NUM_BROKEN):
        path = root / "train" / "ab"[number % 2] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        jpeg = make_jpeg(path, rng)
        if number >= NUM_GOOD:
            path.write_bytes(BREAKERS[number % len(BREAKERS)](jpeg, rng))
    return root


@pytest.fixture(scope="module")
def unreadable(root: Path) -> set[str]:
    """The files that do not decode whole, found by the strictest reader at hand, one by one."""
    import simplejpeg

    bad = set()
    for path in sorted(root.rglob("*.jpg")):
        try:
            encoded = path.read_bytes()
            height, width, *_ = simplejpeg.decode_jpeg_header(encoded)
            if height * width > 10**8:
                raise ValueError("giant")
            simplejpeg.decode_jpeg(encoded, strict=True)
            with Image.open(path) as image:  # a header that Pillow does not understand is bad, too
                image.load()
        except (ValueError, OSError, SyntaxError, Image.DecompressionBombError):
            bad.add(str(path))
    assert NUM_BROKEN * 0.9 < len(bad) <= NUM_BROKEN  # some flipped bits leave a whole JPEG
    return bad


def make_config(root: Path, *, backend: str, train: str, evaluation: str, verify: bool = False) -> Config:
    return Config(
        data=DataConfig(
            dataset="folder",
            root=str(root),
            val_frac=0.0,
            on_bad_sample=train,
            on_bad_eval_sample=evaluation,
            max_bad_frac=0.99,
            verify=verify,
        ),
        input=InputSpec(size_px=SIZE_PX, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        augment=AugmentConfig(flip="random"),
        loader=LoaderConfig(backend=backend, num_threads=2, num_workers=2, eval_batch_size_per_rank=100),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=1, global_batch_size=100),
        run=RunConfig(select="last"),
    )


@pytest.fixture
def _own_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXACTVISION_CACHE", str(tmp_path / "index"))  # no verdict of another test is known


@pytest.mark.usefixtures("_own_index")
@pytest.mark.parametrize("verify", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_raise_stops_and_names_a_file(backend: str, verify: bool, root: Path, unreadable: set[str]) -> None:
    config = make_config(root, backend=backend, train="raise", evaluation="raise", verify=verify)
    with pytest.raises(ValueError, match="cannot be read") as caught:
        build_data(config, show_progress=False)
    assert any(path in str(caught.value) for path in unreadable)
    assert "--data.on_bad_sample replace" in str(caught.value)


@pytest.mark.usefixtures("_own_index")
@pytest.mark.parametrize("backend", BACKENDS)
def test_raise_stops_at_a_file_that_is_found_to_be_broken_only_when_it_is_read(
    backend: str, tmp_path: Path, make_good: Callable[[Path], None]
) -> None:
    make_good(tmp_path / "train")
    config = make_config(tmp_path, backend=backend, train="raise", evaluation="raise")
    data = build_data(config, show_progress=False)
    victim = tmp_path / "train/a/007.jpg"
    victim.write_bytes(victim.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"a/007\.jpg: ") as caught:
        list(build_training_loader(config, data, place=PLACE, show_progress=False))
    assert "--data.on_bad_sample replace" in str(caught.value)


@pytest.fixture
def make_good() -> Callable[[Path], None]:
    def make(split: Path) -> None:
        rng = np.random.default_rng(1)
        for name in "ab":
            (split / name).mkdir(parents=True)
            for number in range(50):
                make_jpeg(split / name / f"{number:03}.jpg", rng)

    return make


def test_replace_gives_whole_batches_of_the_same_samples_on_every_backend(
    root: Path, unreadable: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    before_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for backend in BACKENDS:
        for verify in (False, True):
            monkeypatch.setenv("EXACTVISION_CACHE", str(tmp_path / f"{backend}{verify}"))
            config = make_config(root, backend=backend, train="replace", evaluation="exclude", verify=verify)
            data = build_data(config, show_progress=False)
            loader = build_training_loader(config, data, place=PLACE, show_progress=False)
            batches = [(batch.ids_N.tolist(), batch.labels_N.tolist()) for batch in loader]
            met = loader.take_bad_samples()
            names = [data.train.describe(sample_id) for ids, _ in batches for sample_id in ids]
            assert len(names) == (NUM_GOOD + NUM_BROKEN) // 100 * 100
            assert not set(names) & unreadable
            assert {bad.name for bad in met} == unreadable
            assert all(bad.reason and bad.replaced_by_name not in unreadable for bad in met)
            for bad in met:  # of the same class
                assert Path(bad.name).parent == Path(str(bad.replaced_by_name)).parent
            seen.append((batches, sorted(bad._replace(reason="") for bad in met)))
    assert all(other == seen[0] for other in seen[1:])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before_mib < MOST_MIB


@pytest.mark.parametrize("world_size", [1, 3])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.usefixtures("_own_index")
def test_exclude_counts_exactly_the_readable_files(
    backend: str, world_size: int, root: Path, unreadable: set[str]
) -> None:
    config = make_config(root, backend=backend, train="replace", evaluation="exclude")
    data = build_data(config, show_progress=False)
    counted: list[str] = []
    told: list[str] = []
    for rank in range(world_size):
        place = PLACE._replace(rank=rank, world_size=world_size)
        loader = build_evaluation_loader(config, data, "train", place=place, show_progress=False)
        for batch in loader:
            counted += [data.train.describe(sample_id) for sample_id in batch.ids_N[batch.valid_N].tolist()]
        told += [bad.name for bad in loader.take_bad_samples()]
    assert sorted(told) == sorted(unreadable)
    assert sorted(counted + told) == sorted(str(path) for path in root.rglob("*.jpg"))
