"""The schema: every key is documented, shown by --help and read by some code."""

import ast
import dataclasses
import re
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from jsonargparse import ArgumentParser
from timm.optim import list_optimizers

from configs import schema
from configs.load import config_keys
from configs.schema import Config, GroupConfig, OptimConfig

ROOT = Path(schema.__file__).parent.parent
DATACLASSES = [thing for thing in vars(schema).values() if isinstance(thing, type) and dataclasses.is_dataclass(thing)]
# how code outside configs/ names a section: config.train, augment = config.augment, spec = data.spec
SECTION_NAMES = {"input": {"input", "spec"}, "data": {"data"}}


def documented_attributes(of: type) -> dict[str, str]:
    """The lines of the docstring's `Attributes:`, each with what follows the colon, continued lines joined."""
    text = (of.__doc__ or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {8}(\w+): (.*(?:\n {12}.*)*)", text, flags=re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in entries}


def attributes_read_outside_configs() -> set[tuple[str, str]]:
    """(`train`, `epochs`) for every expression `....train.epochs` in the product's code outside configs/."""
    files = [path for room in ("pipelines", "models", "engine", "report") for path in (ROOT / room).rglob("*.py")]
    files += [ROOT / "train.py", ROOT / "evaluate.py"]
    read = set()
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
                owner = node.value.attr if isinstance(node.value, ast.Attribute) else node.value.id
                read.add((owner, node.attr))
    return read


def test_the_schema_has_eighteen_dataclasses_all_frozen_and_keyword_only() -> None:
    assert len(DATACLASSES) == 18
    for one in DATACLASSES:
        assert one.__dataclass_params__.frozen, one
        assert all(field.kw_only for field in dataclasses.fields(one)), one


@pytest.mark.parametrize("of", DATACLASSES, ids=lambda of: of.__name__)
def test_every_field_has_a_documented_meaning_and_nothing_else_is_documented(of: type) -> None:
    documented = documented_attributes(of)
    assert list(documented) == [field.name for field in dataclasses.fields(of)]
    assert all(len(meaning) > 4 and meaning.endswith(".") for meaning in documented.values()), documented


@pytest.mark.parametrize("of", DATACLASSES, ids=lambda of: of.__name__)
def test_every_choice_is_explained_or_named_in_the_meaning_of_its_field(of: type) -> None:
    documented = documented_attributes(of)
    for field in dataclasses.fields(of):
        choices = [choice for choice in literal_choices(field.type) if isinstance(choice, str)]
        if field.name == "interpolation":  # Filter for resizing: the words say it
            continue
        if of in (OptimConfig, GroupConfig) and field.name == "name":
            continue  # the next test looks there
        missing = [choice for choice in choices if not re.search(rf"\b{choice}\b", documented[field.name])]
        assert not missing, f"{of.__name__}.{field.name} does not say what {missing} mean"


def test_every_optimizer_is_one_of_torch_or_timm_and_named_by_a_field_that_it_reads() -> None:
    (kind,) = [field.type for field in dataclasses.fields(OptimConfig) if field.name == "name"]
    names = get_args(kind)
    assert len(names) == 7
    documented = documented_attributes(OptimConfig)
    known = {optimizer.lower() for optimizer in vars(torch.optim)} | set(list_optimizers())
    for name in names:
        assert name in known
        assert re.search(rf"\b{name}\b", " ".join(documented.values())), f"no field says that {name} reads it"


def literal_choices(kind: Any) -> list[Any]:
    found: list[Any] = []
    for part in get_args(kind):
        found += literal_choices(part) if not isinstance(part, str) else [part]
    return found


def test_help_shows_every_key_with_the_first_words_of_its_meaning(parser: ArgumentParser) -> None:
    help_text = parser.format_help()
    flowed = " ".join(help_text.split())
    for key in config_keys():
        section, _, name = key.rpartition(".")
        of = Config if not section else next(f.type for f in dataclasses.fields(Config) if f.name == section)
        assert isinstance(of, type)
        assert re.search(rf"^  --{re.escape(key)}[ ,]", help_text, flags=re.MULTILINE), key
        assert " ".join(documented_attributes(of)[name].split()[:6]) in flowed, key


def test_config_keys_lists_each_leaf_once_and_the_sections_are_dataclasses() -> None:
    by_hand = []
    for field in dataclasses.fields(Config):
        is_section = field.name not in ("resume", "dry_run")
        assert dataclasses.is_dataclass(field.type) == is_section
        by_hand += [f"{field.name}.{leaf}" for leaf in field.type.__annotations__] if is_section else [field.name]
    assert config_keys() == by_hand
    assert len(by_hand) == 156
    assert len(by_hand) == len(set(by_hand)) == len_of_sections() - 16


def len_of_sections() -> int:
    """Fields of all but the groups, which stand in a list; the sections of `Config` among them."""
    return sum(len(dataclasses.fields(of)) for of in DATACLASSES if of is not GroupConfig)


@pytest.mark.parametrize("key", config_keys())
def test_every_key_is_read_by_code_outside_configs(key: str) -> None:
    section, _, name = key.rpartition(".")
    owners = SECTION_NAMES.get(section, {section}) if section else {"config"}
    read = attributes_read_outside_configs_once()
    read_as_item = name == "resume" and 'config["resume"]' in (ROOT / "engine" / "record.py").read_text()
    assert read_as_item or any((owner, name) in read for owner in owners), f"{key} is a dead key"


_READ: set[tuple[str, str]] = set()


def attributes_read_outside_configs_once() -> set[tuple[str, str]]:
    if not _READ:
        _READ.update(attributes_read_outside_configs())
    return _READ


def test_a_key_that_no_code_reads_would_be_found() -> None:
    assert ("train", "epochs") in attributes_read_outside_configs_once()
    assert not any(name == "gradient_clipping_norm" for _, name in attributes_read_outside_configs_once())


def test_fields_that_may_change_are_those_that_say_where_or_how_fast() -> None:
    may_change = set(config_keys()) - set(config_keys(may_change=False))
    assert may_change == {
        "data.root",
        "data.image_root",
        "data.verify",
        "data.rescan",
        "augment.albumentations",
        "loader.backend",
        "loader.workers",
        "loader.num_threads",
        "loader.num_workers",
        "loader.prefetch_batches",
        "loader.hw_decoder_load",
        "loader.resident_max_gib",
        "run.out",
        "run.log_every_steps",
        "run.checkpoint_every_steps",
        "run.checkpoint_every_minutes",
        "run.keep_checkpoints",
        "run.max_minutes",
        "weights.run",
        "weights.file",
        "run.stall_minutes",
        "run.control",
        "run.profile",
        "speed.compile",
        "speed.fused",
        "speed.gradient_checkpointing",
        "speed.shard",
        "run.world_size",
        "run.num_threads",
        "run.trackers",
        "resume",
        "dry_run",
    }
