"""`python -m tools.pack`, as people call it: what it takes, what it says, and how it ends when it is stopped."""

import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from packed_cases import files_of, flip_byte, opened, write_many
from programs import ROOT, run_program

from configs.load import load_with_options
from tools import pack
from tools.pack import Options, source_options

TOOL = [sys.executable, "-m", "tools.pack"]


def run_tool(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["pack.py", *words])
    pack.main()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_many(tmp_path / "images", 12)


def test_a_folder_is_packed_trained_on_and_verified(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "train/a/text.jpg").write_text("text")
    dest = tmp_path / "d"
    run_tool(monkeypatch, str(root), str(dest), "--mode", "jpeg", "--long-side", "45", "--workers", "0")
    said = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"train: 12 images, 0\.\d MiB", said[0])
    assert said[1] == f"1 images could not be read and were left out: {dest}/refused.jsonl"
    assert said[2] == f"packed; train with --data.dataset packed --data.root {dest}"
    assert opened(dest)["train"].sizes_N2.max() == 45
    run_tool(monkeypatch, "--verify", str(dest))
    assert capsys.readouterr().out == f"{dest}: every shard and every image is what was packed\n"
    source = opened(dest)["train"]
    for i in range(2):
        flip_byte(Path(source.shards.paths[0]), int(source.index.offsets_N[i]) + 200)
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, "--verify", str(dest))
    lines = str(left.value).splitlines()
    assert lines[0].startswith(f"{dest}/train-00000.tar: its bytes are not those that were packed; the images that are")
    assert [line.split(":")[0] for line in lines[1:3]] == [source.describe(i) for i in range(2)]
    assert lines[3] == f"{dest} is not what was packed"


def test_only_the_first_faults_are_printed(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_many(root, 40)
    run_tool(monkeypatch, str(root), str(tmp_path / "d"), "--workers", "0")
    source = opened(tmp_path / "d")["train"]
    for start in source.index.offsets_N.tolist():
        flip_byte(tmp_path / "d/train-00000.tar", start + 30)
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, "--verify", str(tmp_path / "d"))
    lines = str(left.value).splitlines()
    assert len(lines) == 22
    assert lines[20] == "... 41 in all"


def test_the_word_for_the_source_says_what_it_is(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("t.csv", "tables/train.tsv", "packed/dataset.json", "shards/x.tar", "by_split/train/x.tar"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    kinds = {
        "t.csv": "manifest",
        "tables": "manifest",
        "packed": "packed",
        "shards": "packed",
        "by_split": "packed",
        "images": "folder",
    }
    for name, kind in kinds.items():
        assert source_options(name) == ["--data.dataset", kind, "--data.root", name]
    assert source_options("cifar10") == ["--data.dataset", "cifar10"]
    assert source_options("mine:Birds") == ["--data.dataset", "mine:Birds"]
    with pytest.raises(ValueError, match=r"SOURCE \./nowhere is no folder and no table"):
        source_options("./nowhere")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["{root}"], "error: SOURCE and DEST must come first: python -m tools.pack SOURCE DEST [options]"),
        (["--mode", "raw", "{root}", "{dest}"], "error: SOURCE and DEST must come first"),
        (["{root}", "{root}"], "exists; name a folder that does not."),
        (["nothing_like_it", "{dest}"], "error: unknown data set data.dataset='nothing_like_it'"),
        (["--verify"], "error: --verify takes one folder"),
        (["--verify", "{root}"], "has no dataset.json, so it is no packed data set"),
        (["digits", "{dest}"], "no files whose bytes could be kept; use --mode raw or --mode jpeg."),
    ],
)
def test_mistakes_are_told_in_a_line(
    words: list[str], wanted: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as left:
        run_tool(monkeypatch, *(word.format(root=root, dest=tmp_path / "d") for word in words))
    assert wanted in str(left.value)
    assert str(left.value).startswith("error: ")
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (
            ["--long-side", "400"],
            "long_side makes images smaller, but mode=keep stores them as they are; use --mode jpeg",
        ),
        (["--mode", "jpeg", "--quality", "101"], "quality=101 is out of range; use 1 to 100."),
        (["--mode", "zip"], "mode"),
        (["--workers", "-1"], "workers=-1 is out of range"),
    ],
)
def test_options_are_checked_before_anything_is_read(
    words: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_tool(monkeypatch, "digits", "d", *words)
    assert wanted in capsys.readouterr().err


def start(root: Path, dest: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*TOOL, str(root), str(dest), "--shard-mib", "0.02", "--workers", "2", *words],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def wait_for_a_part(work: Path, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not any(work.glob("*.part")) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.002)


def test_ctrl_c_and_a_kill_and_the_same_command_goes_on(root: Path, tmp_path: Path) -> None:
    write_many(root, 400)
    dest, work = tmp_path / "d", tmp_path / "d.packing"
    process = start(root, dest)
    wait_for_a_part(work, process)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all of them
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in errors
    assert errors.endswith("\nstopped; the same command goes on where this one was\n")
    assert not dest.exists()
    finished = len(list(work.glob("*.part")))
    assert finished
    process = start(root, dest)
    time.sleep(random.Random(0).uniform(0, 3))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    process = start(root, dest)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    process = start(root, tmp_path / "straight")
    _, errors = process.communicate(timeout=120)
    assert files_of(dest) == files_of(tmp_path / "straight")
    assert len(files_of(dest)) > 5


def test_nobody_reading_what_is_printed_is_no_error(root: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [
            "bash",
            "-c",
            f"{shlex.join([*TOOL, str(root), str(tmp_path / 'd')])} --workers 0 | true; exit ${{PIPESTATUS[0]}}",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "d/dataset.json").exists()


def test_a_full_disk_is_told_and_leaves_nothing_that_looks_whole(root: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=64k none {shlex.quote(str(disk))}"
    if subprocess.run(["unshare", "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs the rights of root")
    write_many(root, 60)
    command = shlex.join([*TOOL, str(root), str(disk / "d"), "--mode", "raw", "--shard-mib", "0.02", "--workers", "0"])
    script = f"{mount} && {{ {command}; echo $?; ls {shlex.quote(str(disk))}; }}"
    done = subprocess.run(["unshare", "-m", "sh", "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["1", "d.packing"]
    assert f"error: no space is left for {disk}/d.packing; make room, and call again" in done.stderr
    assert "Traceback" not in done.stderr.replace("(TRACEBACK", "")


def test_help_names_the_options_and_the_page_those_there_are() -> None:
    done = run_program("tools/pack.py", "--help", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    for option in (
        "--long_side",
        "--short_side",
        "--quality",
        "--subsampling",
        "--restart",
        "--shard_mib",
        "--workers",
    ):
        assert option in done.stdout
    page = (ROOT / "docs" / "packing.md").read_text()
    commands = re.findall(r"^    python -m tools\.pack (.*)$", page, flags=re.MULTILINE)
    assert len(commands) > 5
    for command in commands:
        words = shlex.split(command.split("  #")[0])
        if words[0] != "--verify":
            options = [pack._with_underscores(word) for word in words[2:]]
            load_with_options(options, options=Options, prog="", description="")


def python_of_the_page() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "packing.md").read_text(), re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("package", ["webdataset", "nvidia.dali"])
def test_the_pages_examples_read_what_was_packed(
    package: str, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [code for code in python_of_the_page() if re.search(f"^(import|from) {package}", code, re.MULTILINE)]
    pytest.importorskip(package, reason=f"the package {package} is not installed")
    run_tool(monkeypatch, str(root), str(tmp_path / "my_images_packed"), "--workers", "0")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = done.stdout.splitlines()
    assert len(rows) == (12 if package == "webdataset" else 1)
    source = opened(tmp_path / "my_images_packed")["train"]
    for i, row in enumerate(rows):
        height, width = source.sizes_N2[i].tolist()
        assert re.sub(r"[\[\](),]", " ", row).split() == [str(height), str(width), "3", str(source.labels_N[i])]
