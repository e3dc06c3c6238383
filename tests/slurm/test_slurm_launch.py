"""What slurm/launch.sh tells the launchers, and what it makes of how they end; with a stand-in for accelerate."""

import json
import time

import pytest
from cluster import wait_for

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TWO_NODES = ("--nodes=2", "--cpus-per-task=4", "--time=5", "slurm/train.sh")
DONE = ("COMPLETED", "FAILED", "CANCELLED")


@pytest.fixture
def run_job(cluster, stand_in):
    """Submits a job and waits for its end; gives what Slurm knows of it."""

    def run(*words, **environ):
        key = cluster.submit(*words, SETUP=stand_in, **environ)
        return cluster.wait_for_state(key, *DONE, timeout_s=60)

    return run


@pytest.fixture
def calls(project):
    """How the stand-ins of a job were called, in the order of the nodes, and on each of the starts."""

    def read(key):
        files = sorted((project / "runs" / "slurm" / key).glob("calls-*.jsonl"))
        return [json.loads(line) for file in files for line in file.read_text().splitlines()]

    return read


@pytest.fixture
def output(project):
    def read(key):
        return (project / f"slurm-{key}.out").read_text()

    return read


def test_two_nodes_are_told_of_each_other_and_of_the_world_size(run_job, calls, project):
    job = run_job(*TWO_NODES, "--ends", "finish", "--optim.lr", "0.1")
    key = job["JobId"]
    assert job["JobState"] == "COMPLETED"
    one, two = calls(key)
    assert (one["host"], two["host"]) == ("node1", "node2")
    for rank, call in enumerate((one, two)):
        options = call["options"]
        assert call["words"][0] == "launch"
        assert "--multi_gpu" in options
        assert (options["--machine_rank"], options["--num_machines"], options["--num_processes"]) == (
            str(rank),
            "2",
            "4",
        )
        assert options["--main_process_ip"] == "node1"
        assert options["--main_process_port"] == str(20000 + int(key))
        assert (options["--run.world_size"], options["--run.num_threads"]) == ("4", "2")
        assert options["--run.control"] == str(project / "runs" / "slurm" / key)
        assert options["--optim.lr"] == "0.1"
        assert call["environ"]["ACCELERATE_USE_CPU"] == "true"
        assert call["environ"]["OMP_NUM_THREADS"] == "2"
        assert call["environ"]["PET_SIGNALS_TO_HANDLE"] == "SIGINT,SIGHUP,SIGQUIT"


def test_a_job_with_gpus_has_a_process_for_each(run_job, calls):
    job = run_job("--gpus-per-node=2", *TWO_NODES, "--ends", "finish", RANKS_PER_NODE="5")
    for call in calls(job["JobId"]):
        assert call["options"]["--num_processes"] == "4"
        assert call["environ"]["ACCELERATE_USE_CPU"] is None


def test_a_single_process_is_not_started_as_one_of_several(run_job, calls):
    job = run_job("slurm/train.sh", "--ends", "finish", RANKS_PER_NODE="1")
    (call,) = calls(job["JobId"])
    assert "--multi_gpu" not in call["options"]
    assert "--main_process_port" not in call["options"]
    assert call["options"]["--run.num_threads"] == "8"


def test_another_program_is_named_by_a_variable(run_job, calls):
    job = run_job("slurm/train.sh", "--ends", "finish", PROGRAM="finetune.py")
    (call,) = calls(job["JobId"])
    assert "finetune.py" in call["words"]
    assert "train.py" not in call["words"]


def test_a_job_whose_error_would_come_again_is_not_started_again(run_job, output):
    job = run_job(*TWO_NODES, "--ends", "fail")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    assert f"job {job['JobId']}: another start would fail as well: nothing to learn from\n" in output(job["JobId"])


def test_a_job_that_lost_a_process_after_a_checkpoint_is_started_again(run_job, output, calls):
    job = run_job(*TWO_NODES, "--ends", "save")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "a process was lost after the checkpoint of step 7; to be started again" in output(job["JobId"])
    assert len(calls(job["JobId"])) == 4


def test_a_job_that_loses_a_process_three_times_before_a_checkpoint_is_given_up(run_job, output):
    job = run_job(*TWO_NODES, "--ends", "lose")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "2")
    assert output(job["JobId"]).endswith("three starts in a row ended before a checkpoint\n")


def test_a_job_without_accelerate_fails_at_once_and_names_the_variable(cluster, output):
    key = cluster.submit(*TWO_NODES, SETUP=". nowhere/bin/activate &&")
    job = cluster.wait_for_state(key, *DONE, timeout_s=20)
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    assert "no accelerate with SETUP=. nowhere/bin/activate && on node" in output(key)


def test_a_folder_is_staged_on_the_disk_of_every_node_and_taken_away_again(run_job, calls, tmp_path):
    (tmp_path / "my images").mkdir()
    (tmp_path / "my images" / "one.png").touch()
    job = run_job(*TWO_NODES, "--ends", "finish", "--data.root", "elsewhere", STAGE=str(tmp_path / "my images"))
    key = job["JobId"]
    assert job["JobState"] == "COMPLETED"
    disks = []
    for call in calls(key):
        assert call["options"]["--data.root"] == f"{call['environ']['TMPDIR']}/exactvision-{key}"
        assert call["data"] == ["one.png"]
        disks.append(call["environ"]["TMPDIR"])
    assert len(set(disks)) == 2
    for call in calls(key):
        assert not (tmp_path / call["options"]["--data.root"]).exists()


def test_a_folder_that_cannot_be_staged_ends_the_job_and_is_named(run_job, output):
    job = run_job(*TWO_NODES, "--ends", "finish", STAGE="nowhere")
    assert (job["JobState"], job["Restarts"]) == ("FAILED", "0")
    assert "another start would fail as well: no copy of STAGE=nowhere in " in output(job["JobId"])


def test_each_run_of_an_array_takes_its_line_of_the_file_with_quotes(cluster, stand_in, calls, output, tmp_path):
    overrides = tmp_path / "overrides.txt"
    overrides.write_text("--optim.lr 0.1\n--augment.sizes_px \"[[0, 24], [5, 32]]\" --model.name 'a b'\n")
    array = ("--array=1-3", "--time=5", "slurm/array.sh", "--ends", "finish")
    number = cluster.submit(*array, SETUP=stand_in, OVERRIDES=str(overrides))
    keys = [f"{number}_{task}" for task in (1, 2, 3)]
    states = [cluster.wait_for_state(key, *DONE, timeout_s=30)["JobState"] for key in keys]
    assert states == ["COMPLETED", "COMPLETED", "FAILED"]
    (one,), (two,) = calls(keys[0]), calls(keys[1])
    assert one["options"]["--optim.lr"] == "0.1"
    assert two["options"]["--augment.sizes_px"] == "[[0, 24], [5, 32]]"
    assert two["options"]["--model.name"] == "a b"
    assert one["options"]["--main_process_port"] != two["options"]["--main_process_port"]
    assert f"{overrides} has no line 3" in output(keys[2])


def test_the_runs_of_an_array_have_their_numbers_for_seeds(cluster, stand_in, calls):
    number = cluster.submit("--array=3-4", "--time=5", "slurm/array.sh", "--ends", "finish", SETUP=stand_in)
    for seed in (3, 4):
        cluster.wait_for_state(f"{number}_{seed}", *DONE, timeout_s=30)
        (call,) = calls(f"{number}_{seed}")
        assert call["options"]["--run.seed"] == str(seed)


def test_a_batch_script_that_gets_term_in_preemption_waits_for_slurm_to_queue_the_job_again(
    cluster, stand_in, project, output
):
    key = cluster.submit(*TWO_NODES, "--ends", "stop", SETUP=stand_in)
    control = project / "runs" / "slurm" / key
    wait_for(lambda: len(list(control.glob("calls-*"))) == 2, timeout_s=20, what="two launchers")
    cluster.submit("--nodes=2", "--exclusive", "--partition=high", "--output=/dev/null", "--wrap=sleep 1")
    wait_for(lambda: cluster.job(key).get("PreemptTime") != "None", timeout_s=10, what="preempted")
    cluster.run("scancel", "--batch", "--signal=TERM", key)
    time.sleep(3)
    assert (control / "stopped").exists()
    assert cluster.job(key)["JobState"] == "RUNNING"
    job = cluster.wait_for_state(key, *DONE, timeout_s=60)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert "to be started again" not in output(key)
