"""The run folder's files, and when a run may continue in it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs.load import config_to_dict, replace_section
from configs.schema import Config, DataConfig, ModelConfig, OptimConfig, TrainConfig
from engine.record import RunFolder, Samples, describe_environment, replace_file

ROOT = Path(__file__).parents[2]
CONFIG = Config(
    data=DataConfig(dataset="digits"),
    model=ModelConfig(name="simple_cnn", args={"width": 8}),
    optim=OptimConfig(name="sgd", lr=0.1),
    train=TrainConfig(epochs=2, global_batch_size=60),
)


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.path.mkdir(parents=True)
    folder.save_start(config_to_dict(CONFIG), {"machine": "CPU"})
    return folder


def test_the_start_leaves_configuration_and_environment(folder):
    assert yaml.safe_load((folder.path / "config.yaml").read_text()) == config_to_dict(CONFIG)
    assert json.loads((folder.path / "environment.json").read_text()) == {"machine": "CPU"}
    assert folder.holds_run()
    assert folder.read_result() is None


def test_the_same_configuration_continues(folder):
    folder.check_continues(config_to_dict(CONFIG))
    moved = replace_section(CONFIG, "run", out="elsewhere", num_threads=7)
    folder.check_continues(config_to_dict(replace_section(moved, "loader", backend="reference")))


def test_another_configuration_stops_and_lists_the_keys(folder):
    other = replace_section(replace_section(CONFIG, "optim", lr=0.2), "model", args={"width": 16})
    with pytest.raises(ValueError, match="another configuration") as error:
        folder.check_continues(config_to_dict(other))
    lines = str(error.value).splitlines()
    assert "  optim.lr: 0.1 -> 0.2" in lines
    assert "  model.args: {'width': 8} -> {'width': 16}" in lines
    assert len(lines) == 4
    assert "--run.out" in lines[-1]


def test_another_pipeline_of_the_users_own_stops_and_says_where_the_runs_is(folder):
    def with_hash(value):
        return config_to_dict(replace_section(CONFIG, "augment", albumentations="a.yaml", albumentations_hash=value))

    assert not (folder.path / "albumentations.json").exists()
    with pytest.raises(
        ValueError, match=r"hash: None -> ab\n.*has no pipeline in augment.albumentations; leave it out"
    ):
        folder.check_continues(with_hash("ab"))
    folder.save_start(with_hash("ab"), {}, pipeline={"transform": {"p": 0.5}})
    path = folder.path / "albumentations.json"
    assert json.loads(path.read_text()) == {"transform": {"p": 0.5}}
    folder.check_continues(with_hash("ab") | {})
    for value in ("cd", None):
        with pytest.raises(ValueError, match="another configuration") as error:
            folder.check_continues(with_hash(value))
        lines = str(error.value).splitlines()
        assert lines[1] == f"  augment.albumentations_hash: ab -> {value}"
        assert lines[2] == f"The run's own pipeline is another one; to have it: --augment.albumentations {path}"


def test_resume_never_stops_at_any_run(folder, tmp_path):
    never = config_to_dict(CONFIG) | {"resume": "never"}
    with pytest.raises(FileExistsError, match="already holds a run and resume=never"):
        folder.check_continues(never)
    RunFolder(tmp_path / "empty").check_continues(never)


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a run folder: it has no config\.yaml"):
        RunFolder(tmp_path).read_config()


def test_metrics_come_back_without_a_line_that_was_cut(folder):
    for step in (1, 2, 3):
        folder.append_metrics({"step": step, "train/loss": 1 / step})
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "tra')
    assert [row["step"] for row in folder.read_metrics()] == [1, 2, 3]
    folder.drop_rows_after(2)
    folder.append_metrics({"step": 3, "train/loss": 0.0})
    assert folder.read_metrics() == [
        {"step": 1, "train/loss": 1.0},
        {"step": 2, "train/loss": 0.5},
        {"step": 3, "train/loss": 0.0},
    ]


def test_no_metrics_and_no_bad_samples_are_no_rows(tmp_path):
    assert RunFolder(tmp_path).read_metrics() == []
    assert RunFolder(tmp_path).read_bad_samples() == []


def test_bad_samples_come_back_and_those_of_after_a_step_are_dropped_with_the_metrics(folder):
    for step in (0, 3, 3, 8):
        folder.append_bad_samples([{"after_step": step, "name": "träin/1.png"}, {"after_step": step, "name": "b"}])
    with open(folder.path / "bad_samples.jsonl", "a") as file:
        file.write('{"after_step": 9, "na')  # a kill cut this line
    assert [row["after_step"] for row in folder.read_bad_samples()] == [0, 0, 3, 3, 3, 3, 8, 8]
    folder.drop_rows_after(3)
    assert [row["after_step"] for row in folder.read_bad_samples()] == [0, 0, 3, 3, 3, 3]
    assert folder.read_bad_samples()[0]["name"] == "träin/1.png"
    folder.append_bad_samples([])
    folder.drop_rows_after(0)
    assert len(folder.read_bad_samples()) == 2


def test_a_run_without_bad_samples_leaves_no_list(folder):
    folder.append_metrics({"step": 1})
    folder.drop_rows_after(1)
    assert not (folder.path / "bad_samples.jsonl").exists()


def test_the_result_comes_back(folder):
    folder.save_result({"test/top1_frac": 0.5})
    assert folder.read_result() == {"test/top1_frac": 0.5}


SAMPLES = Samples(
    images_NHWC=np.arange(2 * 3 * 3 * 1, dtype=np.uint8).reshape(2, 3, 3, 1),
    labels_N=np.array([0, 2]),
    partner_labels_N=np.array([0, 1]),
    weight_N=np.array([1, 0.7], dtype=np.float32),
)


def test_schedule_samples_confusions_and_environment_come_back(folder):
    schedule = {"epoch": [0.0, 0.5, 1.0], "lr": [0.1, 0.05, 1e-9], "momentum": [0.9, 0.95, 0.9]}
    confusions = {"val": np.array([[3, 1], [0, 5]]), "test": np.array([[30, 10], [2, 2**40]])}
    folder.save_schedule(schedule)
    folder.save_samples(SAMPLES)
    folder.save_confusions(confusions)
    assert folder.read_schedule() == schedule
    for name, values in folder.read_samples()._asdict().items():
        expected = getattr(SAMPLES, name)
        assert values.dtype == expected.dtype
        np.testing.assert_array_equal(values, expected)
    read = folder.read_confusions()
    assert list(read) == ["val", "test"]
    for split, counts in confusions.items():
        assert read[split].dtype == np.int64
        np.testing.assert_array_equal(read[split], counts)
    assert folder.read_environment() == {"machine": "CPU"}
    assert not list(folder.path.glob("*.tmp"))


def test_what_was_not_saved_is_not_there(tmp_path):
    folder = RunFolder(tmp_path)
    assert folder.read_schedule() is None
    assert folder.read_samples() is None
    assert folder.read_confusions() == {}
    assert folder.read_environment() == {}


def test_a_dry_run_can_be_shown_but_is_no_run_to_continue(tmp_path):
    folder = RunFolder(tmp_path)
    assert not folder.holds_anything()
    folder.save_samples(SAMPLES)
    assert folder.holds_anything()
    assert not folder.holds_run()
    folder.check_continues(config_to_dict(CONFIG) | {"resume": "never"})


def test_tables_of_unequal_lists_and_matrices_that_are_not_square_are_named(folder):
    (folder.path / "schedule.json").write_text('{"epoch": [0, 1], "lr": [0.1]}')
    with pytest.raises(ValueError, match=r"schedule\.json cannot be read: it should hold lists of one length"):
        folder.read_schedule()
    folder.save_confusions({"val": np.zeros((2, 3), dtype=np.int64)})
    with pytest.raises(ValueError, match=r"confusion\.npz cannot be read: val has shape \(2, 3\), not \(K, K\)"):
        folder.read_confusions()
    folder.save_samples(SAMPLES._replace(labels_N=np.array([0])))
    with pytest.raises(ValueError, match=r"samples\.npz cannot be read: it holds"):
        folder.read_samples()


def test_arrays_cut_by_a_full_disk_are_named(folder):
    folder.save_samples(SAMPLES)
    content = (folder.path / "samples.npz").read_bytes()
    (folder.path / "samples.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"samples\.npz cannot be read"):
        folder.read_samples()


def test_a_file_that_cannot_be_written_stays_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "result.json"
    replace_file(path, b"old")

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engine.record.os.fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        replace_file(path, b"new and longer")
    assert path.read_bytes() == b"old"


def test_the_environment_names_versions_machine_and_command():
    environment = describe_environment({"world_size": 2})
    assert environment["packages"].keys() >= {"torch", "torchvision", "accelerate"}
    assert environment["world_size"] == 2
    assert environment["command"]
    assert environment["cpu_cores"] >= 1


def test_a_run_whose_configuration_is_gone_is_not_continued(folder):
    folder.append_metrics({"step": 1})
    (folder.path / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml"):
        folder.check_continues(config_to_dict(CONFIG))
    with pytest.raises(FileExistsError, match="resume=never"):
        folder.check_continues(config_to_dict(CONFIG) | {"resume": "never"})


BROKEN = ["config.yaml", "result.json", "metrics.jsonl", "bad_samples.jsonl"]
BROKEN += ["environment.json", "schedule.json", "samples.npz", "confusion.npz"]


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_named(folder, name):
    (folder.path / name).write_text("{ broken\n")
    read = {
        "config.yaml": folder.read_config,
        "result.json": folder.read_result,
        "metrics.jsonl": folder.read_metrics,
        "bad_samples.jsonl": folder.read_bad_samples,
        "environment.json": folder.read_environment,
        "schedule.json": folder.read_schedule,
        "samples.npz": folder.read_samples,
        "confusion.npz": folder.read_confusions,
    }
    with pytest.raises(ValueError, match=rf"{name}.* cannot be read"):
        read[name]()


_CLAIM = """
import sys
from engine.record import RunFolder
with RunFolder(sys.argv[1]).claim():
    print("claimed")
"""


def claim_elsewhere(folder):
    return subprocess.run([sys.executable, "-c", _CLAIM, folder.path], cwd=ROOT, capture_output=True, text=True)


def test_a_second_process_cannot_train_in_the_same_folder(folder):
    with folder.claim():
        refused = claim_elsewhere(folder)
    assert refused.returncode != 0
    assert f"another process is training in {folder.path} (process {os.getpid()} on " in refused.stderr
    assert claim_elsewhere(folder).stdout == "claimed\n"


def test_a_run_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"the run folder .*file/run cannot be written .* use another --run\.out"):
        RunFolder(tmp_path / "file" / "run").claim().__enter__()


@pytest.mark.parametrize("name", ["result.json", "environment.json", "metrics.jsonl", "bad_samples.jsonl"])
def test_a_file_that_holds_a_list_in_place_of_names_is_told(folder, name):
    (folder.path / name).write_text("[1, 2]\n")
    read = {
        "result.json": folder.read_result,
        "environment.json": folder.read_environment,
        "metrics.jsonl": folder.read_metrics,
        "bad_samples.jsonl": folder.read_bad_samples,
    }[name]
    with pytest.raises(ValueError, match=rf"{name}.* cannot be read: it holds no names; put it back"):
        read()
