"""Packing: what is stored of every kind of image and source, and that nothing but the data and the settings counts."""

import contextlib
import dataclasses
import errno
import io
import json
import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_cases import (
    BAD,
    SIZES,
    config_of,
    draw,
    files_of,
    open_folder,
    opened,
    pack_folder,
    pack_into,
    reference,
    write_many,
    write_varied,
)
from PIL import Image

from configs.schema import AugmentConfig, InputSpec, LoaderConfig, TrainConfig
from pipelines.build import Place, build_data, build_training_loader
from pipelines.build_data import read_splits
from pipelines.packing import pack as packing
from pipelines.packing.in_order import map_in_order, telling_of_killed_workers
from pipelines.packing.job import making, work_folder
from pipelines.packing.stored import Settings, restart_interval
from pipelines.scratch import Scratch
from pipelines.sources.packed_index import RAW

NUM_KILLS = 10


@pytest.fixture(scope="module")
def varied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_varied(tmp_path_factory.mktemp("varied"))


def windows_of(height: int, width: int) -> list[tuple[int, int, int, int]]:
    rng = np.random.default_rng([height, width])
    tops, lefts = rng.integers(0, height, 4), rng.integers(0, width, 4)
    return [
        (int(top), int(left), int(rng.integers(1, height - top + 1)), int(rng.integers(1, width - left + 1)))
        for top, left in zip(tops, lefts, strict=True)
    ]


# --- what is stored


def test_keep_stores_the_bytes_and_gives_the_folders_pixels_whole_and_in_windows(varied: Path, tmp_path: Path) -> None:
    pack_folder(varied, tmp_path / "d")
    folder, packed = open_folder(varied), opened(tmp_path / "d")
    assert list(packed) == ["train", "val"]
    for split, source in packed.items():
        theirs, scratch = folder[split], Scratch()
        assert source.class_names == theirs.class_names == ("cat", "dog")
        np.testing.assert_array_equal(source.labels_N, theirs.labels_N)
        np.testing.assert_array_equal(source.sizes_N2, theirs.sizes_N2)
        assert source.is_grey == theirs.is_grey
        for i in range(len(source.labels_N)):
            path = Path(theirs.describe(i))
            assert source.read_bytes(i) == path.read_bytes()
            assert f"({path.relative_to(varied)})" in source.describe(i)
            assert source.index.grey_N[i] == (reference(path).mode == "L")
            for channels in (3, 1):
                whole = theirs.read_image(i, channels=channels)
                np.testing.assert_array_equal(source.read_image(i, channels=channels), whole)
                for top, left, height, width in windows_of(*whole.shape[:2]):
                    part = source.read_image(i, channels=channels, scratch=scratch, window=(top, left, height, width))
                    np.testing.assert_array_equal(part, whole[top : top + height, left : left + width], str(path))
    assert sum(packed["train"].index.segments(i) is not None for i in range(len(packed["train"].labels_N))) == 1


@pytest.mark.parametrize(
    "limits", [{}, {"long_side_px": 100}, {"short_side_px": 64}, {"long_side_px": 90, "short_side_px": 80}]
)
def test_raw_stores_the_pixels_that_pillow_reads_and_shrinks(varied: Path, tmp_path: Path, limits: Any) -> None:
    pack_folder(varied, tmp_path / "d", "raw", **limits)
    source, folder = opened(tmp_path / "d")["train"], open_folder(varied)["train"]
    for i in range(len(source.labels_N)):
        image = shrunk(reference(Path(folder.describe(i))), **limits)
        wanted = np.asarray(image).reshape(image.height, image.width, -1)
        stored = np.load(io.BytesIO(source.read_bytes(i)))
        np.testing.assert_array_equal(stored, wanted)
        assert source.index.kinds_N[i] == RAW
        for top, left, height, width in windows_of(*wanted.shape[:2]):
            part = source.read_image(i, channels=3, scratch=Scratch(), window=(top, left, height, width))
            window = np.broadcast_to(wanted, (*wanted.shape[:2], 3))[top : top + height, left : left + width]
            np.testing.assert_array_equal(part, window)


def shrunk(image: Image.Image, *, long_side_px: int | None = None, short_side_px: int | None = None) -> Image.Image:
    scale = min(1.0, (long_side_px or 10**9) / max(image.size), (short_side_px or 10**9) / min(image.size))
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image if size == image.size else image.resize(size, Image.Resampling.LANCZOS)


@pytest.mark.parametrize("restart", [True, False])
@pytest.mark.parametrize(("subsampling", "quality"), [("4:4:4", 100), ("4:2:2", 75), ("4:2:0", 90)])
def test_jpeg_stores_what_pillow_encodes_whatever_markers_it_has(
    varied: Path, tmp_path: Path, subsampling: str, quality: int, restart: bool
) -> None:
    pack_folder(
        varied, tmp_path / "d", "jpeg", long_side_px=180, subsampling=subsampling, quality=quality, restart=restart
    )
    source, folder = opened(tmp_path / "d")["train"], open_folder(varied)["train"]
    num_segmented = 0
    for i in range(len(source.labels_N)):
        image = shrunk(reference(Path(folder.describe(i))), long_side_px=180)
        file = io.BytesIO()
        colour = {} if image.mode == "L" else {"subsampling": subsampling}
        image.save(file, "JPEG", quality=quality, **colour)
        with Image.open(file) as encoded, Image.open(io.BytesIO(source.read_bytes(i))) as stored:
            assert (stored.format, stored.mode, stored.size) == ("JPEG", image.mode, image.size)
            np.testing.assert_array_equal(np.asarray(stored), np.asarray(encoded))
            whole = np.asarray(encoded.convert("RGB"))
        np.testing.assert_array_equal(source.read_image(i, channels=3), whole)
        for top, left, height, width in windows_of(*whole.shape[:2]):
            part = source.read_image(i, channels=3, scratch=Scratch(), window=(top, left, height, width))
            np.testing.assert_array_equal(part, whole[top : top + height, left : left + width])
        is_segmented = source.index.segments(i) is not None
        assert is_segmented == (restart and min(image.size) >= 128)
        num_segmented += is_segmented
    assert (num_segmented > 4) == restart


def test_noise_at_the_best_quality_fits_into_the_encoders_buffer(tmp_path: Path) -> None:
    (tmp_path / "r/train/a").mkdir(parents=True)
    (tmp_path / "r/train/b").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 2, (700, 900, 3), dtype=np.uint8) * 255
    Image.fromarray(noise).save(tmp_path / "r/train/a/noise.png")
    draw(9, 9, seed=0).save(tmp_path / "r/train/b/0.png")
    packed = pack_folder(tmp_path / "r", tmp_path / "d", "jpeg", quality=100, subsampling="4:4:4")
    assert packed.num_refused == 0


def test_an_image_too_long_for_a_jpeg_is_refused_with_the_reason(tmp_path: Path) -> None:
    write_many(tmp_path / "r", 4)
    Image.new("RGB", (65501, 2)).save(tmp_path / "r/train/a/long.png")
    assert pack_folder(tmp_path / "r", tmp_path / "d", "jpeg").num_refused == 1
    assert "a JPEG has at most 65,500 on a side; use --long-side" in (tmp_path / "d/refused.jsonl").read_text()
    assert pack_folder(tmp_path / "r", tmp_path / "e", "jpeg", long_side_px=500).num_refused == 0


@pytest.mark.parametrize(
    ("width", "mcu_px", "wanted"),
    [(400, 8, 5), (500, 16, 2), (375, 16, 2), (16, 16, 1), (1, 8, 1), (17 * 16, 16, 1), (368, 16, 1)],
)
def test_restart_intervals_divide_the_row_and_cover_about_40_pixels(width: int, mcu_px: int, wanted: int) -> None:
    assert restart_interval(width, mcu_width_px=mcu_px) == wanted


# --- sources


def test_a_manifest_keeps_its_order_classes_and_weights(varied: Path, tmp_path: Path) -> None:
    rows = ["train/dog/a.png,dog,0.5", "train/cat/s1.jpg,cat,2", "train/cat/s0.jpg,cat,0", "val/dog/v2.jpg,dog,7"]
    (tmp_path / "t.csv").write_text("path,label,weight\n" + "\n".join(rows) + "\n")
    data = {"dataset": "manifest", "root": str(tmp_path / "t.csv"), "image_root": str(varied), "sampling": "weighted"}
    pack_into(tmp_path / "d", data=data, shard_mib=0.01)
    source = opened(tmp_path / "d")["train"]
    assert [source.class_names[label] for label in source.labels_N] == ["dog", "cat", "cat", "dog"]
    assert source.weights_N is not None
    assert source.weights_N.tolist() == [0.5, 2, 0, 7]
    assert [bytes(name).decode() for name in source.index.names_N] == [row.split(",")[0] for row in rows]
    assert len(source.shards.paths) > 1
    pack_into(tmp_path / "again", "raw", data={"dataset": "packed", "root": str(tmp_path / "d")})
    again = opened(tmp_path / "again")["train"]
    np.testing.assert_array_equal(again.weights_N, source.weights_N)
    assert again.index.names_N.tolist() == source.index.names_N.tolist()


@pytest.mark.parametrize("mode", ["raw", "jpeg"])
def test_digits_become_grey_images(tmp_path: Path, mode: str) -> None:
    pack_into(tmp_path / "d", mode, data={"dataset": "digits"})
    splits, theirs = opened(tmp_path / "d"), read_splits(config_of(dataset="digits"), show_progress=False)
    assert {split: len(source.labels_N) for split, source in splits.items()} == {"train": 1437, "test": 360}
    for split, source in splits.items():
        assert source.is_grey
        assert source.class_names == theirs[split].class_names
        np.testing.assert_array_equal(source.labels_N, theirs[split].labels_N)
        for i in range(0, len(source.labels_N), 50):
            pixels = source.read_image(i, channels=1)
            difference = pixels.astype(int) - theirs[split].read_image(i, channels=1)
            assert np.abs(difference).max() <= (0 if mode == "raw" else 24), "quality 90 of tiny images"


@pytest.mark.parametrize("first", ["keep", "jpeg", "raw"])
@pytest.mark.parametrize("second", ["keep", "raw"])
def test_a_packed_data_set_is_a_source_and_keeps_its_pixels(
    varied: Path, tmp_path: Path, first: str, second: str
) -> None:
    pack_folder(varied, tmp_path / "one", first)
    pack_into(tmp_path / "two", second, data={"dataset": "packed", "root": str(tmp_path / "one")})
    for split, one in opened(tmp_path / "one").items():
        two = opened(tmp_path / "two")[split]
        np.testing.assert_array_equal(one.labels_N, two.labels_N)
        np.testing.assert_array_equal(one.index.grey_N, two.index.grey_N)
        for i in range(len(one.labels_N)):
            np.testing.assert_array_equal(one.read_image(i, channels=3), two.read_image(i, channels=3))
            if second == "keep":
                assert one.read_bytes(i) == two.read_bytes(i)


def test_arrays_have_no_bytes_to_keep_and_that_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no files whose bytes could be kept; use --mode raw or --mode jpeg"):
        pack_into(tmp_path / "d", data={"dataset": "digits"})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("backend", ["threads", "reference", "resident"])
def test_a_loader_hands_out_the_same_batches_from_keep_as_from_the_folder(
    varied: Path, tmp_path: Path, backend: str
) -> None:
    pack_folder(varied, tmp_path / "d")
    batches = []
    for dataset, root in (("folder", varied), ("packed", tmp_path / "d")):
        config = dataclasses.replace(
            config_of(dataset=dataset, root=str(root)),
            input=InputSpec(size_px=48, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
            augment=AugmentConfig(flip="random", **({} if backend == "resident" else {"crop": "rrc"})),
            loader=LoaderConfig(backend=backend, num_threads=2, num_workers=0),
            train=TrainConfig(epochs=1, global_batch_size=8),
        )
        data = build_data(config, show_progress=False)
        place = Place(torch.device("cpu"), torch.float32, 0, 1, 2)
        loader = build_training_loader(config, data, place=place, show_progress=False)
        batches.append([batch for _ in range(3) for batch in loader])
    assert len(batches[0]) == len(batches[1]) == 6
    for theirs, ours in zip(*batches, strict=True):
        assert torch.equal(theirs.ids_N, ours.ids_N)
        assert torch.equal(theirs.inputs[0], ours.inputs[0])


# --- what cannot be read


@pytest.mark.parametrize("mode", ["keep", "jpeg", "raw"])
def test_what_cannot_be_read_is_listed_and_left_out(tmp_path: Path, mode: str) -> None:
    root = write_varied(tmp_path / "r", with_bad=True)
    whole = (root / "train/cat/s0.jpg").read_bytes()
    (root / "train/cat/cut.jpg").write_bytes(whole[: len(whole) // 2])
    packed = pack_folder(root, tmp_path / "d", mode)
    rows = [json.loads(line) for line in (tmp_path / "d/refused.jsonl").read_text().splitlines()]
    assert packed.num_refused == len(rows) == 3
    assert {row["name"] for row in rows} == {*BAD, "train/cat/cut.jpg"}
    assert {row["split"] for row in rows} == {"train", "val"}
    assert all(row["reason"] for row in rows)
    for split, source in opened(tmp_path / "d").items():
        assert len(source.labels_N) == len(open_folder(root)[split].labels_N) - (2 if split == "train" else 1)
        assert source.bad == {}


def test_a_split_of_which_nothing_can_be_read_is_an_error_with_reasons(tmp_path: Path) -> None:
    root = write_many(tmp_path / "r", 4)
    for name in ("a", "b"):
        (root / "val" / name).mkdir(parents=True)
        (root / "val" / name / "0.jpg").write_bytes((root / "train/a/000.jpg").read_bytes()[:-300])
    with pytest.raises(ValueError, match=r"none of the 2 images of val could be packed:\n  val/a/0.jpg: Premature end"):
        pack_folder(root, tmp_path / "d")
    assert not (tmp_path / "d").exists()


# --- however it is made


@pytest.mark.parametrize("mode", ["keep", "jpeg", "raw"])
def test_any_number_of_workers_makes_the_same_bytes(tmp_path: Path, mode: str) -> None:
    root = write_varied(tmp_path / "r", with_bad=True)
    made = []
    for workers in (0, 1, 3):
        pack_folder(root, tmp_path / str(workers), mode, num_workers=workers)
        made.append(files_of(tmp_path / str(workers)))
    assert made[0] == made[1] == made[2]
    assert sum(name.endswith(".tar") for name in made[0]) > 2


def test_no_shard_is_longer_than_asked_for_unless_a_sample_is(tmp_path: Path) -> None:
    root = write_many(tmp_path / "r", 40)
    pack_folder(root, tmp_path / "d", "raw", shard_mib=0.04)
    shards = sorted((tmp_path / "d").glob("*.tar"))
    assert len(shards) > 5
    assert max(path.stat().st_size for path in shards) <= 0.04 * 2**20
    pack_folder(root, tmp_path / "e", "raw", shard_mib=0.001)
    assert len(list((tmp_path / "e").glob("*.tar"))) == 40


def pack_as_leader(root: Path, dest: Path) -> None:
    os.setsid()  # a kill of the group hits its workers, too
    pack_folder(root, dest, "jpeg", num_workers=2, shard_mib=0.02)


def test_ten_kills_at_random_moments_change_no_byte(tmp_path: Path) -> None:
    root = write_many(tmp_path / "r", 90)
    start = time.monotonic()
    pack_folder(root, tmp_path / "straight", "jpeg", num_workers=2, shard_mib=0.02)
    took_s, wanted = time.monotonic() - start, files_of(tmp_path / "straight")
    rng, kills, rounds, went_on = random.Random(0), 0, 0, 0
    context = multiprocessing.get_context("fork")
    while kills < NUM_KILLS:
        dest = tmp_path / f"killed{rounds}"
        went_on += any(work_folder(dest).glob("*.part"))
        process = context.Process(target=pack_as_leader, args=(root, dest))
        process.start()
        process.join(rng.uniform(0.1, 0.7) * took_s)
        if process.is_alive():
            assert not dest.exists() or files_of(dest) == wanted
            os.killpg(process.pid, signal.SIGKILL)
            kills += 1
        process.join()
        if dest.exists():
            assert files_of(dest) == wanted
            rounds += 1
    pack_folder(root, dest if not dest.exists() else tmp_path / "last", "jpeg", num_workers=2, shard_mib=0.02)
    assert files_of(dest) == wanted
    assert went_on, "no call went on where another had been killed"


@pytest.mark.parametrize("stop_at", ["write_whole", "rename"])
def test_a_stopped_call_goes_on_for_the_same_job_only(
    tmp_path: Path, stop_at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = write_many(tmp_path / "r", 20), tmp_path / "d"
    pack_folder(root, tmp_path / "straight")

    def stop(*words: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(packing if stop_at == "write_whole" else os, stop_at, stop)
        with pytest.raises(KeyboardInterrupt):
            pack_folder(root, dest)
    assert not dest.exists()
    (work_folder(dest) / "train-00000.part.0123.tmp").write_bytes(b"left by a kill")
    with pytest.raises(ValueError, match=r"begun with other settings.*give the same again, or remove that folder"):
        pack_folder(root, dest, "raw")
    draw(9, 9, seed=0).save(root / "train/a/new.png")
    with pytest.raises(ValueError, match="or from data that was different then"):
        pack_folder(root, dest)
    (root / "train/a/new.png").unlink()
    pack_folder(root, dest)
    assert files_of(dest) == files_of(tmp_path / "straight")


def test_shards_that_are_finished_are_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, dest, asked = write_many(tmp_path / "r", 20), tmp_path / "d", []
    store = packing.store

    def stop_at_15(source: Any, sample_id: int, settings: Any) -> Any:
        asked.append(sample_id)
        if sample_id == 15 and len(asked) < 18:
            raise KeyboardInterrupt
        return store(source, sample_id, settings)

    monkeypatch.setattr(packing, "store", stop_at_15)
    with pytest.raises(KeyboardInterrupt):
        pack_folder(root, dest, shard_mib=0.011)
    assert asked == list(range(16))
    asked += [-1, -1]
    pack_folder(root, dest, shard_mib=0.011)
    assert 4 < asked[18] <= 8, "the images of the last task were on their way"
    assert asked[18:] == list(range(asked[18], 20))


@pytest.mark.parametrize("note", ["", "012", "0" * 64])
def test_a_folder_in_which_no_shard_is_finished_binds_nobody(tmp_path: Path, note: str) -> None:
    root, dest = write_many(tmp_path / "r", 4), tmp_path / "d"
    work_folder(dest).mkdir()
    (work_folder(dest) / "job.json").write_text(note)
    (work_folder(dest) / "train-00000.tar.tmp").write_bytes(b"half a shard")
    assert pack_folder(root, dest).num_samples == {"train": 4}


def test_a_second_call_at_the_same_time_is_refused(tmp_path: Path) -> None:
    root, dest = write_many(tmp_path / "r", 4), tmp_path / "d"
    context = multiprocessing.get_context("fork")
    is_at_work, may_stop = context.Event(), context.Event()
    process = context.Process(target=hold, args=(dest, is_at_work, may_stop))
    process.start()
    assert is_at_work.wait(60)
    with pytest.raises(ValueError, match="is being written by another program; wait for it, or stop it"):
        pack_folder(root, dest)
    may_stop.set()
    process.join()
    assert not dest.exists()


def hold(dest: Path, is_at_work: Any, may_stop: Any) -> None:
    with contextlib.suppress(ZeroDivisionError), making(dest, {}):
        is_at_work.set()
        may_stop.wait(60)
        raise ZeroDivisionError


def test_a_destination_that_exists_is_left_alone(tmp_path: Path) -> None:
    root = write_many(tmp_path / "r", 4)
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("file", "folder", "link"):
        with pytest.raises(ValueError, match="exists; name a folder that does not"):
            pack_folder(root, tmp_path / name)
    pack_folder(root, tmp_path / "d")
    before = files_of(tmp_path / "d")
    with pytest.raises(ValueError, match="is a packed data set already; name another folder, or remove it"):
        pack_folder(root, tmp_path / "d")
    assert files_of(tmp_path / "d") == before


def test_a_full_disk_leaves_no_destination_and_the_next_call_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, dest = write_many(tmp_path / "r", 12), tmp_path / "d"
    fsync, calls = os.fsync, 0

    def full(file: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 9:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match=r"no space is left for .*d\.packing; make room, and call again"):
            pack_folder(root, dest, shard_mib=0.011)
    assert not dest.exists()
    pack_folder(root, dest, shard_mib=0.011)
    pack_folder(root, tmp_path / "straight", shard_mib=0.011)
    assert files_of(dest) == files_of(tmp_path / "straight")


def kill_oneself(task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def raise_one(task: int) -> int:
    raise (OSError if task else RuntimeError)("in its own words")


def test_a_killed_worker_is_told_with_what_to_do(tmp_path: Path) -> None:
    with (
        pytest.raises(ChildProcessError, match=r"ended from outside.*with fewer --workers it needs less memory"),
        telling_of_killed_workers(),
    ):
        list(map_in_order(kill_oneself, range(6), num_workers=1))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("first", "kind"), [(0, RuntimeError), (1, OSError)])
def test_errors_of_workers_come_in_their_own_words(workers: int, first: int, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"^in its own words$"):
        list(map_in_order(raise_one, [first], num_workers=workers))


def test_sizes_cover_one_pixel_and_more_than_the_least_that_gets_markers() -> None:
    assert (1, 1) in SIZES
    assert max(map(min, SIZES)) > 128


def test_tasks_are_fewer_samples_where_those_are_large() -> None:
    sizes_N2 = np.array([[10, 10]] * 12 + [[3000, 3000]] * 2 + [[2000, 2000]] * 3 + [[0, 0]] * 3, dtype=np.int32)
    tasks = list(packing._tasks(range(2, 20), sizes_N2))
    assert tasks == [range(2, 10), range(10, 12), range(12, 13), range(13, 14), range(14, 16), range(16, 20)]


def test_a_call_that_fails_before_anything_is_finished_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "store", lambda *words: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        pack_folder(write_many(tmp_path / "r", 4), tmp_path / "d")
    assert [path.name for path in tmp_path.iterdir()] == ["r"]


def test_splits_of_different_classes_are_refused(tmp_path: Path) -> None:
    write_many(tmp_path / "r", 8)
    train = open_folder(tmp_path / "r")["train"]
    other = dataclasses.replace(train, class_names=("a", "c"))
    settings = Settings(
        mode="keep", long_side_px=None, short_side_px=None, quality=90, subsampling="4:2:0", restart=True
    )
    with pytest.raises(ValueError, match="the splits have different classes"):
        packing.pack(
            packing.Packing({"train": train, "val": other}, None, settings, 10**6),
            tmp_path / "d",
            num_workers=0,
            show_progress=False,
        )
