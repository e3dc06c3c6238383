"""Loading: recipe + options -> Config and back; and what a mistyped name or value is answered with."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from jsonargparse import ArgumentParser

from configs.load import (
    DEFAULT_RECIPE,
    config_keys,
    config_to_dict,
    default_run_folder,
    differing_keys,
    explain_error,
    load_config,
    parse_config,
    replace_section,
)
from configs.schema import Config, InputSpec, LoaderConfig, RunConfig, ScheduleConfig

Parse = Callable[..., Config]


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
        ("loader: {workers: 2}", "loader.workers", "loader.num_workers"),
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
    ],
)
def test_a_value_of_the_wrong_type_is_refused_naming_key_value_and_type(
    parse: Parse, recipe: str, key: str, value: str, wanted: str
) -> None:
    section, name = key.split(".")
    plain = yaml.safe_load(recipe)
    plain.setdefault(section, {})[name] = yaml.safe_load(value)
    for attempt in (lambda: parse(f"--{key}", value), lambda: parse(recipe=yaml.safe_dump(plain))):
        with pytest.raises(ValueError, match=rf'"{re.escape(key)}"(?s:.*)Expected a (<class \')?{wanted}') as caught:
            attempt()
        assert value.strip("[]") in str(caught.value)


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


def test_there_are_thirteen_keys_that_are_choices_among_words() -> None:
    assert len(literal_keys()) == 13


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


def test_a_message_without_a_name_is_passed_on() -> None:
    assert explain_error(" something else\n") == "something else"


def test_load_config_takes_the_default_recipe_unless_one_is_given(parser: ArgumentParser, tmp_path: Path) -> None:
    default = parse_config(["--config", str(DEFAULT_RECIPE)], parser=parser)
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(config_to_dict(replace_section(default, "train", epochs=99))))
    assert load_config([], prog="train.py", description="") == default
    for argv in (["--config", str(other)], [f"--config={other}"]):
        assert load_config(argv, prog="train.py", description="").train.epochs == 99


@pytest.mark.parametrize(
    ("argv", "wanted"),
    [
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
    config = replace_section(config, "augment", sizes_px=((0.0, 48), (1.5, 64)), mixup_alpha=0.2, cutmix_alpha=1.0)
    config = replace_section(config, "augment", erase_prob=0.25, erase_scale=(0.1, 0.2), noise_std=0.02)
    config = replace_section(config, "model", args={"norm": "layer", "dropout": 0.5, "width": 64})
    config = replace_section(config, "optim", betas=(0.8, 0.95), eps=1e-6, weight_decay=5e-4)
    config = replace_section(config, "train", accumulation=2, precision="bf16", label_smoothing=0.1)
    return dataclasses.replace(
        config,
        input=InputSpec(size_px=64, channels=3, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), interpolation="bicubic"),
        loader=LoaderConfig(backend="reference", num_workers=3, resident_max_gib=0.5),
        schedule=ScheduleConfig(name="cosine", warmup_epochs=0.5, final_lr_frac=0.01),
        run=RunConfig(out="runs/here", seed=12345678901, select="last", num_threads=2),
        resume="never",
    )


@pytest.mark.parametrize("change", [lambda config: config, everything_changed], ids=["defaults", "everything_changed"])
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
    assert plain == yaml.safe_load(yaml.safe_dump(plain))


def another_value(value: Any, key: str) -> Any:
    """A value of the key's kind that differs from `value`."""
    words = literal_keys().get(key)
    if words:
        return next(word for word in words if word != value)
    if key == "data.root":
        return "elsewhere/digits"
    named = {"input.mean": (0.5,), "input.std": (0.25,), "model.args": {"width": 64}, "run.out": "x", "model.name": "x"}
    named["augment.sizes_px"] = ((0.5, 16),)
    if key in named:
        return named[key]
    if isinstance(value, bool):
        return not value
    if isinstance(value, tuple):
        return tuple(part / 2 for part in value)
    return 1 if value is None else value + 1


def with_key(config: Config, key: str, value: Any) -> Config:
    section, _, name = key.rpartition(".")
    return replace_section(config, section, **{name: value}) if section else dataclasses.replace(config, resume=value)


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
        old, new = (value_at(config_to_plain(one), key) for one in (config, changed))
        assert default_run_folder(changed) != default_run_folder(config)
        assert differing == [f"{key}: {old} -> {new}"]
    else:
        same_folder = key != "data.root"  # the same images may move, but other images are another run
        assert (default_run_folder(changed) == default_run_folder(config)) is same_folder
        assert differing == []


def config_to_plain(config: Config) -> Any:
    """The plain dict with attribute access, for `value_at`."""

    class Plain:
        def __init__(self, plain: dict[str, Any]) -> None:
            for name, value in plain.items():
                setattr(self, name, Plain(value) if isinstance(value, dict) and name != "args" else value)

    return Plain(config_to_dict(config))


def test_a_key_that_an_older_run_did_not_have_had_its_default(config: Config) -> None:
    plain = config_to_dict(config)
    old = {**plain, "train": {**plain["train"]}, "input": {**plain["input"]}}
    del old["train"]["label_smoothing"], old["input"]["mean"]
    assert differing_keys(plain, old) == []
    smoothed = config_to_dict(replace_section(config, "train", label_smoothing=0.1))
    assert differing_keys(smoothed, old) == ["train.label_smoothing: 0.0 -> 0.1"]


def test_the_run_folder_is_named_after_data_and_model_and_survives_a_move_of_the_data(config: Config) -> None:
    assert re.fullmatch(r"runs/digits-simple_cnn-[0-9a-f]{8}", default_run_folder(config))
    here = replace_section(config, "data", dataset="folder", root="/here/cifar10")
    there = replace_section(config, "data", dataset="folder", root="/there/cifar10/")
    assert re.fullmatch(r"runs/cifar10-simple_cnn-[0-9a-f]{8}", default_run_folder(here))
    assert default_run_folder(here) != default_run_folder(there), "other images are another run"
    slash = replace_section(config, "model", name="timm/resnet18")
    assert re.fullmatch(r"runs/digits-timm_resnet18-[0-9a-f]{8}", default_run_folder(slash))


def test_replace_section_leaves_the_original_and_the_other_sections_alone(config: Config) -> None:
    changed = replace_section(config, "optim", lr=1.0)
    assert (config.optim.lr, changed.optim.lr) == (0.001, 1.0)
    assert dataclasses.replace(changed, optim=config.optim) == config
