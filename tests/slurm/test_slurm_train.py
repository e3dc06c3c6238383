"""Training by slurm/train.sh and slurm/array.sh on two nodes with two processes each; whatever ends it, it goes on.

Each start of four processes takes some ten seconds of two cores, so all tests share one run that nothing ended.
"""

import contextlib
import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
from cluster import Cluster, wait_for
from programs import epoch_rows, final_weights, succeed

from engine.checkpoint import newest_checkpoint

pytestmark = [pytest.mark.slurm, pytest.mark.dist, pytest.mark.slow]

STEPS_PER_EPOCH = 107  # of 1,293 images in batches of 12
RECIPE = shlex.split("""
--config configs/digits/simple_cnn.yaml --train.precision fp64 --train.epochs 2 --train.global_batch_size 12
--model.args.norm none --model.args.dropout 0 --model.args.width 8 --model.args.hidden 32 --model.args.init kaiming
--optim.name sgd --optim.lr 0.02 --optim.momentum 0.9 --run.log_every_steps 1 --run.trackers []
""")
JOB = ("--nodes=2", "--cpus-per-task=2", "--time=10", "slurm/train.sh", *RECIPE)
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")


def run_to_end(cluster, folder, *options):
    """A job that nothing disturbs."""
    key = cluster.submit(*JOB, *options, "--run.out", str(folder))
    job = cluster.wait_for_state(key, *ENDED, timeout_s=120)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0"), output_of(cluster, key)
    return folder


@pytest.fixture(scope="module")
def straight(cluster, tmp_path_factory):
    """The run folder of a job that nothing disturbed."""
    return run_to_end(cluster, tmp_path_factory.mktemp("straight") / "run")


@pytest.fixture
def start(cluster, tmp_path):
    """Submits a job and waits until it is in the middle of its second epoch; gives its number and its run folder."""

    def submit(*options, on: Cluster = cluster):
        key = on.submit(*JOB, *options, "--run.out", str(tmp_path / "run"))
        wait_for_step(tmp_path / "run", STEPS_PER_EPOCH + 20)
        return key, tmp_path / "run"

    return submit


def output_of(cluster, key):
    return (cluster.project / f"slurm-{key}.out").read_text()


def wait_for_step(folder, step):
    def has_come():
        text = (folder / "metrics.jsonl").read_text() if (folder / "metrics.jsonl").exists() else ""
        lines = text.split("\n")[:-1]  # the last one may be half written
        return bool(lines) and json.loads(lines[-1])["step"] >= step

    wait_for(has_come, timeout_s=90, what=f"{folder} at step {step}", every_s=0.01)


def process_of(number, rank):
    """The process of a rank of a job, seen from outside; None if it is not there."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            if b"train.py" not in words or b"launch" in words or b"python" not in words[0]:
                continue
            environ = dict(word.partition(b"=")[::2] for word in (path / "environ").read_bytes().split(b"\0"))
            if (environ.get(b"SLURM_JOB_ID"), environ.get(b"RANK", b"0")) == (number.encode(), str(rank).encode()):
                return int(path.name)
    return None


@contextlib.contextmanager
def held(number, *, rank=0):
    """Within, a rank of a job stands still, and so do all: what is waited for meets the run in mid-epoch."""
    process = process_of(number, rank)
    os.kill(process, signal.SIGSTOP)
    end = time.monotonic() + 1.1  # rank 0 looks for files once a second, and then finds what was left meanwhile
    try:
        yield
        time.sleep(max(0.0, end - time.monotonic()))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def stop_step(cluster, key):
    """The step at which a job said it stopped."""
    return int(re.search(rf"job {key}: stopped by .*step (\d+).*; to be started again", output_of(cluster, key))[1])


def assert_went_on(cluster, key, folder, straight):
    """Started again once by Slurm under its number, and ended as the run that nothing disturbed."""
    job = cluster.wait_for_state(key, *ENDED, timeout_s=150)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), output_of(cluster, key)
    assert "continuing from" in output_of(cluster, key)
    assert_same_end(folder, straight)


def assert_same_end(folder, straight):
    expected, found = final_weights(straight), final_weights(folder)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    rows, expected_rows = epoch_rows(folder), epoch_rows(straight)
    assert [row.pop("train/ids_hash") for row in rows] == [row.pop("train/ids_hash") for row in expected_rows]
    for row, expected_row in zip(rows, expected_rows, strict=True):  # sums over the ranks, added up in another order
        assert row == pytest.approx(expected_row, rel=1e-12)
    assert (folder / "result.json").read_text() == (straight / "result.json").read_text()


def preempt(cluster, key):
    """Hands in a job that takes the nodes; returns when the other one has been told."""
    cluster.submit("--nodes=2", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: cluster.job(key).get("PreemptTime") != "None", timeout_s=20, what="preemption")


def test_four_processes_on_two_nodes_train_the_samples_and_the_weights_of_one(straight, tmp_path):
    alone = tmp_path / "alone"
    succeed("train.py", *RECIPE, "--run.out", str(alone), "--run.num_threads", "1")
    hashes = [row["train/ids_hash"] for row in epoch_rows(alone)]
    assert len(set(hashes)) == 2
    assert epoch_rows(alone)[-1]["train/epoch_top1_frac"] > 0.5  # it learns
    assert [row["train/ids_hash"] for row in epoch_rows(straight)] == hashes
    expected = final_weights(alone)
    for name, value in final_weights(straight).items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-9), name


def test_a_run_told_by_usr1_in_mid_epoch_is_started_again_and_ends_bit_equal(cluster, straight, start, project):
    key, folder = start()
    with held(key):
        cluster.run("scancel", "--batch", "--signal=USR1", key)
        wait_for((project / "runs" / "slurm" / key / "stop").exists, timeout_s=10, what="a file called stop")
    assert_went_on(cluster, key, folder, straight)
    assert STEPS_PER_EPOCH < stop_step(cluster, key) < 2 * STEPS_PER_EPOCH


def test_a_run_told_by_usr1_while_it_starts_is_started_again_and_ends_bit_equal(cluster, straight, tmp_path):
    key = cluster.submit(*JOB, "--run.out", str(tmp_path / "run"))
    wait_for(lambda: process_of(key, 3), timeout_s=60, what="rank 3")  # it imports torch now
    cluster.run("scancel", "--batch", "--signal=USR1", key)
    assert_went_on(cluster, key, tmp_path / "run", straight)
    assert stop_step(cluster, key) < 10


def test_a_run_preempted_by_term_is_started_again_and_ends_bit_equal(cluster, straight, start):
    key, folder = start()
    with held(key):
        preempt(cluster, key)
    assert_went_on(cluster, key, folder, straight)
    assert STEPS_PER_EPOCH < stop_step(cluster, key) < 2 * STEPS_PER_EPOCH


def test_a_run_preempted_by_a_users_signal_is_started_again_and_ends_bit_equal(project, environ, straight, start):
    sends_signals = "SlurmctldParameters=preempt_send_user_signal\nFirstJobId=5000"
    with Cluster(project, environ=environ, more=sends_signals) as cluster:
        key, folder = start(on=cluster)
        with held(key):
            preempt(cluster, key)
        assert_went_on(cluster, key, folder, straight)
        assert "a file called stop" in output_of(cluster, key)


def test_a_run_at_its_time_limit_is_started_again_and_ends_bit_equal(cluster, straight, tmp_path, project):
    limited = ("--time=2", "--signal=B:USR1@30", *(word for word in JOB if not word.startswith("--time")))
    key = cluster.submit(*limited, "--run.out", str(tmp_path / "run"))
    wait_for_step(tmp_path / "run", STEPS_PER_EPOCH + 20)
    with held(key):  # Slurm looks about twice a minute
        wait_for((project / "runs" / "slurm" / key / "stop").exists, timeout_s=130, what="a signal of Slurm's own")
    assert_went_on(cluster, key, tmp_path / "run", straight)


def test_a_run_that_loses_a_process_is_started_again_within_a_minute_and_ends_bit_equal(cluster, straight, start):
    key, folder = start()
    os.kill(process_of(key, 3), signal.SIGKILL)
    wait_for(lambda: cluster.job(key)["JobState"] != "RUNNING", timeout_s=60, what="the end of the other processes")
    assert_went_on(cluster, key, folder, straight)
    assert "a process was lost after the checkpoint of step 107; to be started again" in output_of(cluster, key)


def test_a_run_of_which_a_process_hangs_is_started_again_within_a_minute_and_ends_bit_equal(cluster, straight, start):
    key, folder = start("--run.stall_minutes", "0.2")
    with held(key, rank=3):
        wait_for(lambda: cluster.job(key)["JobState"] != "RUNNING", timeout_s=60, what="the end of all processes")
    assert_went_on(cluster, key, folder, straight)


@pytest.mark.parametrize("node", ["node1", "node2"])  # where the batch script is, and where it is not
def test_a_run_whose_node_dies_is_started_again_and_ends_bit_equal(cluster, straight, start, node):
    key, folder = start()
    cluster.kill_node(node)
    try:
        wait_for(lambda: cluster.job(key)["JobState"] != "RUNNING", timeout_s=60, what="noticed")
    finally:
        cluster.start_node(node)
    assert_went_on(cluster, key, folder, straight)


def test_a_run_that_is_cancelled_is_saved_and_does_not_come_back(cluster, start, project):
    key, folder = start()
    with held(key):
        cluster.run("scancel", key)
    assert cluster.wait_for_state(key, "CANCELLED", timeout_s=30)["Restarts"] == "0"
    assert (project / "runs" / "slurm" / key / "stopped").exists()
    time.sleep(8)  # longer than it takes to come back
    assert cluster.job(key)["JobState"] == "CANCELLED"
    assert newest_checkpoint(folder / "checkpoints")[0].name != f"step_{STEPS_PER_EPOCH}"
    assert not (folder / "result.json").exists()


def test_in_an_array_the_interrupted_run_alone_is_started_again(cluster, tmp_path, project):
    folders = [tmp_path / "first", tmp_path / "last"]
    overrides = tmp_path / "overrides.txt"
    overrides.write_text(
        "".join(f"--run.seed {number} --run.out '{folder}'\n" for number, folder in enumerate(folders))
    )
    words = ("--array=1-2", "--cpus-per-task=1", "--time=10", "slurm/array.sh", *RECIPE)
    number = cluster.submit(*words, RANKS_PER_NODE="1", OVERRIDES=str(overrides))
    wait_for_step(folders[1], STEPS_PER_EPOCH + 20)
    last = f"{number}_2"  # its SLURM_JOB_ID is the number of the whole array
    with held(cluster.job(last)["JobId"]):
        cluster.run("scancel", "--batch", "--signal=USR1", last)
        wait_for((project / "runs" / "slurm" / last / "stop").exists, timeout_s=10, what="a file called stop")
    jobs = [cluster.wait_for_state(f"{number}_{task}", *ENDED, timeout_s=120) for task in (1, 2)]
    assert [(job["JobState"], job["Restarts"]) for job in jobs] == [("COMPLETED", "0"), ("COMPLETED", "1")]
    assert "continuing from" not in output_of(cluster, f"{number}_1")
    alone = tmp_path / "alone"
    succeed("train.py", *RECIPE, "--run.seed", "1", "--run.out", str(alone), "--run.num_threads", "1")
    assert_same_end(folders[1], alone)
