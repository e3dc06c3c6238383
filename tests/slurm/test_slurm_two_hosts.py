"""Two hosts without Slurm, by the README's commands: two network namespaces with a cable between them."""

import re
import shlex
import subprocess

import pytest
import torch
from cluster import Host
from programs import BIN, ROOT, clean_environ, epoch_rows, final_weights, succeed

pytestmark = [pytest.mark.slurm, pytest.mark.dist, pytest.mark.slow]

ADDRESSES = {"first": "10.78.0.1", "second": "10.78.0.2"}
README = (ROOT / "README.md").read_text()


@pytest.fixture
def hosts(can_make_hosts, tmp_path):
    """Two hosts that reach each other, and nothing else."""
    names = tmp_path / "hosts"
    lines = [f"{address} {name}" for name, address in ADDRESSES.items()]
    names.write_text("\n".join(["127.0.0.1 localhost", *lines]) + "\n")
    first = Host("first", hosts=names)
    second = Host("second", hosts=names)
    try:
        second.join(first, ADDRESSES["second"], other_address=ADDRESSES["first"])
        yield [first, second]
    finally:
        second.kill()
        first.kill()


def test_the_readmes_commands_train_on_two_hosts_what_one_process_trains(hosts, small_recipe, tmp_path):
    section = README[README.index("## Several hosts") :]
    commands = re.findall(r"^    (accelerate launch .*--machine_rank.*?) *#", section, flags=re.MULTILINE)
    assert len(commands) == 2
    recipe = small_recipe(train={"epochs": 2, "global_batch_size": 60, "precision": "fp64"}, run={"trackers": []})
    processes = []
    for host, command in zip(hosts, commands, strict=True):
        words = shlex.split(command.replace("FIRST_HOST", ADDRESSES["first"]))
        program = words.index("train.py") + 1
        words[program:program] = ["--config", str(recipe), "--run.out", str(tmp_path / "two")]
        disk = tmp_path / host.name
        disk.mkdir()
        environ = clean_environ() | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TMPDIR": str(disk)}
        processes.append(
            subprocess.Popen(
                host.enter([str(BIN / words[0]), *words[1:]], folder=ROOT),
                env=environ,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert "4 processes" in outputs[0]
    succeed("train.py", "--config", str(recipe), "--run.out", str(tmp_path / "one"))
    rows = [[row["train/ids_hash"] for row in epoch_rows(tmp_path / name)] for name in ("one", "two")]
    assert rows[0] == rows[1]
    expected = final_weights(tmp_path / "one")
    for name, value in final_weights(tmp_path / "two").items():
        assert torch.allclose(value, expected[name], rtol=0, atol=1e-9), name
