"""The scripts as texts: short, valid, explained; and what slurm/README.md says of them."""

import re
import shlex
import shutil
import subprocess

import pytest
from programs import ROOT

from configs.load import DEFAULT_RECIPE, load_with_options
from engine.folds import FoldOptions
from finetune import RECIPE

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
BATCH_SCRIPTS = [path for path in SCRIPTS if path.name != "launch.sh"]
PAGE = (ROOT / "slurm" / "README.md").read_text()


def test_there_are_these_scripts():
    assert [path.name for path in SCRIPTS] == ["array.sh", "finetune.sh", "launch.sh", "train.sh"]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_has_at_most_sixty_lines_and_bash_can_read_it(path):
    lines = path.read_text().splitlines()
    assert len(lines) < 60
    assert max(map(len, lines)) <= 120
    subprocess.run(["bash", "-n", str(path)], check=True)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing():
    command = ["shellcheck", "--shell=bash", "--external-sources", *(str(path.relative_to(ROOT)) for path in SCRIPTS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", BATCH_SCRIPTS, ids=lambda path: path.name)
def test_every_line_for_sbatch_is_explained(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("#SBATCH")]
    assert len(lines) >= 9
    for line in lines:
        assert re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)? +# .{10,}", line), line


def test_the_commands_of_the_page_are_taken_by_script_and_program():
    commands = re.findall(r"^    ((?:[A-Z_]+=\S+ )*sbatch .*?)(?:  +#.*)?$", PAGE, flags=re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        words = [word for word in shlex.split(command) if not re.match(r"[A-Z_]+=", word)]
        place = next(number for number, word in enumerate(words) if word.endswith(".sh"))
        assert (ROOT / words[place]).exists(), command
        staged = ["--data.root", "copy"] if "STAGE=" in command else []
        recipe = RECIPE if words[place] == "slurm/finetune.sh" else DEFAULT_RECIPE
        arguments = [*words[place + 1 :], *staged]
        load_with_options(arguments, options=FoldOptions, prog="train.py", description="", recipe=recipe)


def test_a_variable_called_copy_is_not_taken_for_a_data_folder(tmp_path):
    (tmp_path / "accelerate").write_text('#!/bin/bash\necho "$@"\n')
    (tmp_path / "accelerate").chmod(0o755)
    environ = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SETUP": "env",
        "VARIABLES": "OMP_NUM_THREADS=1",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_ID": "1",
        "SLURM_NODEID": "0",
        "copy": "yes",
    }
    words = ["bash", "-c", '. slurm/launch.sh && on_this_node "$@"', "name", "train.py"]
    done = subprocess.run(words, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout == "launch --machine_rank 0 train.py\n"


def test_every_setting_of_launch_is_on_the_page():
    settings = re.findall(r"(\w+)=\$\{\1:-", (ROOT / "slurm" / "launch.sh").read_text())
    assert settings == ["PROGRAM", "SETUP", "RANKS_PER_NODE", "STAGE", "SCRATCH"]
    for name in settings:
        assert f"| `{name}" in PAGE, name


def test_the_words_of_launch_are_on_the_page():
    said = re.findall(r'(?:say|again|fail) "([^"$]*)', (ROOT / "slurm" / "launch.sh").read_text())
    said = [text.strip(" :;=") for text in said if len(text) > 12]
    assert len(said) >= 6
    for text in said:
        assert text in PAGE, text
