"""Checks: every table entry is enforced, and every message gives what came and a value that works."""

import dataclasses
import itertools
import json
import math
import re
import shlex
import types
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonargparse import ArgumentParser

from configs import check
from configs.check import check_batch, check_config, check_input, check_pad, data_kind
from configs.load import config_keys, config_to_dict, parse_config, replace_section
from configs.schema import Config, DataConfig, InputSpec, OptimConfig


def with_values(config: Config, **values: Any) -> Config:
    """The configuration with keys such as optim__lr set anew."""
    for key, value in values.items():
        section, _, name = key.partition("__")
        config = replace_section(config, section, **{name: value})
    return config


def with_choice(config: Config, key: str, choice: str) -> Config:
    """The configuration with a choice made, and with what that choice cannot do without."""
    config = with_values(config, **{key.replace(".", "__"): choice})
    if key == "schedule.name" and choice == "multi_step":
        config = with_values(config, schedule__milestones_epochs=(1.0, 2.0))
    if key == "strategy.classifier":
        config = with_values(config, strategy__name="features")
    return config


def with_key(config: Config, key: str, value: Any) -> Config:
    """The configuration with a dotted key set, and the first choice that reads it chosen."""
    if key in check._READ_BY:
        choice_key, choices = check._READ_BY[key]
        config = with_choice(config, choice_key, choices[0])
    if key.startswith("distill."):
        config = with_values(config, distill__teachers=("runs/teacher",), distill__features={"a": "b"})
    for switch in check._READ_ABOVE_ZERO.get(key, ())[:1]:
        config = with_values(config, **{switch.replace(".", "__"): 0.5})
    if key in ("average.swa_lr_frac", "average.bn_images"):
        config = with_values(config, average__swa_start_epoch=1)
    return with_values(config, **{key.replace(".", "__"): value})


def with_data(config: Config, dataset: str, **values: Any) -> Config:
    """The configuration with a data set, and with the root that some cannot do without."""
    root = "somewhere" if dataset in ("folder", "manifest", "packed") else None
    return with_values(config, data__dataset=dataset, data__root=root, **values)


def kinds_of(key: str) -> tuple[Any, ...]:
    section, name = key.split(".")
    of = next(field.type for field in dataclasses.fields(Config) if field.name == section)
    kind = next(field.type for field in dataclasses.fields(of) if field.name == name)  # type: ignore[arg-type]
    return typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)


def words_of(key: str) -> tuple[str, ...]:
    """The choices of a key that is one among words."""
    (literal,) = kinds_of(key)
    return typing.get_args(literal)


def typed_back(offer: str, config: Config, parser: ArgumentParser, tmp_path: Path) -> Config:
    """The configuration with the option that a message offers, such as `--data.sampling balanced`, typed after it."""
    path = tmp_path / "refused.yaml"
    path.write_text(yaml.safe_dump(config_to_dict(config)))
    return parse_config(["--config", str(path), *shlex.split(offer)], parser=parser)


KEYS_OF_NUMBERS = [key for key in config_keys() if "." in key and {int, float} & set(kinds_of(key))]


@pytest.mark.parametrize(
    "key",
    [
        *check._READ_BY,
        *check._READ_BY_DATA,
        *check._READ_ABOVE_ZERO,
        *check._AT_LEAST,
        *check._ABOVE_ZERO,
        *check._FRACTIONS_BELOW_ONE,
        *check._AT_MOST,
    ],
)
def test_every_entry_of_the_tables_names_an_existing_key(key: str) -> None:
    assert key in config_keys()


def test_every_choice_that_reads_a_key_is_a_choice_of_an_existing_key() -> None:
    for choice_key, choices in check._READ_BY.values():
        assert choices
        assert set(choices) < set(words_of(choice_key)), "a key that every choice reads needs no entry"
    for switch in itertools.chain(*check._READ_ABOVE_ZERO.values()):
        assert {int, float} & set(kinds_of(switch))


@pytest.mark.parametrize("key", check._AT_LEAST)
def test_a_value_below_the_least_is_refused_and_the_least_is_accepted(config: Config, key: str) -> None:
    least = check._AT_LEAST[key]
    too_small = least - 1 if int in kinds_of(key) else math.nextafter(least, -1)
    with pytest.raises(ValueError, match=re.escape(f"{key}={too_small} is too small; it must be at least {least}")):
        check_config(with_key(config, key, too_small))
    check_config(with_key(config, key, least))


@pytest.mark.parametrize("key", check._ABOVE_ZERO)
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_a_number_that_must_be_above_zero_and_finite_is_enforced(config: Config, key: str, value: float) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key}={value} must be a number above 0; for example")):
        check_config(with_key(config, key, value))
    check_config(with_key(config, key, 1e-12))


@pytest.mark.parametrize("key", check._FRACTIONS_BELOW_ONE)
def test_a_fraction_must_be_below_one_and_not_negative(config: Config, key: str) -> None:
    for value in (1.0, 1.5):
        with pytest.raises(ValueError, match=re.escape(f"{key}={value} must be at least 0 and below 1; for example")):
            check_config(with_key(config, key, value))
    with pytest.raises(ValueError, match=re.escape(f"{key}=-0.1 ")):
        check_config(with_key(config, key, -0.1))
    check_config(with_key(config, key, 1e-12 if key == "schedule.rise_frac" else 0.0))  # 0 has a message of its own
    check_config(with_key(config, key, 0.99))


@pytest.mark.parametrize("key", check._AT_MOST)
def test_a_number_beyond_its_bound_is_refused(config: Config, key: str) -> None:
    most = check._AT_MOST[key]
    with pytest.raises(ValueError, match=re.escape(f"{key}={most + 1} is too large; use at most {most}.")):
        check_config(with_key(config, key, most + 1))
    check_config(with_key(config, key, most))


@pytest.mark.parametrize("key", KEYS_OF_NUMBERS)
def test_no_number_may_be_negative_and_the_message_names_the_key(config: Config, key: str) -> None:
    value = -1 if int in kinds_of(key) else -0.5
    with pytest.raises(ValueError, match=re.escape(f"{key}={value}")):
        check_config(with_key(config, key, value))


@pytest.mark.parametrize("key", [key for key in KEYS_OF_NUMBERS if float in kinds_of(key)])
def test_no_number_may_be_nan(config: Config, key: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{key}=nan")):
        check_config(with_key(config, key, math.nan))


def test_the_tests_of_numbers_saw_all_of_them() -> None:
    assert len(KEYS_OF_NUMBERS) == 82


def test_every_number_is_bounded_below() -> None:
    bounded = {*check._AT_LEAST, *check._ABOVE_ZERO, *check._FRACTIONS_BELOW_ONE}
    assert set(KEYS_OF_NUMBERS) - bounded == {"input.channels", "input.crop_frac"}, "check_input looks at these two"


# --- options that are read by some choices only

READ = [(key, choice) for key, (_, choices) in check._READ_BY.items() for choice in choices]
UNREAD = [
    (key, choice)
    for key, (choice_key, choices) in check._READ_BY.items()
    for choice in words_of(choice_key)
    if choice not in choices
]
OTHER_VALUES = {
    "optim.nesterov": True,
    "optim.betas": (0.8, 0.9),
    "schedule.milestones_epochs": (0.5, 1.0),
    "schedule.momentum_range": (0.9, 0.8),
    "optim.ns_coefficients": (3.0, -3.0, 1.0),
    "optim.muon_scale": "match_adamw",
    "optim.fix_filter_norm": True,
    "schedule.cycle_mult": 2.0,
    "augment.rrc_scale": (0.1, 0.2),
    "augment.rrc_ratio": (0.8, 0.9),
    "loader.workers": "processes",
    "loader.decode": "scaled",
}


def other_value(key: str) -> Any:
    """A value of the key that is not its default, and that no check of ranges refuses."""
    return OTHER_VALUES.get(key, 0.5 if float in kinds_of(key) else 2)


def default_of(key: str) -> Any:
    """The default as an instance shows it, which holds for default factories too."""
    sections = {"data": DataConfig(dataset="digits"), "optim": OptimConfig(name="sgd", lr=1.0)}
    section, name = key.split(".")
    of = next(field.type for field in dataclasses.fields(Config) if field.name == section)
    return getattr(sections[section] if section in sections else of(), name)  # type: ignore[operator]


def test_the_tests_of_unread_options_saw_all_of_them() -> None:
    assert len(check._READ_BY) == 44
    assert (len(READ), len(UNREAD)) == (80, 241)
    assert len(check._READ_BY_DATA) == 5


@pytest.mark.parametrize(("key", "other"), UNREAD)
def test_an_option_that_the_choice_does_not_read_is_refused_with_both_ways_out(
    config: Config, key: str, other: str
) -> None:
    choice_key, choices = check._READ_BY[key]
    value, default = other_value(key), default_of(key)
    assert value != default
    typed = default if isinstance(default, str) else json.dumps(default)
    chosen = with_values(with_choice(config, choice_key, other), **{key.replace(".", "__"): value})
    wanted = (
        f"{key}={value} is read only with {choice_key}={' or '.join(choices)}, but {choice_key}={other}; "
        f"drop it, or set it back to {typed} if it is the recipe's, or use {choice_key}={choices[0]}."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(chosen)
    check_config(with_values(chosen, **{key.replace(".", "__"): default}))


@pytest.mark.parametrize(("key", "choice"), READ)
def test_an_option_is_accepted_with_every_choice_that_reads_it(config: Config, key: str, choice: str) -> None:
    chosen = with_choice(config, check._READ_BY[key][0], choice)
    chosen = with_values(chosen, **{key.replace(".", "__"): other_value(key)})
    if key == "optim.nesterov":
        chosen = with_values(chosen, optim__momentum=0.9)
    check_config(chosen)


# --- kinds of data sets

DATA_SETS: dict[str, str] = {
    "digits": "digits",
    "folder": "folder",
    "manifest": "manifest",
    "packed": "packed",
    "torchvision": "cifar10",
    "own": "my_data.birds:Birds",
}
KIND_WORDS = {
    "digits": "data.dataset=digits",
    "folder": "data.dataset=folder",
    "manifest": "data.dataset=manifest",
    "packed": "data.dataset=packed",
    "torchvision": "a data set of torchvision's",
    "own": "your own data set (data.dataset=package.module:Name)",
}
DATA_VALUES = {
    "data.root": "elsewhere",
    "data.args": {"folder": "elsewhere"},
    "data.image_root": "elsewhere",
    "data.path_column": "file",
    "data.label_column": "species",
}
# by hand, from the meanings in the schema
DATA_READERS = {
    "data.root": {"folder", "manifest", "packed", "torchvision"},
    "data.args": {"own"},
    "data.image_root": {"manifest"},
    "data.path_column": {"manifest"},
    "data.label_column": {"manifest"},
}


def test_there_are_six_kinds_of_data_sets_and_all_are_tested() -> None:
    assert set(typing.get_args(check.DataKind)) == set(DATA_SETS) == set(KIND_WORDS)
    assert len(DATA_SETS) == 6
    assert set(DATA_READERS) == set(check._READ_BY_DATA) == set(DATA_VALUES)


@pytest.mark.parametrize(("kind", "dataset"), DATA_SETS.items())
def test_the_name_of_a_data_set_says_its_kind(kind: str, dataset: str) -> None:
    assert data_kind(dataset) == kind


@pytest.mark.parametrize("dataset", ["cifar100", "digit", "Folder", "", "no_such_set", "my_data.birds"])
def test_any_other_name_is_looked_for_among_those_of_torchvision(dataset: str) -> None:
    assert data_kind(dataset) == "torchvision"


@pytest.mark.parametrize(("kind", "dataset"), DATA_SETS.items())
def test_every_kind_of_data_set_passes_with_what_it_needs(config: Config, kind: str, dataset: str) -> None:
    check_config(with_data(config, dataset))


@pytest.mark.parametrize("kind", DATA_SETS)
@pytest.mark.parametrize("key", DATA_READERS)
def test_an_option_of_data_that_the_kind_does_not_read_is_refused_naming_who_does(
    config: Config, key: str, kind: str
) -> None:
    dataset, value = DATA_SETS[kind], DATA_VALUES[key]
    chosen = with_values(with_data(config, dataset), **{key.replace(".", "__"): value})
    if kind in DATA_READERS[key]:
        check_config(chosen)
        return
    readers = " or ".join(KIND_WORDS[one] for one in DATA_SETS if one in DATA_READERS[key])
    wanted = f"{key}={value} is read only with {readers}, but data.dataset={dataset}; drop it, or use another data.data"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(chosen)
    check_config(with_values(chosen, **{key.replace(".", "__"): default_of(key)}))


def test_a_manifest_without_a_root_is_refused_with_the_option_to_add(
    config: Config, parser: ArgumentParser, tmp_path: Path
) -> None:
    wrong = with_values(config, data__dataset="manifest")
    wanted = (
        "data.dataset=manifest needs data.root, the folder that holds train.csv (or .tsv, .jsonl) or such a file "
        "itself; add --data.root DIR."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(wrong)
    assert typed_back("--data.root DIR", wrong, parser, tmp_path).data.root == "DIR"


def test_a_packed_data_set_without_a_root_is_refused_with_the_option_to_add(
    config: Config, parser: ArgumentParser, tmp_path: Path
) -> None:
    wrong = with_values(config, data__dataset="packed")
    wanted = "data.dataset=packed needs data.root, the folder that tools.pack made; add --data.root DIR."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(wrong)
    assert typed_back("--data.root DIR", wrong, parser, tmp_path).data.root == "DIR"


def test_scaled_decoding_does_not_replace_bad_images_and_both_offers_work(
    config: Config, parser: ArgumentParser, tmp_path: Path
) -> None:
    chosen = with_values(config, loader__backend="threads", loader__decode="scaled", data__on_bad_sample="replace")
    with pytest.raises(
        ValueError, match=r"loader.decode=scaled with data.on_bad_sample=replace: .* or --loader.decode exact"
    ):
        check_config(chosen)
    assert typed_back("--data.on_bad_sample raise", chosen, parser, tmp_path).loader.decode == "scaled"
    assert typed_back("--loader.decode exact", chosen, parser, tmp_path).data.on_bad_sample == "replace"


@pytest.mark.parametrize("kind", DATA_SETS)
def test_only_a_manifest_packed_or_not_can_weight_its_images_and_the_offers_work(
    config: Config, parser: ArgumentParser, tmp_path: Path, kind: str
) -> None:
    chosen = with_data(config, DATA_SETS[kind], data__sampling="weighted")
    if kind in ("manifest", "packed"):
        check_config(chosen)
        return
    wanted = (
        f"data.sampling=weighted takes weights from a manifest, but data.dataset={DATA_SETS[kind]}; use "
        "--data.sampling balanced, or --data.class_weights.NAME FACTOR."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(chosen)
    assert typed_back("--data.sampling balanced", chosen, parser, tmp_path).data.sampling == "balanced"
    factors = typed_back("--data.sampling shuffled --data.class_weights.cat 2", chosen, parser, tmp_path)
    assert factors.data.class_weights == {"cat": 2.0}


@pytest.mark.parametrize("factor", [0.0, -1.0, math.inf, math.nan])
def test_a_factor_of_a_class_must_be_above_zero_and_finite(config: Config, factor: float) -> None:
    wanted = f"data.class_weights.dog={factor} must be a number above 0; for example 2."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(with_values(config, data__class_weights={"cat": 2.0, "dog": factor}))


@pytest.mark.parametrize("sampling", ["shuffled", "balanced", "weighted"])
def test_factors_of_classes_go_with_every_sampling(config: Config, sampling: str) -> None:
    chosen = with_data(config, "manifest", data__sampling=sampling)
    check_config(with_values(chosen, data__class_weights={"cat": 2.0, "dog": 1e-12}))


# --- schedules


def test_every_schedule_passes_with_its_defaults_and_its_milestones(config: Config) -> None:
    names = words_of("schedule.name")
    assert len(names) == 10
    for name in names:
        check_config(with_choice(config, "schedule.name", name))


def example_in(message: str) -> str:
    """The option that a message ends with."""
    return message.partition("for example ")[2].rstrip(".")


@pytest.mark.parametrize("epochs", [1, 2, 4, 300])
@pytest.mark.parametrize(
    "milestones",
    [(), (2.0, 1.0), (0.5, 0.5), (0.0, 0.5), (-0.5, 0.5), (0.5, 300.0), (301.0,), (math.nan,), (math.inf,)],
)
def test_milestones_that_do_not_rise_within_the_training_are_refused_and_the_example_works_when_typed_back(
    config: Config, parser: ArgumentParser, tmp_path: Path, milestones: tuple[float, ...], epochs: int
) -> None:
    config = with_values(config, train__epochs=epochs)
    wrong = with_values(config, schedule__name="multi_step", schedule__milestones_epochs=milestones)
    wanted = (
        f"schedule.milestones_epochs={list(milestones)} must be one or more epochs that rise from above 0 to below "
        f"train.epochs={epochs}; for example --schedule.milestones_epochs "
    )
    with pytest.raises(ValueError, match=re.escape(wanted)) as caught:
        check_config(wrong)
    offered = typed_back(example_in(str(caught.value)), wrong, parser, tmp_path)
    assert offered.schedule.milestones_epochs == (epochs / 2, epochs * 3 / 4)


def test_milestones_with_no_number_among_them_are_always_refused(config: Config) -> None:
    multi_step = with_values(config, schedule__name="multi_step")
    for _ in range(200):  # a set of nan and numbers may come out in any order
        milestones = (1.0, float("nan"), 3.0)
        with pytest.raises(ValueError, match=r"milestones_epochs=\[1\.0, nan, 3\.0\] must"):
            check_config(with_values(multi_step, schedule__milestones_epochs=milestones))


@pytest.mark.parametrize("milestones", [(2.0,), (0.25, 3.999), (1.0, 2.0, 3.0)])
def test_milestones_that_rise_within_the_training_pass(config: Config, milestones: tuple[float, ...]) -> None:
    check_config(with_values(config, schedule__name="multi_step", schedule__milestones_epochs=milestones))


def test_one_cycle_takes_no_warm_up_and_says_what_to_set_instead(config: Config) -> None:
    wrong = with_values(config, schedule__name="one_cycle", schedule__warmup_epochs=0.5)
    wanted = (
        "schedule.warmup_epochs=0.5 does not go with schedule one_cycle, which rises by itself (schedule.rise_frac); "
        "set --schedule.warmup_epochs 0."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(wrong)
    check_config(with_values(wrong, schedule__warmup_epochs=0.0, schedule__rise_frac=0.125))


@pytest.mark.parametrize("name", ["constant", "step", "multi_step", "exponential", "cosine", "plateau"])
def test_every_other_schedule_takes_a_warm_up(config: Config, name: str) -> None:
    check_config(with_values(with_choice(config, "schedule.name", name), schedule__warmup_epochs=0.5))


def test_one_cycle_needs_a_part_to_rise_in(config: Config) -> None:
    wrong = with_values(config, schedule__name="one_cycle", schedule__rise_frac=0.0)
    with pytest.raises(ValueError, match=r"schedule\.rise_frac=0 leaves one_cycle nothing to rise in; use 0\.3\."):
        check_config(wrong)
    check_config(with_values(wrong, schedule__rise_frac=0.3))


@pytest.mark.parametrize(
    "momentum_range", [(0.85, 0.95), (1.0, 0.9), (0.9, -0.1), (math.nan, 0.1), (0.9, math.nan), (math.inf, 0.5)]
)
def test_a_range_of_momentum_that_does_not_fall_within_0_to_1_is_refused_and_the_offer_works(
    config: Config, momentum_range: tuple[float, float]
) -> None:
    wrong = with_values(config, schedule__name="one_cycle", schedule__momentum_range=momentum_range)
    high, low = momentum_range
    wanted = f"schedule.momentum_range=[{high:g}, {low:g}] must fall within 0 to below 1; use [0.95, 0.85]."
    with pytest.raises(ValueError, match=re.escape(wanted)) as caught:
        check_config(wrong)
    check_config(with_values(wrong, schedule__momentum_range=offered_pair(str(caught.value))))


@pytest.mark.parametrize("momentum_range", [(0.95, 0.85), (0.9, 0.9), (0.99, 0.0), (0.0, 0.0)])
def test_a_range_of_momentum_that_falls_or_stays_passes(config: Config, momentum_range: tuple[float, float]) -> None:
    check_config(with_values(config, schedule__name="one_cycle", schedule__momentum_range=momentum_range))


def test_early_stopping_waits_at_least_one_epoch(config: Config) -> None:
    for num_epochs in (0, -3):
        wanted = f"train.early_stop_epochs={num_epochs} is too small; it must be at least 1; use 1."
        with pytest.raises(ValueError, match=re.escape(wanted)):
            check_config(with_values(config, train__early_stop_epochs=num_epochs))
    for passing in (None, 1, 1000):
        check_config(with_values(config, train__early_stop_epochs=passing))


# --- combinations and sizes


def test_betas_must_each_be_a_fraction_below_one(config: Config) -> None:
    for betas in ((1.0, 0.9), (0.9, -0.1)):
        wanted = f"optim.betas={list(betas)} must each be at least 0 and below 1; use [0.9, 0.999]."
        with pytest.raises(ValueError, match=re.escape(wanted)):
            check_config(with_values(config, optim__betas=betas))
    check_config(with_values(config, optim__betas=(0.9, 0.999)))


def test_a_folder_without_a_root_is_refused_with_the_option_to_add(config: Config) -> None:
    with pytest.raises(ValueError, match=r"data\.dataset=folder needs data\.root.*add --data\.root DIR"):
        check_config(with_values(config, data__dataset="folder"))


def test_nesterov_without_momentum_is_refused_and_offers_a_momentum(config: Config) -> None:
    sgd = with_values(config, optim__name="sgd", optim__nesterov=True)
    with pytest.raises(ValueError, match=r"optim\.nesterov=true needs optim\.momentum above 0; use 0\.9"):
        check_config(sgd)
    check_config(with_values(sgd, optim__momentum=0.9))


def test_a_warm_up_as_long_as_the_training_is_refused_and_offers_one_epoch_less(config: Config) -> None:
    wanted = (
        "schedule.warmup_epochs=4 leaves nothing of train.epochs=4; use less, for example --schedule.warmup_epochs 0.3."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(with_values(config, schedule__warmup_epochs=4.0))
    check_config(with_values(config, schedule__warmup_epochs=3.0))


@pytest.mark.parametrize(
    ("batch", "world_size", "accumulation", "offers"),
    [(100, 8, None, "96 or 104"), (4, 8, None, "8"), (100, 4, 2, "96 or 104"), (7, 1, 2, "6 or 8"), (1, 2, 1, "2")],
)
def test_a_batch_that_does_not_divide_is_refused_with_both_neighbours(
    config: Config, batch: int, world_size: int, accumulation: int | None, offers: str
) -> None:
    config = with_values(config, train__global_batch_size=batch, train__accumulation=accumulation)
    parts = world_size * (accumulation or 1)
    wanted = (
        f"train.global_batch_size={batch} is not divisible by world_size*accumulation = "
        f"{world_size}*{accumulation or 1} = {parts}; use {offers}."
    )
    with pytest.raises(ValueError, match=re.escape(wanted) + "$"):
        check_batch(config, world_size=world_size)
    for offer in offers.split(" or "):
        check_batch(with_values(config, train__global_batch_size=int(offer)), world_size=world_size)


@pytest.mark.parametrize(("pad_px", "size_px", "offer"), [(8, 8, 4), (9, 8, 4), (3, 3, 2), (1, 1, 0)])
def test_a_shift_beyond_the_image_is_refused_and_the_offer_works(
    config: Config, pad_px: int, size_px: int, offer: int
) -> None:
    wanted = (
        f"augment.pad_px={pad_px} shifts the crop beyond an image of input.size_px={size_px}: reflection reaches at "
        f"most {size_px - 1}; use {offer}."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_pad(pad_px, size_px=size_px)
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(with_values(config, augment__crop="pad", augment__pad_px=pad_px, input__size_px=size_px))
    check_pad(offer, size_px=size_px)
    check_pad(size_px - 1, size_px=size_px)


@pytest.mark.parametrize(("crop_frac", "offer"), [(1.5, 1.0), (0.0, 0.875), (-1.0, 0.875), (math.nan, 0.875)])
def test_a_crop_larger_than_the_image_or_empty_is_refused(crop_frac: float, offer: float) -> None:
    wanted = rf"input\.crop_frac={crop_frac} would crop {crop_frac:g} times .* above 0 and at most 1; use {offer}\."
    with pytest.raises(ValueError, match=wanted):
        check_input(InputSpec(crop_frac=crop_frac))
    check_input(InputSpec(crop_frac=offer))


def offered_pair(message: str) -> tuple[float, float]:
    low, high = re.search(r"use \[([\d.]+), ([\d.]+)\]\.$", message).groups()  # type: ignore[union-attr]
    return float(low), float(high)


@pytest.mark.parametrize(
    "scale", [(0.5, 0.3), (0.0, 1.0), (0.08, 1.5), (2.0, 3.0), (-1.0, 0.5), (0.0, 0.05), (math.nan, 1.0), (0.9, 0.08)]
)
def test_an_impossible_rrc_scale_is_refused_and_the_offer_works(config: Config, scale: tuple[float, float]) -> None:
    wrong = with_values(config, augment__crop="rrc", augment__rrc_scale=scale)
    wanted = re.escape(f"augment.rrc_scale=[{scale[0]:g}, {scale[1]:g}] must rise within 0 to 1")
    with pytest.raises(ValueError, match=wanted) as caught:
        check_config(wrong)
    check_config(with_values(wrong, augment__rrc_scale=offered_pair(str(caught.value))))


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (-1.0, 1.0), (1.3, 0.7), (math.nan, 1.0), (0.75, math.inf)])
def test_an_impossible_rrc_ratio_is_refused_and_the_offer_works(config: Config, ratio: tuple[float, float]) -> None:
    wrong = with_values(config, augment__crop="rrc", augment__rrc_ratio=ratio)
    wanted = re.escape(f"augment.rrc_ratio=[{ratio[0]:g}, {ratio[1]:g}] must be above 0 and rise")
    with pytest.raises(ValueError, match=wanted) as caught:
        check_config(wrong)
    check_config(with_values(wrong, augment__rrc_ratio=offered_pair(str(caught.value))))


def test_channels_other_than_one_or_three_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input\.channels=2, .* 1 \(grey\) or 3 \(RGB\); use 1 or 3"):
        check_input(InputSpec(channels=2))
    check_input(InputSpec(channels=1))
    check_input(InputSpec(channels=3))


@pytest.mark.parametrize("name", ["mean", "std"])
@pytest.mark.parametrize(
    ("channels", "values", "wanted"),
    [(3, (0.5,), "3 (input.channels)"), (1, (0.5,) * 3, "1 (input.channels)"), (None, (0.5, 0.5), "1 or 3")],
)
def test_statistics_that_do_not_fit_the_channels_are_refused(
    name: str, channels: int | None, values: tuple[float, ...], wanted: str
) -> None:
    message = f"input.{name} has {len(values)} values {list(values)}; give one per channel: {wanted}."
    with pytest.raises(ValueError, match=re.escape(message)):
        check_input(InputSpec(channels=channels, **{name: values}))


def test_mean_and_std_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match=r"input\.mean has 1 values and input\.std 3; give as many of each"):
        check_input(InputSpec(mean=(0.5,), std=(0.2, 0.2, 0.2)))
    check_input(InputSpec(mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)))


@pytest.mark.parametrize(("name", "value"), [("mean", 127.5), ("std", 58.0), ("std", 0.0), ("mean", -0.1)])
def test_statistics_on_another_scale_are_refused_and_the_message_says_how_to_scale(name: str, value: float) -> None:
    wanted = f"input.{name}=[{value}] is not on the scale 0 to 1; divide values for 0..255 by 255, or leave"
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_input(InputSpec(**{name: (value,)}))
    check_input(InputSpec(mean=(0.0,), std=(1.0,)))


def test_a_complete_and_correct_configuration_passes(config: Config) -> None:
    check_config(config)
    check_batch(config, world_size=6)


# --- augmentation of pairs, repeats and sizes


@pytest.mark.parametrize("scale", [(0.5, 0.3), (0.0, 0.3), (0.02, 1.5), (-1.0, 0.5), (math.nan, 1.0), (0.02, math.inf)])
def test_an_impossible_erase_scale_is_refused_and_the_offer_works(config: Config, scale: tuple[float, float]) -> None:
    wrong = with_values(config, augment__erase_prob=0.5, augment__erase_scale=scale)
    wanted = re.escape(f"augment.erase_scale=[{scale[0]:g}, {scale[1]:g}] must rise within 0 to 1")
    with pytest.raises(ValueError, match=wanted) as caught:
        check_config(wrong)
    check_config(with_values(wrong, augment__erase_scale=offered_pair(str(caught.value))))


@pytest.mark.parametrize("ratio", [(0.0, 1.0), (-1.0, 1.0), (3.3, 0.3), (math.nan, 1.0), (0.3, math.inf)])
def test_an_impossible_erase_ratio_is_refused_and_the_offer_works(config: Config, ratio: tuple[float, float]) -> None:
    wrong = with_values(config, augment__erase_prob=0.5, augment__erase_ratio=ratio)
    wanted = re.escape(f"augment.erase_ratio=[{ratio[0]:g}, {ratio[1]:g}] must be above 0 and rise")
    with pytest.raises(ValueError, match=wanted) as caught:
        check_config(wrong)
    check_config(with_values(wrong, augment__erase_ratio=offered_pair(str(caught.value))))


@pytest.mark.parametrize("sizes_px", [(), ((0.0, 16),), ((0.5, 16),), ((0.0, 16), (0.25, 8), (3.0, 16384))])
def test_sizes_at_rising_epochs_pass(config: Config, sizes_px: tuple[tuple[float, int], ...]) -> None:
    check_config(with_values(config, augment__sizes_px=sizes_px))


@pytest.mark.parametrize(
    "sizes_px", [((1.0, 16), (0.0, 8)), ((0.0, 16), (0.0, 8)), ((-1.0, 16),), ((0.0, 8), (-0.5, 16))]
)
def test_sizes_at_epochs_that_do_not_rise_are_refused_with_an_example_that_works(
    config: Config, sizes_px: tuple[tuple[float, int], ...]
) -> None:
    wanted = f"augment.sizes_px={[list(pair) for pair in sizes_px]} must begin at epochs that rise from 0; for example "
    with pytest.raises(ValueError, match=re.escape(wanted)) as caught:
        check_config(with_values(config, augment__sizes_px=sizes_px))
    example = yaml.safe_load(str(caught.value).partition("for example ")[2].rstrip("."))
    check_config(with_values(config, augment__sizes_px=tuple((float(start), size) for start, size in example)))


def test_a_size_that_begins_at_no_number_is_refused(config: Config) -> None:
    with pytest.raises(ValueError, match=r"augment\.sizes_px"):
        check_config(with_values(config, augment__sizes_px=((math.nan, 16),)))


@pytest.mark.parametrize("size_px", [0, -8, 16385])
def test_a_size_of_no_or_too_many_pixels_is_refused_with_the_limits(config: Config, size_px: int) -> None:
    wanted = f"augment.sizes_px has a size of {size_px} pixels; use 1 to 16384."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(with_values(config, augment__sizes_px=((0.0, 16), (2.0, size_px))))


def test_a_shift_must_fit_every_size(config: Config) -> None:
    padded = with_values(config, augment__crop="pad", augment__pad_px=8, input__size_px=32)
    check_config(with_values(padded, augment__sizes_px=((0.0, 9), (1.0, 32))))
    with pytest.raises(ValueError, match=r"augment\.pad_px=8 shifts .* at most 7; use 4"):
        check_config(with_values(padded, augment__sizes_px=((0.0, 32), (1.0, 8))))


@pytest.mark.parametrize(("batch", "repeats", "offer"), [(60, 7, "56 or 63"), (3, 4, "4"), (100, 8, "96 or 104")])
def test_a_batch_that_repeats_do_not_divide_is_refused_and_the_offer_works(
    config: Config, batch: int, repeats: int, offer: str
) -> None:
    wrong = with_values(config, train__global_batch_size=batch, augment__repeats=repeats)
    wanted = f"train.global_batch_size={batch} is not divisible by augment.repeats={repeats}; use {offer}."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_batch(wrong, world_size=1)
    for number in offer.split(" or "):
        check_batch(with_values(wrong, train__global_batch_size=int(number)), world_size=1)


@pytest.mark.parametrize("mixing", [{"augment__mixup_alpha": 0.2}, {"augment__cutmix_alpha": 1.0}])
def test_an_odd_batch_cannot_be_mixed_and_the_offer_works(config: Config, mixing: dict[str, float]) -> None:
    wrong = with_values(config, train__global_batch_size=61, **mixing)
    wanted = "train.global_batch_size=61 is odd, but mixup and CutMix take images in pairs; use 60 or 62."
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_batch(wrong, world_size=1)
    check_batch(with_values(wrong, train__global_batch_size=62), world_size=1)
    check_batch(with_values(config, train__global_batch_size=61), world_size=1)


@pytest.mark.parametrize(
    ("key", "value", "switch"),
    [
        ("augment__erase_scale", (0.1, 0.2), "augment__erase_prob"),
        ("augment__erase_ratio", (0.5, 2.0), "augment__erase_prob"),
        ("augment__mix_until_epoch", 1.5, "augment__mixup_alpha"),
        ("augment__mix_until_epoch", 1.5, "augment__cutmix_alpha"),
    ],
)
def test_what_an_augmentation_that_is_off_would_read_is_refused(
    config: Config, key: str, value: object, switch: str
) -> None:
    wrong = with_values(config, **{key: value})
    with pytest.raises(ValueError, match=rf"{key.replace('__', '.')}=.* is read only with .* above 0; drop it"):
        check_config(wrong)
    check_config(with_values(wrong, **{switch: 0.5}))


@pytest.mark.parametrize("until_epoch", [4.0, 4.5, math.inf])
def test_mixing_that_is_to_end_ends_before_training_does(config: Config, until_epoch: float) -> None:
    wrong = with_values(config, augment__mixup_alpha=0.2, augment__mix_until_epoch=until_epoch)
    wanted = (
        f"augment.mix_until_epoch={until_epoch:g} is not before the end, train.epochs=4; drop it to mix to the end, or "
        "use 3.6."
    )
    if until_epoch == math.inf:
        wanted = "augment.mix_until_epoch=inf must be a number above 0"
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        check_config(wrong)
    check_config(with_values(wrong, augment__mix_until_epoch=3.6))


def test_an_even_batch_may_give_each_process_an_odd_part_of_it(config: Config) -> None:
    check_batch(with_values(config, train__global_batch_size=6, augment__mixup_alpha=0.2), world_size=2)


@pytest.mark.parametrize(
    ("batch", "repeats", "world_size"),
    [(21, 1, 3), (5, 4, 3), (9, 9, 1)],
    ids=["pairs_of_ranks", "repeats_of_ranks", "pairs_of_repeats"],
)
def test_what_is_offered_for_a_batch_fits_pairs_repeats_and_processes_together(
    config: Config, batch: int, repeats: int, world_size: int
) -> None:
    wrong = with_values(config, train__global_batch_size=batch, augment__repeats=repeats, augment__mixup_alpha=0.2)
    with pytest.raises(ValueError, match=rf"global_batch_size={batch}") as caught:
        check_batch(wrong, world_size=world_size)
    for offer in re.findall(r"\d+", str(caught.value).rpartition("use ")[2]):
        check_batch(with_values(wrong, train__global_batch_size=int(offer)), world_size=world_size)


@pytest.mark.parametrize("backend", ["auto", "threads", "resident", "dali", "reference"])
def test_every_backend_passes_with_everything_that_augmentation_offers(config: Config, backend: str) -> None:
    config = with_values(
        config,
        loader__backend=backend,
        augment__repeats=2,
        augment__mixup_alpha=0.2,
        augment__cutmix_alpha=1.0,
        augment__erase_prob=0.25,
        augment__noise_std=0.02,
        augment__sizes_px=((0.0, 8), (0.5, 16)),
    )
    check_config(config)
    check_batch(config, world_size=3)


@pytest.mark.parametrize("name", ["mine.yaml", "mine.yml", "mine.json"])
def test_a_file_of_ones_own_pipeline_must_be_there(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    missing = with_values(config, augment__albumentations=name)
    wanted = (
        f"augment.albumentations={name} is not there (looked for in {tmp_path}); give the path of the file that "
        "albumentations.save has written."
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(missing)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(missing)
    (tmp_path / name).rmdir()
    (tmp_path / name).touch()
    check_config(missing)


@pytest.mark.parametrize("name", ["mine.py", "mine", "", "mine.yaml.bak"])
def test_a_pipeline_in_a_file_of_another_kind_is_refused_with_the_way_to_save_it(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if name:
        (tmp_path / name).touch()
    wanted = (
        f"augment.albumentations={name} must be a file .yaml, .yml or .json that albumentations has written; save the "
        'pipeline by albumentations.save(pipeline, "pipeline.yaml", data_format="yaml").'
    )
    with pytest.raises(ValueError, match=re.escape(wanted)):
        check_config(with_values(config, augment__albumentations=name))
