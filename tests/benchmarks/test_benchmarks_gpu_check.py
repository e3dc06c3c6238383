"""The check on a GPU: every part is run for real, small, on the CPU; one that fails or hangs leaves the others."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from benchmarks import gpu_check, throughput
from benchmarks.gpu_check import PARTS, SCALES, Check, Scale, check_given, is_short_of, run, run_tests
from benchmarks.gpu_contenders import split_name
from benchmarks.verdicts_gpu import Verdict

_ONCE = ("--size", "32", "--warmup", "1", "--steps", "2", "--repeats", "1")
TINY = Scale(
    tests=("tests/benchmarks/test_benchmarks_verdicts_gpu.py",),
    num_images=16,
    loaders=("--batch", "4", "--repeats", "1", "--threads", "2"),
    sweeps={"threads": ("threads", "feeding_only")},
    training=(
        ("--models", "resnet18", "--contenders", "ours", "ours_dali", "--batch", "4", *_ONCE),
        ("--models", "resnet18", "--contenders", "ours", "ours_resident", "--batch", "8", *_ONCE),
    ),
    agreement=("--num_images", "8", "--epochs", "1"),
)


def write_images(root: Path, *, count: int, size: tuple[int, int], suffix: str) -> None:
    rng = np.random.default_rng(len(str(root)))
    root.mkdir(parents=True)
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(root / f"{number:03}{suffix}", quality=90)


@pytest.fixture
def given(tmp_path: Path) -> argparse.Namespace:
    write_images(tmp_path / "photographs", count=8, size=(120, 90), suffix=".JPEG")
    for split, count in (("train", 160), ("test", 12)):
        for name in ("cat", "dog"):
            write_images(tmp_path / "cifar" / split / name, count=count, size=(32, 32), suffix=".jpg")
    return argparse.Namespace(images=tmp_path / "photographs", cifar=tmp_path / "cifar", device="cpu")


def make_check(given: argparse.Namespace, folder: Path, *, seconds: float = 400, scale: Scale = TINY) -> Check:
    folder.mkdir()
    return Check(given.images, given.cifar, given.device, scale, folder, time.monotonic() + seconds)


@pytest.mark.slow
@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of DALI for this system")
def test_every_part_leaves_its_figures_and_the_verdicts_follow_from_them(
    given: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu_check, "_LOADERS", ("hand", "dali"))
    monkeypatch.setitem(SCALES, "cpu", TINY)
    out = tmp_path / "check.json"
    words = ["--images", str(given.images), "--cifar", str(given.cifar), "--device", "cpu", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["gpu_check", *words])
    with pytest.raises(SystemExit) as ended:
        gpu_check.main()
    found = json.loads(out.read_text())
    assert list(found) == ["about", *PARTS] == ["about", "tests", "loaders", "training", "agreement", "sweeps"]
    assert [part for part in PARTS if "failed" in found[part]] == []
    assert found["tests"]["num_passed"] > 5
    assert found["tests"]["not_passed"] == []
    assert [row["contender"] for row in found["loaders"]["rows"]] == ["hand", "dali"]
    assert [row["contender"] for row in found["sweeps"]["rows"]["threads"]] == ["threads", "feeding_only"]
    assert [row["data"] for row in found["training"]["rows"]] == ["synthetic", "dali", "synthetic", "resident"]
    pixels = {row["way"]: row for row in found["agreement"]["pixels"]}
    assert pixels["threads"]["mean_of_255"] < 0.05
    assert 0 < pixels["dali"]["mean_of_255"] < 2
    assert pixels["dali_load_65"]["frac_unlike_dali"] == 0, "on a CPU it is the same"
    assert {row["num_samples"] for row in found["agreement"]["predictions"]} == {24}
    assert found["about"]["device"] == "no GPU"
    printed = capfd.readouterr().out
    assert "| tests that did not pass | at most 0 | 0 | met |" in printed
    assert printed.count("not measured") == 1, "timm, which was left out"
    assert ended.value.code == 1, "a line without a figure is no success"


def test_the_sizes_for_a_gpu_name_contenders_networks_and_tests_that_there_are() -> None:
    scale = SCALES["cuda"]
    for name in (*gpu_check._LOADERS, *(name for names in scale.sweeps.values() for name in names)):
        split_name(name)
    assert len(scale.training) == 3
    for options in scale.training:
        contenders = options[options.index("--contenders") + 1 : options.index("--batch")]
        assert set(contenders) <= set(throughput.CONTENDERS)
        assert len(contenders) == 2
    assert scale.tests == ("-m", "gpu")


def test_a_line_without_a_figure_is_no_success_where_all_parts_ran() -> None:
    met, missing = Verdict("a", "at least 1", "2", True), Verdict("b", "at least 1", "not measured", None)
    assert not is_short_of([met], list(PARTS))
    assert is_short_of([met, missing], list(PARTS))
    assert not is_short_of([met, missing], ["loaders"])
    assert is_short_of([met, missing._replace(is_met=False)], ["loaders"])


def test_a_part_that_fails_or_hangs_leaves_the_others_and_says_why(
    given: argparse.Namespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = {
        "wrong": lambda check: {"failed": gpu_check._run(["-c", "raise ValueError('no such thing')"], check)},
        "slow": lambda check: {"failed": gpu_check._run(["-c", "import time; time.sleep(60)"], check)},
        "late": lambda check: {"failed": gpu_check._run(["-c", ""], check)},
    }
    monkeypatch.setattr(gpu_check, "PARTS", parts)
    out = tmp_path / "check.json"
    found = run(make_check(given, tmp_path / "folder", seconds=3), list(parts), out=out)
    assert found["wrong"]["failed"] == "ValueError: no such thing"
    assert found["slow"]["failed"].startswith("stopped after ")
    assert found["late"]["failed"] == "no time was left"
    assert json.loads(out.read_text()) == found


def test_what_a_part_started_is_ended_with_it(given: argparse.Namespace, tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(90)'])\n"
        f"open({str(started)!r}, 'w').write(str(child.pid)); time.sleep(90)"
    )
    assert gpu_check._run(["-c", code], make_check(given, tmp_path / "folder", seconds=4)).startswith("stopped after")
    child = int(started.read_text())
    for _ in range(100):
        if not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    raise AssertionError("a process that the part started goes on")


def test_tests_are_counted_and_those_that_do_not_pass_are_named(given: argparse.Namespace, tmp_path: Path) -> None:
    file = tmp_path / "test_some.py"
    file.write_text(
        "import pytest\n"
        "def test_right(): pass\n"
        "def test_wrong(): assert False\n"
        "def test_left_out(): pytest.skip('why')\n"
    )
    found = run_tests(make_check(given, tmp_path / "folder", scale=TINY._replace(tests=(str(file),))))
    assert (found["num_passed"], found["num_skipped"], len(found["not_passed"])) == (1, 1, 1)
    assert found["not_passed"][0].endswith("::test_wrong")
    assert "failed" not in found, "the part ran; the verdict tells"
    broken = tmp_path / "test_broken.py"
    broken.write_text("import no_such_package\n")
    found = run_tests(make_check(given, tmp_path / "other", scale=TINY._replace(tests=(str(broken),))))
    assert len(found["not_passed"]) == 1


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({"device": "cuda"}, "no GPU on this machine; use --device cpu"),
        ({"images": Path("/no/such/folder")}, "in /no/such/folder or within it. Give a folder of photographs"),
        ({"cifar": Path("/no/such/folder")}, "in /no/such/folder/train or within it. Give CIFAR-10 as JPEG files in"),
    ],
)
def test_what_is_missing_is_told_before_anything_is_measured(
    given: argparse.Namespace, changes: dict[str, Any], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    check_given(given)
    with pytest.raises(SystemExit) as ended:
        check_given(argparse.Namespace(**{**vars(given), **changes}))
    assert wanted in str(ended.value)
