"""Checkpoints are whole or not there, and say what is wrong with them."""

import contextlib
import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from engine import checkpoint
from engine.checkpoint import (
    load_training_state,
    load_weights,
    newest_checkpoint,
    prune_checkpoints,
    read_card,
    save_checkpoint,
    scored_checkpoint,
)
from engine.writer import snapshot


def save(folder: Path, *, step: int, best_step: int | None = None, module: nn.Module | None = None) -> Path:
    module = module or nn.Linear(3, 2)
    return save_checkpoint(
        folder,
        step=step,
        best_step=best_step,
        weights=snapshot(module.state_dict()),
        card={"model": {"name": "linear"}},
        training_state={"step": step, "moments": [torch.arange(3.0)], "loader": {"epoch": 1}},
    )


def test_a_checkpoint_gives_back_weights_state_and_card(tmp_path):
    module, other = nn.Linear(3, 2), nn.Linear(3, 2)
    path = save(tmp_path, step=7, module=module)
    load_weights(other, path)
    assert torch.equal(other.weight, module.weight)
    assert torch.equal(other.bias, module.bias)
    state = load_training_state(path)
    assert state["step"] == 7
    assert torch.equal(state["moments"][0], torch.arange(3.0))
    assert read_card(path) == {"model": {"name": "linear"}}


def test_tied_and_non_contiguous_weights_are_saved(tmp_path):
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last))
    module[1].weight = module[0].weight
    other = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3))
    load_weights(other, save(tmp_path, step=1, module=module))
    assert torch.equal(other[1].weight, module[0].weight)
    assert torch.equal(other[2].weight, module[2].weight)


def test_the_newest_whole_checkpoint_is_found_and_the_others_are_named(tmp_path):
    whole = save(tmp_path, step=10)
    damaged, incomplete = save(tmp_path, step=20), save(tmp_path, step=30)
    with open(damaged / "model.safetensors", "r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    (incomplete / "manifest.json").unlink()
    (tmp_path / "step_00000040.tmp").mkdir()
    path, passed_over = newest_checkpoint(tmp_path)
    assert path == whole
    assert passed_over == [
        "step_00000040.tmp: half-written, passed over",
        "step_00000030: incomplete (manifest.json is missing), passed over",
        "step_00000020: damaged (model.safetensors changed since it was written), passed over",
    ]


def test_a_truncated_manifest_is_passed_over(tmp_path):
    path = save(tmp_path, step=1)
    (path / "manifest.json").write_text((path / "manifest.json").read_text()[:20])
    assert newest_checkpoint(tmp_path) == (
        None,
        ["step_00000001: incomplete (its manifest.json cannot be read), passed over"],
    )


def test_no_folder_is_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path / "none") == (None, [])
    with pytest.raises(FileNotFoundError, match="holds no whole checkpoint"):
        scored_checkpoint(tmp_path / "none")


def test_pruning_keeps_the_newest_and_the_best(tmp_path):
    for step in range(10, 60, 10):
        save(tmp_path, step=step, best_step=20)
    (tmp_path / "step_00000060.tmp").mkdir()
    prune_checkpoints(tmp_path, step=50, keep=2, best_step=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000020", "step_00000040", "step_00000050"]


def test_pruning_keeps_the_best_of_each_checkpoint_that_a_run_may_continue_from(tmp_path):
    save(tmp_path, step=10, best_step=10)
    save(tmp_path, step=20, best_step=10)
    newest = save(tmp_path, step=30, best_step=30)
    prune_checkpoints(tmp_path, step=30, keep=2, best_step=30)
    (newest / "model.safetensors").write_bytes(b"")  # changed on disk: the run continues from 20
    assert scored_checkpoint(tmp_path).name == "step_00000010"


def test_pruning_does_not_stumble_over_a_broken_manifest(tmp_path):
    (save(tmp_path, step=10) / "manifest.json").write_text("[1, 2]")
    whole = save(tmp_path, step=20)
    prune_checkpoints(tmp_path, step=20, keep=2, best_step=None)
    assert newest_checkpoint(tmp_path)[0] == whole


class Killed(BaseException):
    """Stands for a kill: nothing is done about it."""


@pytest.mark.parametrize("function", ["rename", "rmtree"])
@pytest.mark.parametrize("count", range(5))
def test_a_kill_while_the_only_checkpoint_is_replaced_leaves_one(tmp_path, monkeypatch, function, count):
    save(tmp_path, step=10)
    owner, calls = {"rename": checkpoint.os, "rmtree": checkpoint.shutil}[function], []
    inner = getattr(owner, function)

    def killed(path, *args, **options):
        if len(calls) == count:
            if function == "rmtree" and Path(path).exists():  # in the middle of it
                (Path(path) / "manifest.json").unlink()
            raise Killed
        calls.append(1)
        inner(path, *args, **options)

    monkeypatch.setattr(owner, function, killed)
    with contextlib.suppress(Killed):
        save(tmp_path, step=10)
    monkeypatch.undo()
    found, passed_over = newest_checkpoint(tmp_path)
    assert found is not None, passed_over
    assert load_training_state(found)["step"] == 10
    assert scored_checkpoint(tmp_path) == found
    save(tmp_path, step=20)
    prune_checkpoints(tmp_path, step=20, keep=1, best_step=None)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000020"]


def test_a_rename_that_fails_is_told_with_what_to_do(tmp_path, monkeypatch):
    earlier = save(tmp_path, step=10)

    def fail(path, target):
        raise OSError(errno.ENOTEMPTY, "Directory not empty")

    monkeypatch.setattr(checkpoint.os, "rename", fail)
    with pytest.raises(
        OSError, match=r"could not write checkpoint .*step_00000020 .*Directory not empty.*same command"
    ):
        save(tmp_path, step=20)
    assert newest_checkpoint(tmp_path) == (earlier, [])


def test_pruning_never_takes_a_broken_later_checkpoint_for_the_newest(tmp_path):
    for step in (50, 75, 100):
        save(tmp_path, step=step)
    (tmp_path / "step_00000100" / "manifest.json").unlink()
    (tmp_path / "step_00000100_backup").mkdir()
    whole = save(tmp_path, step=80)  # the run went on from 75
    prune_checkpoints(tmp_path, step=80, keep=1, best_step=None)
    assert newest_checkpoint(tmp_path) == (whole, [])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_00000080", "step_00000100_backup"]


def test_checkpoints_are_ordered_by_number_beyond_eight_digits(tmp_path):
    save(tmp_path, step=99_999_999)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step_99999999"
    later = save(tmp_path, step=100_000_000)
    assert newest_checkpoint(tmp_path)[0] == later


def test_a_manifest_that_is_no_manifest_is_passed_over(tmp_path):
    (save(tmp_path, step=1) / "manifest.json").write_text("[1, 2]")
    assert newest_checkpoint(tmp_path)[0] is None


def test_a_best_checkpoint_that_is_broken_is_named(tmp_path):
    (save(tmp_path, step=10) / "model.safetensors").write_bytes(b"")
    save(tmp_path, step=20, best_step=10)
    with pytest.raises(FileNotFoundError, match=r"step_00000010, the best checkpoint so far, is damaged"):
        scored_checkpoint(tmp_path)


def test_the_best_checkpoint_is_scored_else_the_newest(tmp_path):
    save(tmp_path, step=10)
    save(tmp_path, step=20, best_step=10)
    assert scored_checkpoint(tmp_path).name == "step_00000010"
    save(tmp_path, step=30, best_step=None)
    assert scored_checkpoint(tmp_path).name == "step_00000030"


def test_another_architecture_is_refused_with_the_differing_keys(tmp_path):
    path = save(tmp_path, step=1, module=nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, bias=False)))
    with pytest.raises(ValueError, match="another architecture") as error:
        load_weights(nn.Sequential(nn.Linear(3, 5)), path)
    lines = str(error.value).splitlines()
    assert "  + 1.weight 2x2" in lines
    assert "  - 0.weight 5x3" in lines
    assert "  + 0.weight 2x3" in lines


def test_the_training_state_can_run_no_code(tmp_path):
    path = save(tmp_path, step=1)
    torch.save({"step": Path("pickled")}, path / "training_state.pt")
    with pytest.raises(Exception, match="weights_only"):
        load_training_state(path)


def test_a_stale_half_written_checkpoint_is_overwritten(tmp_path):
    (tmp_path / "step_00000005.tmp").mkdir(parents=True)
    (tmp_path / "step_00000005.tmp" / "model.safetensors").write_text("part")
    assert newest_checkpoint(tmp_path)[0] is None
    save(tmp_path, step=5)
    assert newest_checkpoint(tmp_path)[0] == tmp_path / "step_00000005"


def test_a_failed_write_leaves_the_earlier_checkpoint_and_no_rest(tmp_path, monkeypatch):
    first = save(tmp_path, step=1)

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint.torch, "save", fail)
    with pytest.raises(OSError, match=r"could not write checkpoint .*step_00000002 .*No space left") as error:
        save(tmp_path, step=2)
    assert "free some space and start the same command again" in str(error.value)
    assert newest_checkpoint(tmp_path) == (first, [])
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


_FILL_DISK = """
import sys, torch
from pathlib import Path
from engine.checkpoint import newest_checkpoint, save_checkpoint
folder = Path(sys.argv[1])
def save(step, size):
    save_checkpoint(folder, step=step, best_step=None, weights={"w": torch.ones(size)}, card={}, training_state={})
save(1, 1000)
try:
    save(2, 2_000_000)
except OSError as error:
    print("refused:", error)
print(newest_checkpoint(folder))
save(3, 1000)
print(newest_checkpoint(folder))
"""


@pytest.mark.slow
def test_on_a_really_full_disk_the_last_good_checkpoint_survives(tmp_path):
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("needs Linux and the program unshare, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    mount = f"mount -t tmpfs -o size=2m tmpfs {small}"
    if subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount], capture_output=True
    ).returncode:
        pytest.skip("this machine does not let a process mount a file system of its own")
    command = f'{mount} && "{sys.executable}" -c "$SCRIPT" {small}/checkpoints'
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", command],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env={"SCRIPT": _FILL_DISK, "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"},
    )
    assert done.returncode == 0, done.stderr
    refused, after_refusal, after_recovery = done.stdout.splitlines()
    assert refused.startswith("refused: could not write checkpoint")
    assert "step_00000001" in after_refusal
    assert after_refusal.endswith("[])")
    assert "step_00000003" in after_recovery


def test_the_manifest_names_step_and_best(tmp_path):
    manifest = json.loads((save(tmp_path, step=4, best_step=2) / "manifest.json").read_text())
    assert (manifest["step"], manifest["best_step"], len(manifest["sha256"])) == (4, 2, 3)
