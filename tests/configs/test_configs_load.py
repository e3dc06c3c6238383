"""Loading: recipe + options -> Config and back; and what a mistyped name or value is answered with."""

import dataclasses
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonargparse import ArgumentParser

from configs.check import check_config
from configs.load import (
    DEFAULT_RECIPE,
    config_defaults,
    config_keys,
    config_to_dict,
    default_run_folder,
    differing_keys,
    explain_error,
    load_config,
    load_with_options,
    parse_config,
    replace_section,
)
from configs.schema import (
    AverageConfig,
    Config,
    DataConfig,
    DistillConfig,
    EvaluationConfig,
    GroupConfig,
    InputSpec,
    LoaderConfig,
    LossConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    ScheduleConfig,
    SpeedConfig,
    StrategyConfig,
    WeightsConfig,
)

Parse = Callable[..., Config]

BIRDS = {"folder": "DIR", "size": 3}  # arguments of a data set


def test_a_recipe_alone_gives_what_it_says_and_the_defaults(parse: Parse, config: Config) -> None:
    assert parse() == config


def test_options_override_the_recipe(parse: Parse, config: Config) -> None:
    parsed = parse("--optim.lr", "1e-2", "--train.epochs=7", "--model.args.norm", "batch", "--input.mean", "[0.5]")
    wanted = replace_section(config, "optim", lr=0.01)
    wanted = replace_section(wanted, "train", epochs=7)
    wanted = replace_section(wanted, "model", args={"norm": "batch"})
    assert parsed == replace_section(wanted, "input", mean=(0.5,))


def test_numbers_in_scientific_notation_are_numbers_in_a_recipe_too(parse: Parse, recipe: str) -> None:
    assert parse(recipe=recipe.replace("0.001", "1e-3")).optim.lr == 0.001


@pytest.mark.parametrize(
    ("options", "name", "nearest"),
    [
        (["--modle.name", "x"], "modle.name", "model.name"),
        (["--model.nam", "x"], "model.nam", "model.name"),
        (["--model.nam=x"], "model.nam", "model.name"),
        (["--train.global_batch", "3"], "train.global_batch", "train.global_batch_size"),
        (["--epochs", "3"], "epochs", "train.epochs"),
        (["--resum", "auto"], "resum", "resume"),
        (["--modle", "x"], "modle", "model"),
        (["--optim.learning_rate", "3"], "optim.learning_rate", "optim."),
        (["--schedule.milestones", "[2]"], "schedule.milestones", "schedule.milestones_epochs"),
        (["--data.class_weight.cat", "2"], "data.class_weight.cat", "data.class_weights"),
        (["--dry-runn"], "dry-runn", "dry_run"),
    ],
)
def test_an_unknown_or_abbreviated_option_is_refused_with_the_nearest_one(
    parse: Parse, options: list[str], name: str, nearest: str
) -> None:
    with pytest.raises(ValueError, match=rf"^unknown option '{re.escape(name)}'; nearest: {re.escape(nearest)}"):
        parse(*options)


def test_two_unknown_options_are_both_named(parse: Parse) -> None:
    with pytest.raises(ValueError, match=r"'optim\.lrr'; nearest: optim\.lr(?s:.*)'run\.sed'; nearest: run\.seed"):
        parse("--optim.lrr", "1", "--run.sed", "2")


@pytest.mark.parametrize("key", config_keys())
def test_no_key_may_be_abbreviated(parse: Parse, key: str) -> None:
    shorter = key[:-1]
    with pytest.raises(ValueError, match=re.escape(f"unknown option '{shorter}'; nearest: ") + f".*{re.escape(key)}"):
        parse(f"--{shorter}", "1")


@pytest.mark.parametrize(
    ("line", "name", "nearest"),
    [
        ("modle: 3", "modle", "model"),
        ("resum: auto", "resum", "resume"),
        ("epochs: 3", "epochs", "train.epochs"),
        ("input: {siz_px: 8}", "input.siz_px", "input.size_px"),
        ("augment:\n  corp: pad", "augment.corp", "augment.crop"),
        ("loader: {num_worker: 2}", "loader.num_worker", "loader.num_workers"),
    ],
)
def test_an_unknown_key_in_a_recipe_is_refused_with_the_nearest_one(
    parse: Parse, recipe: str, line: str, name: str, nearest: str
) -> None:
    with pytest.raises(ValueError, match=rf"^unknown option '{re.escape(name)}'; nearest: {re.escape(nearest)}"):
        parse(recipe=f"{recipe}{line}\n")


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("train.epochs", "many", "int"),
        ("run.seed", "1.5", "int"),
        ("optim.lr", "fast", "float"),
        ("optim.nesterov", "maybe", "bool"),
        ("augment.rrc_scale", "[0.1]", "tuple with 2 elements"),
        ("input.mean", "[a]", "float"),
        ("input.size_px", "big", "int"),
        ("model.args", "3", "dict"),
        ("data.args", "3", "dict"),
        ("data.class_weights", "{cat: two}", "float"),
        ("schedule.milestones_epochs", "2", "tuple"),
        ("schedule.momentum_range", "[0.9]", "tuple with 2 elements"),
        ("train.early_stop_epochs", "1.5", "int"),
        ("run.trackers", "wandb", "tuple"),
        ("dry_run", "perhaps", "bool"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_naming_key_value_and_type(
    parse: Parse, recipe: str, key: str, value: str, wanted: str
) -> None:
    section, _, name = key.rpartition(".")
    plain = yaml.safe_load(recipe)
    (plain.setdefault(section, {}) if section else plain)[name] = yaml.safe_load(value)
    for attempt in (lambda: parse(f"--{key}", value), lambda: parse(recipe=yaml.safe_dump(plain))):
        with pytest.raises(ValueError, match=rf'"{re.escape(key)}"(?s:.*)Expected a (<class \')?{wanted}') as caught:
            attempt()
        assert value.strip("[]{}").removeprefix("cat: ") in str(caught.value)


def test_sizes_over_time_are_pairs_on_the_command_line_and_in_a_recipe(parse: Parse, recipe: str) -> None:
    wanted = ((0.0, 12), (1.5, 16))
    assert parse("--augment.sizes_px", "[[0, 12], [1.5, 16]]").augment.sizes_px == wanted
    assert parse(recipe=recipe + "augment:\n  sizes_px: [[0, 12], [1.5, 16]]\n").augment.sizes_px == wanted
    kinds = [tuple(type(value) for value in pair) for pair in parse("--augment.sizes_px", "[[0, 12]]").augment.sizes_px]
    assert kinds == [(float, int)]
    assert parse("--augment.sizes_px", "[]").augment.sizes_px == ()


@pytest.mark.parametrize("value", ["12", "[12, 16]", "[[0, 12.5]]", "[[0, 12, 3]]", "[[zero, 12]]"])
def test_sizes_that_are_no_pairs_of_an_epoch_and_whole_pixels_are_refused_by_name(parse: Parse, value: str) -> None:
    with pytest.raises(ValueError, match=r'"augment\.sizes_px"'):
        parse("--augment.sizes_px", value)


def test_sizes_in_a_wrong_order_are_refused_with_an_example_that_works(parse: Parse) -> None:
    with pytest.raises(ValueError, match=re.escape("must begin at epochs that rise from 0; for example ")) as caught:
        parse("--augment.sizes_px", "[[1, 12], [0, 16]]")
    assert str(caught.value).startswith("augment.sizes_px=[[1.0, 12], [0.0, 16]] ")
    example = str(caught.value).partition("for example ")[2].rstrip(".")
    assert parse("--augment.sizes_px", example).augment.sizes_px == ((0.0, 128), (0.5, 160))


@pytest.mark.parametrize(
    ("option", "value", "wanted"),
    [
        ("augment.repeats", "3", 3),
        ("augment.mixup_alpha", "0.2", 0.2),
        ("augment.cutmix_alpha", "1", 1.0),
        ("augment.erase_prob", "0.25", 0.25),
        ("augment.noise_std", "0.05", 0.05),
        ("data.on_bad_sample", "replace", "replace"),
        ("data.on_bad_eval_sample", "exclude", "exclude"),
        ("data.max_bad_frac", "0.5", 0.5),
        ("data.verify", "true", True),
        ("data.rescan", "true", True),
        ("loader.backend", "dali", "dali"),
        ("loader.num_threads", "3", 3),
        ("loader.prefetch_batches", "4", 4),
    ],
)
def test_every_option_of_the_loader_is_read_from_the_command_line(
    parse: Parse, option: str, value: str, wanted: Any
) -> None:
    assert value_at(parse(f"--{option}", value), option) == wanted


@pytest.mark.parametrize(
    ("words", "key", "wanted"),
    [
        ("--data.dataset cifar10 --data.root downloads", "data.root", "downloads"),
        ("--data.dataset my.birds:Birds --data.args.folder DIR --data.args.size 3", "data.args", BIRDS),
        ("--data.dataset manifest --data.root m --data.image_root images", "data.image_root", "images"),
        ("--data.dataset manifest --data.root m --data.path_column file", "data.path_column", "file"),
        ("--data.dataset manifest --data.root m --data.label_column species", "data.label_column", "species"),
        ("--data.dataset manifest --data.root m --data.sampling weighted", "data.sampling", "weighted"),
        ("--data.sampling balanced", "data.sampling", "balanced"),
        ("--data.class_weights.cat 2 --data.class_weights.3 0.5", "data.class_weights", {"cat": 2.0, "3": 0.5}),
        ("--data.class_weights '{guinea pig: 2, \"3\": 1}'", "data.class_weights", {"guinea pig": 2.0, "3": 1.0}),
        ("--model.stem small", "model.stem", "small"),
        ("--optim.name rmsprop --optim.alpha 0.9", "optim.alpha", 0.9),
        ("--optim.name adam --optim.betas '[0.5, 0.9]'", "optim.betas", (0.5, 0.9)),
        ("--schedule.name multi_step --schedule.milestones_epochs '[1, 2.5]'", "schedule.milestones_epochs", (1, 2.5)),
        ("--schedule.name exponential --schedule.gamma 0.5", "schedule.gamma", 0.5),
        ("--schedule.name one_cycle --schedule.start_lr_frac 0.1", "schedule.start_lr_frac", 0.1),
        ("--schedule.name one_cycle --schedule.rise_frac 0.5", "schedule.rise_frac", 0.5),
        (
            "--schedule.name one_cycle --schedule.momentum_range '[0.95, 0.85]'",
            "schedule.momentum_range",
            (0.95, 0.85),
        ),
        ("--schedule.name plateau --schedule.patience_epochs 3", "schedule.patience_epochs", 3),
        ("--schedule.name plateau --schedule.threshold_frac 0.01", "schedule.threshold_frac", 0.01),
        ("--schedule.name plateau --schedule.min_lr_frac 1e-3", "schedule.min_lr_frac", 0.001),
        ("--train.early_stop_epochs 5", "train.early_stop_epochs", 5),
        ("--run.trackers []", "run.trackers", ()),
        ("--run.trackers [wandb,tensorboard]", "run.trackers", ("wandb", "tensorboard")),
        ("--run.trackers '[wandb, tensorboard]'", "run.trackers", ("wandb", "tensorboard")),
        ("--dry_run true", "dry_run", True),
        ("--dry_run=true", "dry_run", True),
    ],
)
def test_every_option_of_data_optimizers_schedules_and_trackers_is_read_as_it_is_typed(
    parse: Parse, words: str, key: str, wanted: Any
) -> None:
    read = value_at(parse(*shlex.split(words)), key)
    assert read == wanted
    assert type(read) is type(wanted)


@pytest.mark.parametrize(("name", "read"), [("3", "3, read as int"), ("1.5", "1.5, read as float")])
def test_a_class_name_that_yaml_reads_as_a_number_is_refused_and_works_in_quotes(
    parse: Parse, recipe: str, name: str, read: str
) -> None:
    with_weights = recipe.replace("dataset: digits", "dataset: digits\n  class_weights: {NAME: 2}")
    wanted = (
        f'data.class_weights has {read} and not as the name of a class; put the name in quotes, as in {{"cat": 2}}.'
    )
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        parse(recipe=with_weights.replace("NAME", name))
    with pytest.raises(ValueError, match=f"^{re.escape(wanted)}$"):
        parse("--data.class_weights", f"{{{name}: 2}}")
    assert parse(recipe=with_weights.replace("NAME", f'"{name}"')).data.class_weights == {name: 2.0}
    assert parse("--data.class_weights", f'{{"{name}": 2}}').data.class_weights == {name: 2.0}
    assert parse("--data.class_weights", '{"cat": 2}').data.class_weights == {"cat": 2.0}


def test_trackers_and_milestones_in_a_recipe_are_lists(parse: Parse, recipe: str) -> None:
    lists = "schedule: {name: multi_step, milestones_epochs: [1, 3]}\nrun: {trackers: [wandb]}\n"
    config = parse(recipe=recipe + lists)
    assert (config.schedule.milestones_epochs, config.run.trackers) == ((1.0, 3.0), ("wandb",))
    assert parse(recipe=recipe + "run: {trackers: []}\n").run.trackers == ()


def test_milestones_that_are_missing_are_refused_with_an_example_that_works_typed_after_the_same_words(
    parse: Parse,
) -> None:
    words = ["--schedule.name", "multi_step"]
    with pytest.raises(ValueError, match=r"^schedule\.milestones_epochs=\[\] must be one or more epochs") as caught:
        parse(*words)
    example = str(caught.value).partition("for example ")[2].rstrip(".")
    assert parse(*words, *shlex.split(example)).schedule.milestones_epochs == (2.0, 3.0)


def test_options_of_mixing_and_erasing_are_read_where_these_are_on(parse: Parse) -> None:
    words = "--augment.mixup_alpha 0.2 --augment.mix_prob 0.5 --augment.mix_switch_prob 0.25 --augment.erase_prob 0.1"
    augment = parse(*words.split(), "--augment.erase_scale", "[0.1, 0.2]", "--augment.erase_ratio", "[0.5, 2]").augment
    assert (augment.mix_prob, augment.mix_switch_prob) == (0.5, 0.25)
    assert (augment.erase_scale, augment.erase_ratio) == ((0.1, 0.2), (0.5, 2.0))


def literal_keys() -> dict[str, tuple[str, ...]]:
    """Every key that is a choice among words, with its words."""
    found = {}
    for key in config_keys():
        of: Any = Config
        for part in key.split("."):
            of = next(field.type for field in dataclasses.fields(of) if field.name == part)
        words = tuple(word for part in (of, *get_args(of)) for word in get_args(part) if isinstance(word, str))
        if words:
            found[key] = words
    return found


def test_there_are_thirty_keys_that_are_choices_among_words() -> None:
    assert len(literal_keys()) == 30
    assert literal_keys()["data.sampling"] == ("shuffled", "balanced", "weighted")
    assert "data.dataset" not in literal_keys(), "its names are torchvision's and the user's too, and checked elsewhere"


@pytest.mark.parametrize("key", literal_keys())
def test_a_mistyped_choice_is_refused_with_the_nearest_one_on_the_command_line_and_in_a_recipe(
    parse: Parse, recipe: str, key: str
) -> None:
    words = literal_keys()[key]
    mistyped = words[-1] + "x"
    plain = yaml.safe_load(recipe)
    section, _, name = key.rpartition(".")
    (plain.setdefault(section, {}) if section else plain)[name] = mistyped
    for attempt in (lambda: parse(f"--{key}", mistyped), lambda: parse(recipe=yaml.safe_dump(plain))):
        with pytest.raises(ValueError, match=rf"\nnearest: {words[-1]}.*; valid: {', '.join(words)}$") as caught:
            attempt()
        assert f'"{key}"' in str(caught.value)
        assert mistyped in str(caught.value)


@pytest.mark.parametrize("key", ["data.dataset", "model.name", "optim.name", "optim.lr", "train.epochs"])
def test_a_missing_required_field_is_named(parse: Parse, recipe: str, key: str) -> None:
    section, name = key.split(".")
    plain = yaml.safe_load(recipe)
    del plain[section][name]
    with pytest.raises(ValueError, match=rf"required: {re.escape(key)}"):
        parse(recipe=yaml.safe_dump(plain))


@pytest.mark.parametrize("value", ["", "3", "[1]"])
@pytest.mark.parametrize("section", ["input", "augment", "schedule"])
def test_a_section_that_is_no_mapping_is_refused_with_its_fields(
    parse: Parse, recipe: str, section: str, value: str
) -> None:
    shown = re.escape(value or "None")
    with pytest.raises(
        ValueError, match=rf"^{section}={shown} is a section, not a value; .*{section}\.\w+, .* drop it"
    ):
        parse(recipe=f"{recipe}{section}: {value}\n")


def test_a_section_that_is_a_word_is_taken_for_a_file_and_the_message_names_both(parse: Parse, recipe: str) -> None:
    with pytest.raises(ValueError, match=r'"input"(?s:.*)Unable to load config .nowhere.'):
        parse(recipe=f"{recipe}input: nowhere\n")


def test_a_recipe_that_is_no_yaml_mapping_or_does_not_exist_is_refused(
    parse: Parse, parser: ArgumentParser, recipe: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="Problems parsing config"):
        parse(recipe=recipe + "  : [")
    with pytest.raises(ValueError, match="Unexpected config"):
        parse(recipe="- a\n")
    with pytest.raises(ValueError, match=r"does not exist: '.*nowhere\.yaml'"):
        parse_config(["--config", str(tmp_path / "nowhere.yaml")], parser=parser)


def test_a_check_that_fails_is_a_value_error_of_parsing_too(parse: Parse) -> None:
    with pytest.raises(ValueError, match=r"train\.epochs=0 is too small"):
        parse("--train.epochs", "0")


@pytest.mark.parametrize(
    "message",
    ['No action for key "optim.lrr"', "Key 'optim.lrr' is not expected", "Option 'optim.lrr' is not accepted"],
)
def test_the_wordings_of_several_versions_of_jsonargparse_are_understood(message: str) -> None:
    assert explain_error(message).startswith("unknown option 'optim.lrr'; nearest: optim.lr,")


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("[{macth: [head.*]}]", "optim.groups: a group has no option 'macth'; nearest: match"),
        ("[{}]", "optim.groups has {}, which is no group; write each as {match: [PATTERN], lr: ...}, with one or more"),
        ("[3]", "optim.groups has 3, which is no group"),
        ("[{match: head.*}]", "Got value: head.*\nwrite a list: [head.*]"),
        ("{match: [head.*]}", "\nwrite a list: [{'match': ['head.*']}]"),
        ("[{only: vector}]", "nearest: vectors"),
    ],
)
def test_a_group_that_is_none_is_refused_in_words(parse: Parse, recipe: str, groups: str, message: str) -> None:
    for attempt in (
        lambda: parse("--optim.groups", groups),
        lambda: parse(recipe=recipe.replace("lr: 0.001", f"lr: 0.001\n  groups: {groups}")),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            attempt()


def test_an_option_that_a_recipe_names_and_leaves_empty_is_refused(parse: Parse, recipe: str) -> None:
    """Whatever its type, unless nothing is one of its values: then it stands for the default."""
    nullable, refused = [], []
    for key, default in config_defaults().items():
        section, _, name = key.partition(".")
        written = yaml.safe_load(recipe)
        (written.setdefault(section, {}) if name else written)[name or section] = None
        if default is None:
            nullable.append(parse(recipe=yaml.safe_dump(written)))
            continue
        refused.append(key)
        shown = default if isinstance(default, str) else json.dumps(default)
        with pytest.raises(ValueError, match=re.escape(f"{key} is empty; write {shown} or drop it.")):
            parse(recipe=yaml.safe_dump(written))
    assert {"augment.operations", "augment.sizes_px", "run.trackers", "schedule.milestones_epochs"} < set(refused)
    assert {"optim.betas", "data.class_weights", "model.args", "augment.noise_std", "resume"} < set(refused)
    assert len(nullable) >= 10


def test_a_required_option_that_is_empty_must_be_given(config: Config) -> None:
    with pytest.raises(ValueError, match=r"optim\.lr is empty, and must be given"):
        check_config(replace_section(config, "optim", lr=None))


def test_a_number_of_four_hundred_digits_is_refused_in_words(parse: Parse) -> None:
    with pytest.raises(ValueError, match="a whole number has more than 308 digits"):
        parse("--augment.noise_std", "1" + 400 * "0")
    with pytest.raises(ValueError, match="a whole number has more than 308 digits"):
        parse("--optim.lr", "1" + 400 * "0", "--model.name", "mlp")


def test_a_message_without_a_name_is_passed_on() -> None:
    assert explain_error(" something else\n") == "something else"


def test_load_config_takes_the_default_recipe_unless_one_is_given(parser: ArgumentParser, tmp_path: Path) -> None:
    default = parse_config(["--config", str(DEFAULT_RECIPE)], parser=parser)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config_to_dict(replace_section(default, "train", epochs=99))))
    assert load_config([], prog="train.py", description="") == default
    for argv in (["--config", str(other)], [f"--config={other}"]):
        assert load_config(argv, prog="train.py", description="").train.epochs == 99


@pytest.mark.parametrize("as_one_word", [False, True])
@pytest.mark.parametrize(
    ("words", "name", "args"),
    [
        ("", "simple_cnn", {"norm": "batch", "width": 8}),
        ("--model.name simple_cnn", "simple_cnn", {"norm": "batch", "width": 8}),
        ("--model.name=simple_cnn --model.args.width 9", "simple_cnn", {"norm": "batch", "width": 9}),
        ("--model.name mlp", "mlp", {}),
        ("--model.name=mlp --dry-run", "mlp", {}),
        ("--model.name mlp --model.args.width 9", "mlp", {"width": 9}),
        ("--model.args.width 9 --train.epochs 3 --model.name mlp", "mlp", {"width": 9}),
        ("--model.name my_models:Net --model.args '{depth: 2}'", "my_models:Net", {"depth": 2}),
    ],
)
def test_arguments_of_the_recipes_network_hold_only_where_the_network_stays(
    tmp_path: Path, recipe: str, words: str, name: str, args: dict[str, Any], as_one_word: bool
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.replace("name: simple_cnn", "name: simple_cnn\n  args: {norm: batch, width: 8}"))
    chosen = [f"--config={path}"] if as_one_word else ["--config", str(path)]
    model = load_config([*chosen, *shlex.split(words)], prog="train.py", description="").model
    assert model == ModelConfig(name=name, args=args)


def test_arguments_of_the_default_recipes_network_do_not_hold_for_another_one() -> None:
    assert load_config([], prog="train.py", description="").model.args
    assert load_config(["--model.name", "mlp"], prog="train.py", description="").model == ModelConfig(name="mlp")


@pytest.mark.parametrize("words", [["--model.name"], ["--model.name", "mlp", "--model.nam", "x"]])
def test_a_recipe_or_an_option_at_fault_is_told_beside_another_network_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    for argv in (words, ["--config", str(tmp_path / "nowhere.yaml"), *words]):
        with pytest.raises(SystemExit, match="2"):
            load_config(argv, prog="train.py", description="")
        error = capsys.readouterr().err
        assert error.startswith("train.py: error: ")
        assert "args={}" not in error, "nobody typed this"


@pytest.mark.parametrize(
    "argv",
    [
        ["--dry-run"],
        ["--dry_run"],
        ["--dry_run", "--run.seed", "3"],
        ["--dry_run", "true"],
        ["--dry_run=true"],
        ["--train.epochs", "3", "--dry-run"],
    ],
)
def test_a_dry_run_is_asked_for_in_either_spelling(argv: list[str], tmp_path: Path, recipe: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe)
    for words in (argv, ["--config", str(path), *argv]):
        assert load_config(words, prog="train.py", description="").dry_run is True
        assert load_config([*words, "--dry_run=false"], prog="train.py", description="").dry_run is False
    assert load_config([], prog="train.py", description="").dry_run is False


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
        (["--dry-run=true"], "unknown option 'dry-run'; nearest: dry_run"),
        (["--dry_runs", "true"], "unknown option 'dry_runs'; nearest: dry_run"),
        (["--run.tracker", "[]"], "unknown option 'run.tracker'; nearest: run.trackers"),
        (["--train.early_stop_epochs", "0"], "train.early_stop_epochs=0 is too small; it must be at least 1; use 1."),
        (["--model.nam", "x"], "unknown option 'model.nam'; nearest: model.name"),
        (["--train.epochs", "0"], "train.epochs=0 is too small; it must be at least 1; use 1."),
    ],
)
def test_a_mistake_on_the_command_line_prints_one_message_and_leaves_with_code_2(
    capsys: pytest.CaptureFixture[str], argv: list[str], wanted: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        load_config(argv, prog="train.py", description="")
    captured = capsys.readouterr()
    assert captured.err.startswith(f"train.py: error: {wanted}")
    assert captured.err.endswith("\n(train.py --help lists every option)\n")
    assert captured.out == ""


def everything_changed(config: Config) -> Config:
    """A valid configuration in which many fields of every kind differ from their defaults."""
    config = replace_section(config, "data", dataset="folder", root="some/where", val_frac=0.25, verify=True)
    config = replace_section(config, "data", on_bad_sample="replace", on_bad_eval_sample="exclude", max_bad_frac=0.2)
    config = replace_section(config, "augment", crop="rrc", rrc_scale=(0.25, 0.75), flip="alternating", repeats=2)
    config = replace_section(config, "augment", vertical_flip_prob=0.25, cutout_px=8)
    config = replace_section(config, "augment", operations=({"hue": {"shift": [0, 0.1]}}, "trivial_augment"))
    config = replace_section(config, "augment", sizes_px=((0.0, 48), (1.5, 64)), mixup_alpha=0.2, cutmix_alpha=1.0)
    config = replace_section(config, "augment", erase_prob=0.25, erase_scale=(0.1, 0.2), noise_std=0.02)
    config = replace_section(config, "model", args={"norm": "layer", "dropout": 0.5, "width": 64})
    config = replace_section(config, "optim", betas=(0.8, 0.95), eps=1e-6, weight_decay=5e-4)
    config = replace_section(config, "train", accumulation=2, precision="bf16")
    config = replace_section(config, "loss", label_smoothing=0.1)
    config = replace_section(config, "data", sampling="balanced", class_weights={"cat": 2.0, "guinea pig": 0.5})
    return dataclasses.replace(
        config,
        input=InputSpec(size_px=64, channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bicubic"),
        loader=LoaderConfig(backend="reference", num_workers=3, resident_max_gib=0.5),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5, final_lr_frac=0.01),
        run=RunConfig(out="runs/here", seed=12345678901, select="last", num_threads=2),
        resume="never",
    )


def own_data_and_model(config: Config) -> Config:
    """A valid configuration with what the user wrote, one_cycle, adam and a dry run."""
    config = replace_section(config, "optim", name="adam", betas=(0.85, 0.99))
    config = replace_section(config, "train", early_stop_epochs=3)
    return dataclasses.replace(
        config,
        data=DataConfig(dataset="my_data.birds:Birds", args=BIRDS),
        model=ModelConfig(name="my_models:Net", args={"width": 8}),
        schedule=ScheduleConfig(name="one_cycle", start_lr_frac=0.1, rise_frac=0.25, momentum_range=(0.95, 0.85)),
        run=RunConfig(trackers=()),
        dry_run=True,
    )


def manifest_and_milestones(config: Config) -> Config:
    """A valid configuration with every option of a manifest, multi_step, rmsprop and worker processes."""
    config = replace_section(config, "data", dataset="manifest", root="birds.csv", image_root="images")
    config = replace_section(config, "data", path_column="file", label_column="species", sampling="weighted")
    config = replace_section(config, "optim", name="rmsprop", momentum=0.9, alpha=0.95, eps=1e-3)
    return dataclasses.replace(
        config,
        model=ModelConfig(name="torchvision/resnet18", stem="small"),
        loader=LoaderConfig(backend="threads", workers="processes", decode="scaled"),
        schedule=ScheduleConfig(name="multi_step", milestones_epochs=(1.5, 3.0), gamma=0.5),
        run=RunConfig(trackers=("wandb", "tensorboard")),
    )


def torchvision_and_plateau(config: Config) -> Config:
    """A valid configuration with a data set to download and every option of plateau."""
    schedule = ScheduleConfig(name="plateau", gamma=0.5, patience_epochs=2, threshold_frac=0.01, min_lr_frac=0.001)
    return dataclasses.replace(config, data=DataConfig(dataset="cifar10", root="downloads"), schedule=schedule)


def groups_and_averages(config: Config) -> Config:
    """A valid configuration with muon and groups, focal loss, teachers, an EMA, growing batches and what is fast."""
    groups = (GroupConfig(match=("head.*",), name="adamw", betas=(0.8, 0.9)), GroupConfig(only="vectors", name="sgd"))
    config = replace_section(config, "optim", name="muon", no_decay="norms", layer_decay=0.9, clip_norm=1.0)
    config = replace_section(config, "optim", ns_steps=3, muon_scale="match_adamw", fix_filter_norm=True, groups=groups)
    config = replace_section(config, "optim", ns_coefficients=(3.0, -4.0, 2.0))
    config = replace_section(config, "augment", mixup_alpha=0.2, mix_until_epoch=1.0, mix_from_images=100)
    config = replace_section(config, "train", batch_sizes=((0, 60), (1, 120)), batch_lr="sqrt", bn_images=100)
    return dataclasses.replace(
        config,
        loss=LossConfig(name="focal", focal_gamma=1.0, balance="effective", effective_beta=0.9, class_weights={"1": 2}),
        distill=DistillConfig(
            teachers=("runs/a",), temperature=2.0, weight=0.5, features={"a": "b"}, features_weight=0.5
        ),
        average=AverageConfig(ema_decay=0.99, ema_warmup=False, ema_every_steps=2),
        evaluation=EvaluationConfig(tta="flip"),
        speed=SpeedConfig(compile="default", fused="off", gradient_checkpointing=True),
        schedule=ScheduleConfig(name="polynomial", power=3.0, warmup_epochs=0.5, warmup_start_lr_frac=0.1),
        run=RunConfig(profile=True),
    )


def swa_and_restarts(config: Config) -> Config:
    """A valid configuration with a SWA, lars, restarts of the cosine, bce and logit adjustment in turn, and shards."""
    optim = OptimConfig(name="lars", lr=0.1, momentum=0.9, trust_coefficient=0.02, clip_value=0.5)
    schedule = ScheduleConfig(
        name="cosine_restarts", cycle_epochs=1.0, cycle_mult=2.0, cycle_decay=0.5, cooldown_epochs=0.5
    )
    return dataclasses.replace(
        config,
        optim=optim,
        schedule=schedule,
        loss=LossConfig(name="bce", target_threshold=0.2),
        average=AverageConfig(swa_start_epoch=1, swa_lr_frac=0.5, bn_images=50),
    )


def shards_and_adjustment(config: Config) -> Config:
    """A valid configuration of a network that does not fit, with logit adjustment and BatchNorm over all processes."""
    return dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, sync_bn=True),
        loss=LossConfig(balance="logit_adjustment", adjustment_tau=0.5),
        speed=SpeedConfig(shard=True),
    )


def features_of_a_run(config: Config) -> Config:
    """A valid configuration of fine-tuning that trains nearest neighbours on the features of a run."""
    return dataclasses.replace(
        config,
        data=dataclasses.replace(config.data, num_folds=4, fold=1),
        weights=WeightsConfig(run="runs/source", partial=True, input="recipe"),
        strategy=StrategyConfig(name="features", classifier="knn", cv_folds=3),
    )


def gradual_from_a_file(config: Config) -> Config:
    """A valid configuration of fine-tuning that thaws a network from a file stage by stage."""
    return dataclasses.replace(
        config,
        weights=WeightsConfig(file="weights.pth", head="keep"),
        strategy=StrategyConfig(
            name="auto", head_epochs=2, all_lr_frac=0.5, stage_decay=0.25, frozen_bn="train", similarity="different"
        ),
    )


CHANGES = [
    features_of_a_run,
    gradual_from_a_file,
    everything_changed,
    own_data_and_model,
    manifest_and_milestones,
    torchvision_and_plateau,
    groups_and_averages,
    swa_and_restarts,
    shards_and_adjustment,
]


def test_the_changed_configurations_between_them_set_every_section_and_nearly_every_key(config: Config) -> None:
    changed = set()
    for change in CHANGES:
        one = change(config)
        changed |= {key for key in config_keys() if value_at(one, key) != value_at(config, key)}
    assert set(config_keys()) - changed == {
        "data.split_seed",
        "data.rescan",
        "input.fit",
        "input.crop_frac",
        "augment.pad_px",
        "augment.rrc_ratio",
        "augment.mix_prob",
        "augment.mix_switch_prob",
        "augment.erase_ratio",
        "augment.albumentations",
        "augment.albumentations_hash",
        "loader.num_threads",
        "loader.prefetch_batches",
        "loader.hw_decoder_load",
        "loader.eval_batch_size_per_rank",
        "optim.nesterov",
        "schedule.step_epochs",
        "train.epochs",
        "train.global_batch_size",
        "run.log_every_steps",
        "run.checkpoint_every_steps",
        "run.checkpoint_every_minutes",
        "run.keep_checkpoints",
        "run.max_minutes",
        "run.stall_minutes",
        "run.control",
        "run.world_size",
    }


@pytest.mark.parametrize("change", [lambda config: config, *CHANGES], ids=["defaults", *(f.__name__ for f in CHANGES)])
def test_a_configuration_written_as_yaml_is_read_back_equal(
    parse: Parse, config: Config, change: Callable[[Config], Config]
) -> None:
    config = change(config)
    assert parse(recipe=yaml.safe_dump(config_to_dict(config), sort_keys=False)) == config


def test_what_print_config_prints_is_read_back_equal(
    parse: Parse, parser: ArgumentParser, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--optim.lr", "0.5", "--optim.eps", "1e-6", "--input.std", "[0.25]", "--model.args.width", "16"]
    with pytest.raises(SystemExit, match="0"):
        load_config([*options, "--print_config"], prog="train.py", description="")
    printed = capsys.readouterr().out
    assert set(yaml.safe_load(printed)) == {field.name for field in dataclasses.fields(Config)}
    assert parse(recipe=printed) == load_config(options, prog="train.py", description="")


def test_config_to_dict_holds_plain_values_only(config: Config) -> None:
    plain = config_to_dict(everything_changed(config))
    assert plain["input"]["mean"] == [0.1, 0.2, 0.3]
    assert plain["augment"]["sizes_px"] == [[0.0, 48], [1.5, 64]]
    assert plain["run"]["out"] == "runs/here"
    assert plain["data"]["class_weights"] == {"cat": 2.0, "guinea pig": 0.5}
    assert plain["data"]["args"] == {}
    assert plain["schedule"]["milestones_epochs"] == []
    assert plain["run"]["trackers"] == ["tensorboard"]
    assert plain == yaml.safe_load(yaml.safe_dump(plain))


OTHER_VALUES: dict[str, Any] = {
    "weights.run": "runs/source",
    "weights.file": "weights.pth",
    "optim.groups": (GroupConfig(match=("head.*",), lr=1.0),),
    "loss.class_weights": {"cat": 2.0},
    "distill.teachers": ("runs/teacher",),
    "distill.features": {"stages": "layer4"},
    "train.batch_sizes": ((0, 60), (1, 120)),
    "data.root": "elsewhere/digits",
    "data.image_root": "elsewhere/images",
    "data.args": {"folder": "x"},
    "data.class_weights": {"cat": 2.0},
    "input.mean": (0.5,),
    "input.std": (0.25,),
    "augment.sizes_px": ((0.5, 16),),
    "augment.operations": ("equalize",),
    "model.args": {"width": 64},
    "schedule.milestones_epochs": (1.0, 2.0),
    "schedule.momentum_range": (0.95, 0.85),
    "run.out": "x",
    "run.trackers": (),
}


def another_value(value: Any, key: str) -> Any:
    """A value of the key's kind that differs from `value`."""
    words = literal_keys().get(key)
    if words:
        return next(word for word in words if word != value)
    if key in OTHER_VALUES:
        return OTHER_VALUES[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return value + "_2"
    if isinstance(value, tuple):
        return tuple(part / 2 for part in value)
    return 1 if value is None else value + 1


def with_key(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.rpartition(".")
    change: dict[str, Any] = {name: value}
    return replace_section(config, section, **change) if section else dataclasses.replace(config, **change)


def value_at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = getattr(config, part)
    return config


@pytest.mark.parametrize("key", config_keys())
def test_the_run_folder_and_the_differing_keys_follow_the_fields_that_determine_the_result(
    config: Config, key: str
) -> None:
    before = value_at(config, key)
    changed = with_key(config, key, another_value(before, key))
    assert value_at(changed, key) != before
    differing = differing_keys(config_to_dict(changed), config_to_dict(config))
    if key in config_keys(may_change=False):
        old, new = (plain_value_at(config_to_dict(one), key) for one in (config, changed))
        assert default_run_folder(changed) != default_run_folder(config)
        assert differing == [f"{key}: {old} -> {new}"]
    else:
        moves = ("data.root", "data.image_root", "weights.run", "weights.file")
        same_folder = key not in moves  # images and weights may move, but others are another run
        assert (default_run_folder(changed) == default_run_folder(config)) is same_folder
        assert differing == []


def plain_value_at(plain: Any, key: str) -> Any:
    for part in key.split("."):
        plain = plain[part]
    return plain


def test_a_key_that_an_older_run_did_not_have_had_its_default(config: Config) -> None:
    plain = config_to_dict(config)
    old = {**plain, "loss": {**plain["loss"]}, "input": {**plain["input"]}}
    del old["loss"]["label_smoothing"], old["input"]["mean"]
    assert differing_keys(plain, old) == []
    smoothed = config_to_dict(replace_section(config, "loss", label_smoothing=0.1))
    assert differing_keys(smoothed, old) == ["loss.label_smoothing: 0.0 -> 0.1"]


@pytest.mark.parametrize("key", [key for key in config_keys(may_change=False) if key in config_defaults()])
def test_every_default_is_what_a_key_that_an_older_run_did_not_have_stands_for(config: Config, key: str) -> None:
    section, _, name = key.rpartition(".")
    plain = config_to_dict(config)
    old = {**plain, section: {one: value for one, value in plain[section].items() if one != name}}
    assert differing_keys(plain, old) == []
    changed = with_key(config, key, another_value(value_at(config, key), key))
    before, after = (plain_value_at(config_to_dict(one), key) for one in (config, changed))
    assert differing_keys(config_to_dict(changed), old) == [f"{key}: {before} -> {after}"]


def test_the_defaults_are_those_of_every_key_but_the_required_ones(config: Config) -> None:
    required = {"data.dataset", "model.name", "optim.name", "optim.lr", "train.epochs", "train.global_batch_size"}
    defaults = config_defaults()
    assert set(config_keys()) - set(defaults) == required
    plain = config_to_dict(config)
    assert {key: plain_value_at(plain, key) for key in defaults} == defaults


def test_the_run_folder_is_named_after_data_and_model_and_survives_a_move_of_the_data(config: Config) -> None:
    assert re.fullmatch(r"runs/digits-simple_cnn-[0-9a-f]{8}", default_run_folder(config))
    here = replace_section(config, "data", dataset="folder", root="/here/cifar10")
    there = replace_section(config, "data", dataset="folder", root="/there/cifar10/")
    assert re.fullmatch(r"runs/cifar10-simple_cnn-[0-9a-f]{8}", default_run_folder(here))
    assert default_run_folder(here) != default_run_folder(there), "other images are another run"
    slash = replace_section(config, "model", name="timm/resnet18")
    assert re.fullmatch(r"runs/digits-timm_resnet18-[0-9a-f]{8}", default_run_folder(slash))


@pytest.mark.parametrize(
    ("data", "model", "wanted"),
    [
        (DataConfig(dataset="cifar10"), "simple_cnn", "cifar10-simple_cnn"),
        (DataConfig(dataset="cifar10", root="/some/downloads"), "simple_cnn", "cifar10-simple_cnn"),
        (DataConfig(dataset="my_data.birds:Birds"), "simple_cnn", "my_data.birds.Birds-simple_cnn"),
        (DataConfig(dataset="manifest", root="/some/birds"), "simple_cnn", "birds-simple_cnn"),
        (DataConfig(dataset="manifest", root="/some/birds.csv"), "simple_cnn", "birds.csv-simple_cnn"),
        (DataConfig(dataset="digits"), "torchvision/resnet18", "digits-torchvision_resnet18"),
        (DataConfig(dataset="digits"), "timm/vit_tiny_patch16_224", "digits-timm_vit_tiny_patch16_224"),
        (DataConfig(dataset="digits"), "my_models.nets:Net", "digits-my_models.nets.Net"),
        (DataConfig(dataset="a:B"), "c.d:E", "a.B-c.d.E"),
    ],
)
def test_the_name_of_a_run_folder_has_no_slash_or_colon_of_data_or_model(
    config: Config, data: DataConfig, model: str, wanted: str
) -> None:
    folder = default_run_folder(replace_section(dataclasses.replace(config, data=data), "model", name=model))
    assert re.fullmatch(rf"runs/{re.escape(wanted)}-[0-9a-f]{{8}}", folder)
    assert folder.count("/") == 1
    assert ":" not in folder


def test_arguments_and_choices_of_ones_own_data_set_and_model_are_other_runs(config: Config) -> None:
    own = own_data_and_model(config)
    others = [
        replace_section(own, "data", args={**BIRDS, "size": 4}),
        replace_section(own, "data", dataset="my_data.birds:Ducks"),
        replace_section(own, "model", args={"width": 16}),
        replace_section(own, "model", name="my_models.Net"),
        replace_section(own, "data", class_weights={"cat": 2.0}),
    ]
    assert len({default_run_folder(one) for one in (own, *others)}) == 6
    assert default_run_folder(dataclasses.replace(own, dry_run=False)) == default_run_folder(own)


# The names that commit 489a0e2 gave, before there were other data sets, optimizers and schedules than these: a run
# begun then is found again. A new field must have a default that means what was done without it.
@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, "runs/digits-simple_cnn-b61ab7a4"),
        ({"model": {"args": {"norm": "batch", "width": 64}}}, "runs/digits-simple_cnn-3492717a"),
        (
            {
                "data": {"dataset": "folder", "root": "/data/images", "val_frac": 0.2},
                "model": {"args": {"norm": "batch", "width": 64}},
                "optim": {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True},
                "schedule": {"name": "cosine", "warmup_epochs": 0.5, "final_lr_frac": 0.01},
            },
            "runs/images-simple_cnn-baa1be13",
        ),
    ],
    ids=["defaults", "model_args", "folder"],
)
def test_a_run_begun_before_a_field_existed_finds_its_folder_again(
    config: Config, changes: dict[str, dict[str, Any]], wanted: str
) -> None:
    for section, values in changes.items():
        config = replace_section(config, section, **values)
    assert default_run_folder(config) == wanted


def test_replace_section_leaves_the_original_and_the_other_sections_alone(config: Config) -> None:
    changed = replace_section(config, "optim", lr=1.0)
    assert (config.optim.lr, changed.optim.lr) == (0.001, 1.0)
    assert dataclasses.replace(changed, optim=config.optim) == config


@dataclasses.dataclass(frozen=True, kw_only=True)
class OwnOptions:
    """Of a program.

    Attributes:
        count: How many.
    """

    count: int = 3

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is too small.")


def test_a_program_has_options_of_its_own_beside_those_of_a_run() -> None:
    config, options = load_with_options(["--count", "5", "--run.seed=4"], options=OwnOptions, prog="it", description="")
    assert options == OwnOptions(count=5)
    assert config == load_config(["--run.seed", "4"], prog="it", description="")
    assert load_with_options([], options=OwnOptions, prog="it", description="")[1] == OwnOptions()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--coun", "5"], "unknown option 'coun'; nearest: count"),
        (["--count", "five"], '"count"(?s:.*)int'),
        (["--count", "-1"], "count is too small."),
        (["--train.epoch", "5"], "unknown option 'train.epoch'; nearest: train.epochs"),
    ],
)
def test_mistakes_in_either_leave_with_one_message_and_code_2(
    capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    with pytest.raises(SystemExit) as left:
        load_with_options(words, options=OwnOptions, prog="it", description="")
    assert left.value.code == 2
    assert re.search(rf"^it: error: .*{message}(?s:.*)it --help lists every option", capsys.readouterr().err)
