"""The README's commands, file list and recipes are true."""

import dataclasses
import re
import shlex
import subprocess

import pytest
import yaml
from programs import ROOT, run_program, succeed

from configs.load import DEFAULT_RECIPE, config_keys, load_config, load_with_options
from configs.operations import read_operations
from configs.schema import AugmentConfig
from engine.folds import FoldOptions
from finetune import RECIPE
from tools import loader_study, show_augment

README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for line in re.findall(
        r"^    ((?:make|accelerate|torchrun|sbatch|ACCELERATE_USE_CPU).*)$", README, flags=re.MULTILINE
    )
]


def tracked_files():
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout: which files belong to the project is not known")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.split()


def test_every_file_has_a_line_and_every_line_a_file():
    listed = re.findall(r"^\| `([\w./]+)` \|", README[README.index("## The house") :], flags=re.MULTILINE)
    parts = ("configs/", "pipelines/", "models/", "engine/", "report/", "tools/", "benchmarks/")
    expected = [
        name
        for name in tracked_files()
        if (name.startswith(parts) or "/" not in name) and name.endswith((".py", ".yaml")) and "__init__" not in name
    ]
    assert sorted(listed) == sorted(expected)


def test_every_recipe_is_in_the_table_and_says_what_it_gave():
    recipes = [name for name in tracked_files() if name.startswith("configs/") and name.endswith(".yaml")]
    assert len(recipes) == 19
    for recipe in recipes:
        assert f"| `{recipe}` |" in README
        header = [line for line in (ROOT / recipe).read_text().splitlines() if line.startswith("#")]
        text = " ".join(header)
        program = "finetune.py" if "/finetune/" in recipe else "train.py"
        assert f"accelerate launch {program}" in text, recipe
        if any(line.startswith("# Not measured") for line in header):
            continue
        assert re.search(r"\d+\.\d+ \+- \d+\.\d+ %", text), f"{recipe}: no measured accuracy with its spread"
        assert re.search(r"20\d\d-\d\d-\d\d", text), f"{recipe}: no date"


def test_commands_of_train_and_evaluate_are_accepted():
    assert len(COMMANDS) == 16
    seen = 0
    for command in COMMANDS:
        words = shlex.split(command)
        program = next((word for word in words if word in ("train.py", "finetune.py", "slurm/train.sh")), None)
        if program is not None:
            recipe = RECIPE if program == "finetune.py" else DEFAULT_RECIPE
            arguments = words[words.index(program) + 1 :]
            load_with_options(arguments, options=FoldOptions, prog="train.py", description="", recipe=recipe)
            seen += 1
    assert seen == 10


def test_make_train_and_make_test_are_targets():
    for target in ("train", "test", "lint", "setup"):
        printed = subprocess.run(
            ["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout
        assert printed, target
    assert (
        "accelerate launch train.py"
        in subprocess.run(["make", "--dry-run", "train"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    )
    assert "make test" in (ROOT / ".ci" / "run").read_text()
    assert re.search(r"^    make test ", README, flags=re.MULTILINE)


def test_overrides_named_in_the_text_exist():
    printed = succeed("train.py", "--print_config", "--train.epochs", "20", "--model.args.norm", "batch")
    config = yaml.safe_load(printed)
    assert config["train"]["epochs"] == 20
    assert config["model"]["args"]["norm"] == "batch"
    for key in re.findall(r"--((?:train|model|run|input|data|optim|augment|loader|schedule)\.[\w.]+)", README):
        value = config
        for part in re.sub(r"^(data.class_weights|data.args|model.args)\..*", r"\1", key).split("."):
            assert part in value, key  # class names and arguments are the user's own
            value = value[part]


def test_figures_in_texts_are_those_of_the_measured_rows():
    done = run_program("benchmarks/publish.py", "--check", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_commands_of_the_pages_are_accepted_and_their_links_lead_somewhere(page):
    text = page.read_text()
    for command in re.findall(r"^ +accelerate launch train\.py(.*)$", text, flags=re.MULTILINE):
        load_config(shlex.split(command.split("  #")[0]), prog="train.py", description="")
    for command in re.findall(r"^ +accelerate launch finetune\.py(.*)$", text, flags=re.MULTILINE):
        load_with_options(shlex.split(command), options=FoldOptions, prog="finetune.py", description="", recipe=RECIPE)
    for tool in (show_augment, loader_study):
        for command in re.findall(rf"^    python -m {tool.__name__}(.*)$", text, flags=re.MULTILINE):
            load_with_options(shlex.split(command), options=tool.Options, prog=tool.__name__, description="")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (page.parent / link).exists(), link
    assert f"docs/{page.name}" in README


def test_the_page_of_fine_tuning_names_options_that_exist_and_says_of_recipes_what_they_do():
    page = (ROOT / "docs" / "transfer.md").read_text()
    options = re.findall(r"--((?:model|weights|strategy|input|data|loss|run|optim)\.\w+)", page)
    options += re.findall(r"`((?:weights|strategy|input|augment|optim)\.\w+)", page)
    assert len(set(options)) > 15
    assert set(options) <= set(config_keys())
    recipe, few_images = (
        load_config(["--config", str(path), "--data.root", "DIR"], prog="", description="")
        for path in (RECIPE, RECIPE.with_name("few_images.yaml"))
    )
    mixes = "`configs/finetune/folder.yaml`, the recipe of\n  `finetune.py` without `--config`, mixes from 20,000 on"
    assert mixes in page
    assert RECIPE == ROOT / "configs" / "finetune" / "folder.yaml"
    assert (recipe.augment.mix_from_images, few_images.augment.mix_from_images) == (20_000, 0)
    assert recipe.augment.mixup_alpha > 0 == few_images.augment.mixup_alpha


def test_what_appears_on_the_screen_has_the_lines_of_a_run():
    screen = README[README.index("## What appears") : README.index("| file | what is in it |")]
    for start in ("data: ", "input: ", "loader: ", "model: ", "machine: ", "epoch ", "val: top-1 ", "test: top-1 "):
        assert f"\n    {start}" in screen, start


def test_what_augmentations_page_writes_into_recipes_is_read():
    page = (ROOT / "docs" / "augmentation.md").read_text()
    blocks = re.findall(r"^```yaml\n(.*?)^```", page, flags=re.DOTALL | re.MULTILINE)
    snippets = [yaml.safe_load(block)["augment"] for block in blocks]
    cells = re.findall(r"^\|.*\|", page[page.index("## What you know") : page.index("## The list")], flags=re.MULTILINE)
    fields = [field for cell in cells for field in re.findall(r"`(\w+: [^`]+)`", cell.split(" | ", 1)[-1])]
    snippets += [yaml.safe_load(field) for field in fields]
    snippets += [{"operations": [yaml.safe_load(step)]} for step in re.findall(r"`(randaugment: [^`]+)`", page)]
    options = re.findall(r"`--augment\.operations \"(.*)\"`", page)
    snippets += [{"operations": yaml.safe_load(option)} for option in options]
    assert (len(blocks), len(options)) == (2, 1)
    assert len(snippets) > 20
    names = {field.name for field in dataclasses.fields(AugmentConfig)}
    seen = set()
    for snippet in snippets:
        assert set(snippet) <= names, snippet
        seen |= {name for name, _ in read_operations(snippet.get("operations", ()))}
    assert len(seen) > 10


def test_the_page_of_the_loader_study_has_its_options_with_their_defaults():
    page = (ROOT / "docs" / "loader_study.md").read_text()
    rows = re.findall(r"^\| `--(\w+) (.+?)` \|", page, flags=re.MULTILINE)
    assert [name for name, _ in rows] == [field.name for field in dataclasses.fields(loader_study.Options)]
    words = [word for name, value in rows for word in (f"--{name}", *shlex.split(value))]
    _, options = load_with_options(words, options=loader_study.Options, prog="", description="")
    assert dataclasses.replace(options, out="loader_study.png", num_threads=()) == loader_study.Options()


def test_make_study_runs_what_the_program_takes():
    printed = subprocess.run(
        ["make", "--dry-run", "study", "DATA=photographs"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.replace("\\\n", "")
    (command,) = re.findall(
        r"-m tools\.loader_study (.*) > benchmarks/results/loader_study\.txt$", printed, re.MULTILINE
    )
    config, options = load_with_options(shlex.split(command), options=loader_study.Options, prog="", description="")
    assert config.data.root == "photographs"
    assert (ROOT / options.out).exists()
    assert options.out in page_links("loader_study.md")


def page_links(name):
    page = ROOT / "docs" / name
    links = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    return [str((page.parent / link).resolve().relative_to(ROOT.resolve())) for link in links]
