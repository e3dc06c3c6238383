"""Loaders whose batches end on a device: each one's batches, here on the CPU, and the race between them."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image
from torch import Tensor

from benchmarks import gpu_loaders
from benchmarks.gpu_contenders import CONTENDERS, MEAN, STD, GpuJob, split_name
from benchmarks.gpu_loaders import build_job, check_batch, default_names, measure, measure_feeding, take_turn
from benchmarks.photographs import link_as_image_folder

NUM_FILES, COPIES, BATCH, SIZE_PX = 8, 4, 8, 32
NEEDS_DALI = tuple(name for name in CONTENDERS if name.startswith(("hand", "dali", "feeding")))
SHUFFLES_EXACTLY = ("dali", "dali_load_65", "dali_load_90", "dali_packed", "dali_cpu", "threads", "timm")


def blue_of(file: int) -> int:
    return 50 + 20 * file


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """JPEG files that are told apart by their blue, and whose red rises from left to right."""
    folder = tmp_path / "images" / "below"
    folder.mkdir(parents=True)
    for file in range(NUM_FILES):
        pixels = np.full((60, 80, 3), (0, 120, blue_of(file)), dtype=np.uint8)
        pixels[..., 0] = np.linspace(40, 200, 80)
        Image.fromarray(pixels).save(folder / f"{file}.{'JPEG' if file % 2 else 'jpg'}", quality=95, subsampling=0)
    (folder / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def settings(images: Path, tmp_path: Path) -> gpu_loaders._Settings:
    folder = tmp_path / "work"
    settings = gpu_loaders._Settings(images, folder, "cpu", BATCH, num_threads=1, copies=COPIES, limit_s=60)
    link_as_image_folder(gpu_loaders._find_images(images), gpu_loaders._tree(settings))
    return settings


def small_job(name: str, settings: gpu_loaders._Settings) -> GpuJob:
    job = build_job(name, settings)
    return replace(job, images=replace(job.images, size_px=SIZE_PX))


def second_epoch(name: str, job: GpuJob) -> list[Tensor]:
    epoch = CONTENDERS[name](job)
    assert sum(len(batch) for batch in epoch()) == job.num_batches * BATCH, name
    return [batch.clone() for batch in epoch()]


def check_images(name: str, batches: list[Tensor]) -> None:
    assert [batch.shape for batch in batches] == NUM_FILES * COPIES // BATCH * [(BATCH, 3, SIZE_PX, SIZE_PX)], name
    assert {batch.dtype for batch in batches} == {torch.float16}, name
    images_NCHW = torch.cat(batches).float()
    assert torch.isfinite(images_NCHW).all(), name
    levels = (images_NCHW * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]) * 255
    assert (levels[:, 1] - 120).abs().max() < 6, name
    blues = levels[:, 2].mean(dim=(1, 2))
    files = ((blues - 50) / 20).round().long()
    assert (blues - torch.tensor([blue_of(file) for file in files.tolist()])).abs().max() < 4, name
    assert levels[:, 2].std(dim=(1, 2)).max() < 4, name
    if name in SHUFFLES_EXACTLY:
        assert torch.bincount(files).tolist() == NUM_FILES * [COPIES], name
    rises = levels[:, 0, :, -1].mean(dim=1) - levels[:, 0, :, 0].mean(dim=1)
    assert 0 < (rises < 0).sum() < len(rises), f"{name}: some are flipped, some are not"
    assert rises.abs().std() > 5, f"{name}: windows of several widths"
    assert not torch.equal(files, files.sort().values), f"{name}: shuffled"


def test_every_contender_hands_out_cropped_flipped_normalised_halves(settings: gpu_loaders._Settings) -> None:
    seen = []
    for name in CONTENDERS:
        if name in NEEDS_DALI and not DALI_IS_EXPECTED:
            continue
        batches = second_epoch(name, small_job(name, settings))
        if name == "feeding_only":
            sizes = torch.cat(batches)
            assert (sizes.dtype, sizes.shape) == (torch.int32, (NUM_FILES * COPIES, 8))
            files = gpu_loaders._find_images(settings.images)
            assert sorted(sizes[:, 0].tolist()) == sorted(COPIES * [Path(path).stat().st_size for path in files])
            assert (sizes[:, 5:7] == SIZE_PX).all()
        else:
            check_images(name, batches)
        seen.append(name)
    assert len(seen) == (18 if DALI_IS_EXPECTED else 2)


@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="there is no DALI for this machine")
def test_loaders_by_hand_decode_on_a_gpu_where_there_is_one(settings: gpu_loaders._Settings) -> None:
    wanted = {"hand_load_0": "hw_decoder_load: 0", "hand_load_65": "hw_decoder_load: 0.65"}
    wanted |= {"hand_load_80": "hw_decoder_load: 0.8", "hand_load_90": "hw_decoder_load: 0.9"}
    wanted |= {"hand_load_100": "hw_decoder_load: 1", "hand_fancy": "jpeg_fancy_upsampling: True"}
    wanted |= {"hand": "random_area", "hand_fed": "random_area", "hand_full": "fn.decoders"}
    for name, option in wanted.items():
        job = replace(build_job(name, settings), device=torch.device("cuda", 0))
        pipeline = CONTENDERS[name](job).pipeline  # type: ignore[attr-defined]
        pipeline._build_graph()
        specs = [str(op.spec) for op in pipeline._ops]
        (decoder,) = (spec for spec in specs if spec.startswith("OpSpec for decoders__"))
        assert "device: mixed" in decoder, name
        assert option in decoder, f"{name}: {decoder}"
        (normalise,) = (spec for spec in specs if spec.startswith("OpSpec for CropMirrorNormalize"))
        assert "device: gpu" in normalise, name
        assert pipeline.device_id == 0, name
    assert {*wanted, "hand_tail"} == {name for name in CONTENDERS if name.startswith("hand")}


def test_a_number_of_threads_can_be_part_of_a_name() -> None:
    assert split_name("threads") == ("threads", None)
    assert split_name("threads_4") == ("threads", 4)
    assert split_name("dali_cpu_threads_16") == ("dali_cpu", 16)
    assert split_name("hand_load_65") == ("hand_load_65", None)
    for unknown in ("hands", "hand_load_7", "threads_0", "nothing_threads_4"):
        with pytest.raises(ValueError, match=rf"no contender '{unknown}'; .*valid: hand, .*as dali_threads_4"):
            split_name(unknown)
    names = default_names(16)
    assert len(names) == len(set(names)) == len(CONTENDERS) + 3 + 2 + 2 + 4
    assert {split_name(name)[0] for name in names} == set(CONTENDERS)
    assert default_names(1) == list(CONTENDERS)


def test_fewer_threads_have_a_shorter_epoch_of_what_the_cpu_computes(settings: gpu_loaders._Settings) -> None:
    settings = settings._replace(num_threads=16, copies=64)
    wanted = {"threads": 64, "threads_4": 16, "dali_cpu_threads_8": 32, "threads_1": 4, "dali_threads_4": 64}
    wanted |= {"feeding_only_threads_1": 64, "threads_32": 64}
    jobs = {name: build_job(name, settings) for name in wanted}
    assert {name: job.num_batches for name, job in jobs.items()} == wanted
    assert {job.images.num_threads for job in jobs.values()} == {1, 4, 8, 16, 32}


def test_too_few_images_are_told(settings: gpu_loaders._Settings, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="4 x 8 images do not fill a batch of 33; use more copies"):
        build_job("hand", settings._replace(batch_size=33))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match=r"there are no files \*.jpg or \*.jpeg in .*empty or within it"):
        gpu_loaders._find_images(empty)
    (empty / "one.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match=r"empty has only one JPEG file below it, .*; add another"):
        gpu_loaders._find_images(empty)


def test_a_turn_counts_images_and_looks_at_the_first_batch(settings: gpu_loaders._Settings) -> None:
    job = small_job("threads", settings)
    good = torch.zeros(BATCH, 3, SIZE_PX, SIZE_PX, dtype=torch.float16)
    good[0] = 1
    answer = take_turn(lambda: iter([good, torch.zeros(3)]), job, check=True)
    assert answer["num_images"] == BATCH + 3
    assert answer["gpu_memory_mib"] is None
    assert (answer["value_mean"], answer["value_std"]) == (0.125, pytest.approx(0.3307, abs=1e-4))
    assert answer["seconds"] > 0
    assert "value_mean" not in take_turn(lambda: iter([good.float()]), job, check=False)
    for bad in (good.float(), good[:-1], good.permute(0, 2, 3, 1)):
        with pytest.raises(ValueError, match=r"a batch is \(torch.float.*; wanted: \(torch.float16, \(8, 3, 32, 32\)"):
            check_batch(bad, job)
    with pytest.raises(ValueError, match="not finite"):
        check_batch(good.fill_(np.inf), job)


def test_a_turn_on_a_gpu_tells_how_much_more_of_its_memory_is_used(
    settings: gpu_loaders._Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = replace(small_job("threads", settings), device=torch.device("cuda", 0))
    free_mib, waited_for = iter([900, 650]), []
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (next(free_mib) * 2**20, 1000 * 2**20))
    monkeypatch.setattr(torch.cuda, "synchronize", waited_for.append)
    answer = take_turn(lambda: iter([torch.zeros(BATCH)]), job, check=False)
    assert (answer["gpu_memory_mib"], waited_for) == (250, [job.device])


class Scripted:
    """Stands in for a Racer: answers, and at None ends."""

    def __init__(self, answers: list[dict[str, Any] | None]) -> None:
        self.ended: list[object] = []
        self._answers = iter(answers)

    def __enter__(self) -> "Scripted":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.ended.append(kind)

    def take_turn(self) -> dict[str, Any]:
        if (answer := next(self._answers)) is None:
            raise RuntimeError("it has ended")
        return answer


def turns(*seconds: float, mib: float | None = None) -> Iterator[dict[str, Any]]:
    return ({"num_images": 60, "seconds": each, "cpu_s": 0.003, "gpu_memory_mib": mib} for each in seconds)


def test_a_contender_that_ends_does_not_end_the_others(settings: gpu_loaders._Settings, tmp_path: Path) -> None:
    scripts = {
        "hand": [*turns(9, 3, 1, 2, mib=100)],
        "timm": [*turns(1, 1), None],
        "dali": [*turns(1, 1, 1, 1)],
        "feeding_only": [*turns(1, 1, 1, 1)],
        "threads": [None],
    }
    entries = []
    for name, answers in scripts.items():
        errors = tmp_path / f"{name}.txt"
        errors.write_text("Traceback ...\nOSError: no more files\n" if name == "timm" else "")
        entries.append(gpu_loaders._Entry(name, Scripted(answers), errors))  # type: ignore[arg-type]
    out = tmp_path / "rows.json"
    gpu_loaders._race(entries, settings, repeats=3, out=out)
    rows = {row["contender"]: row for row in json.loads(out.read_text())["rows"]}
    hand = rows["hand"]
    assert (hand["images_per_s"], hand["lowest"], hand["highest"], hand["repeats"]) == (30, 20, 60, 3)
    assert (hand["gpu_memory_mib"], hand["python_us_per_image"], hand["reason"]) == (400, None, "")
    assert rows["timm"]["reason"] == "OSError: no more files"
    assert rows["threads"]["reason"] == "ended without a word"
    for name in ("timm", "threads"):
        assert (rows[name]["images_per_s"], rows[name]["lowest"], rows[name]["repeats"]) == (None, None, 0)
    assert rows["dali"]["python_us_per_image"] == rows["feeding_only"]["python_us_per_image"] == 50
    assert [entry.racer.ended for entry in entries if entry.reason] == 2 * [[RuntimeError]]  # type: ignore[attr-defined]
    assert "--limit" in gpu_loaders._reason("Timeout (0:02:00)!\nThread 0x1:\n  File x in y\n")


@pytest.mark.slow
def test_contenders_race_in_processes_and_one_that_fails_says_why(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shadow = tmp_path / "shadow" / "timm"
    shadow.mkdir(parents=True)
    (shadow / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'timm'\")")
    monkeypatch.setenv("PYTHONPATH", str(shadow.parent))
    names = ["threads_1", "timm", *(("hand", "dali_threads_2") if DALI_IS_EXPECTED else ())]
    out = tmp_path / "rows.json"
    rows = measure(
        images, device="cpu", names=names, batch_size=BATCH, num_threads=2, copies=COPIES, repeats=2, out=out
    )
    assert json.loads(out.read_text()) == {"rows": rows}
    assert [row["contender"] for row in rows] == names
    for row in rows:
        if row["contender"] == "timm":
            assert row["reason"] == "ModuleNotFoundError: No module named 'timm'"
            continue
        assert row["reason"] == ""
        assert 0 < row["lowest"] <= row["images_per_s"] <= row["highest"]
        assert (row["repeats"], row["batch_size"], row["gpu_memory_mib"]) == (2, BATCH, None)
        assert row["num_threads"] == (1 if row["contender"] == "threads_1" else 2)
        assert abs(row["value_mean"] - rows[0]["value_mean"]) < 0.2
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(names)
    assert "timm" in lines[1]
    assert lines[1].endswith("not measured: ModuleNotFoundError: No module named 'timm'")
    assert "images/s, 1 threads" in lines[0]


@pytest.mark.slow
@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="there is no DALI for this machine")
def test_feeding_is_measured_at_each_number_of_threads(images: Path) -> None:
    rows = measure_feeding(images, batch_size=BATCH, copies=COPIES, repeats=1, num_threads=(1, 2))
    assert [(row["contender"], row["num_threads"], row["reason"]) for row in rows] == [
        ("feeding_only_threads_1", 1, ""),
        ("feeding_only_threads_2", 2, ""),
    ]
    assert all(row["python_us_per_image"] > 0 and row["images_per_s"] > 0 for row in rows)
