"""What may stand in augment.operations, and what is said of everything else."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from configs.load import DEFAULT_RECIPE, build_parser, load_config, parse_config
from configs.operations import STEPS, Affine, ColorJitter, GaussianBlur, RandAugment, read_operations


def read_one(entry: Any) -> Any:
    return read_operations([entry])[0][1]


def test_a_name_alone_takes_the_defaults_and_fields_change_them() -> None:
    assert read_operations(["randaugment", {"equalize": None}, {"randaugment": {"n": 3, "m": 6.5}}]) == (
        ("randaugment", RandAugment()),
        ("equalize", STEPS["equalize"]()),
        ("randaugment", RandAugment(n=3, m=6.5)),
    )


def test_one_number_stands_for_a_range() -> None:
    jitter = read_one({"color_jitter": {"brightness": 0.4, "contrast": [0.5, 3], "saturation": 1.5, "hue": 0.1}})
    assert jitter == ColorJitter(brightness=(0.6, 1.4), contrast=(0.5, 3), saturation=(0, 2.5), hue=(-0.1, 0.1))
    affine = read_one({"affine": {"degrees": 10, "translate": 0.1, "scale": 0.2, "shear_y": [1, 2]}})
    assert affine == Affine(degrees=(-10, 10), translate=(-0.1, 0.1), scale=(0.8, 1.2), shear_y=(1, 2))
    assert read_one({"gaussian_blur": {"sigma": 0.5}}) == GaussianBlur(sigma=(0.5, 0.5))
    assert read_one({"posterize": {"bits": 4}}).bits == (4, 4)
    assert read_one({"solarize": {"threshold": 100}}).threshold == (100, 100)


MISTAKES = {
    "unknown_step": ("randaugmnt", r"augment.operations\[0\]: unknown operation 'randaugmnt'; nearest: randaugment"),
    "unknown_field": ({"affine": {"degree": 3}}, r"operations\[0\].affine: unknown field 'degree'; nearest: degrees"),
    "two_in_one": ({"invert": None, "equalize": None}, "begin each step with a dash of its own"),
    "number": (3, "each entry is a name, or a name with its fields"),
    "no_fields": ({"invert": 0.3}, r"invert has 0.3 in place of its fields; write invert: \{prob: 0.5\}"),
    "missing": ({"brightness": {"prob": 0.1}}, r"brightness needs factor; for example factor: 0.4"),
    "prob": ({"invert": {"prob": 2}}, r"operations\[0\].invert.prob=2 must be a number from 0 to 1"),
    "word": ({"invert": {"prob": "half"}}, r"invert.prob='half' must be a number from 0 to 1"),
    "fraction": ({"randaugment": {"n": 1.5}}, r"randaugment.n=1.5 must be a whole number from 1 to 16"),
    "yes": ({"randaugment": {"n": True}}, r"randaugment.n=True must be a whole number"),
    "beyond_bins": ({"randaugment": {"m": 31}}, r"m=31 is beyond num_bins - 1 = 30; use less, or more bins"),
    "falling": ({"hue": {"shift": [0.2, 0.1]}}, r"hue.shift=\[0.2, 0.1\] must rise; use \[0.1, 0.2\]"),
    "hue": ({"hue": {"shift": 0.6}}, r"hue.shift=0.6 must be a number from 0 to 0.5"),
    "negative": ({"brightness": {"factor": [-1, 1]}}, r"brightness.factor=-1 must be a number from 0 to 100"),
    "negative_spread": ({"affine": {"degrees": -5}}, r"affine.degrees=-5 must be a number from 0 to 360"),
    "bits": ({"posterize": {"bits": [2.5, 8]}}, r"posterize.bits=2.5 must be a whole number from 0 to 8"),
    "nothing": ({"color_jitter": {"prob": 0.8}}, "color_jitter varies nothing; give one of brightness, contrast"),
    "still": ("affine", "affine varies nothing; give one of degrees, translate"),
    "list_in_list": (["equalize"], r"augment.operations\[0\] is \['equalize'\]; each entry is a name, or a name with"),
    "factor_alone": (
        {"brightness": {"factor": 100}},
        r"brightness.factor=100 must be a number from 0 to 99, which stands for 1 - x to 1 \+ x, or a pair "
        r"\[low, high\] within 0 to 100",
    ),
    "shift_alone": (
        {"hue": {"shift": -0.1}},
        r"hue.shift=-0.1 must be a number from 0 to 0.5, which stands for -x to x, or a pair \[low, high\] within -0.5",
    ),
    "bits_alone": (
        {"posterize": {"bits": 2.0}},
        r"bits=2.0 must be a whole number from 0 to 8, or a pair \[low, high\]",
    ),
    "three": ({"hue": {"shift": [0, 0.1, 0.2]}}, r"shift=\[0, 0.1, 0.2\] must be a number from 0 to 0.5, .* or a pair"),
    "never_a_range": ({"randaugment": {"n": 2.0}}, r"randaugment.n=2.0 must be a whole number from 1 to 16\.$"),
    "scale_alone": (
        {"affine": {"scale": 2}},
        r"affine.scale=2 must be a number from 0 to 0.99, which .*, or a pair .* such as \[1, 2\] \(up to twice\)",
    ),
    "scale_near_one": ({"affine": {"scale": 0.995}}, r"affine.scale=0.995 must be a number from 0 to 0.99"),
    "four_hundred_digits": (
        {"brightness": {"factor": 10**400}},
        r"brightness.factor=\(10\^400 or more\) must be a num",
    ),
    "minus_those": ({"hue": {"shift": [-(10**400), 0]}}, r"hue.shift=\(-10\^400 or more\) must be a number from -0.5"),
    "nan": ({"hue": {"shift": float("nan")}}, "hue.shift=nan must be a number"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place_and_what_to_do(mistake: str) -> None:
    entry, message = MISTAKES[mistake]
    with pytest.raises(ValueError, match=message):
        read_operations([entry])


def test_the_list_comes_from_a_recipe_or_the_command_line_and_is_checked(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {dataset: digits}\nmodel: {name: simple_cnn}\noptim: {name: sgd, lr: 0.1}\n"
        "train: {epochs: 1, global_batch_size: 8}\n"
        "augment:\n  operations:\n    - randaugment: {n: 1}\n    - equalize\n"
    )
    config = load_config(["--config", str(recipe)], prog="train.py", description="")
    assert config.augment.operations == ({"randaugment": {"n": 1}}, "equalize")
    parser = build_parser(prog="train.py", description="")
    given = ["--config", str(recipe), "--augment.operations", '["trivial_augment", {"hue": {"shift": 0.1}}]']
    assert parse_config(given, parser=parser).augment.operations == ("trivial_augment", {"hue": {"shift": 0.1}})
    with pytest.raises(ValueError, match="unknown operation 'equalise'; nearest: equalize"):
        parse_config(["--config", str(recipe), "--augment.operations", '["equalise"]'], parser=parser)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "randaugment",
            "augment.operations is randaugment, and must be a list of steps; .* as in - randaugment, or all",
        ),
        ("{randaugment: {n: 2}}", "augment.operations is {'randaugment': {'n': 2}}, and must be a list of steps"),
        ("3", "augment.operations is 3, and must be a list of steps"),
        ("", r"augment.operations is empty; write \[\] or drop it"),
        ("[3]", r"augment.operations\[0\] is 3; each entry is a name, or a name with its fields"),
        ("[equalize, [invert]]", r"augment.operations\[1\] is \['invert'\]; each entry is a name, or a name with its"),
        ("[null]", r"augment.operations\[0\] is None; each entry is a name"),
    ],
)
def test_what_is_no_list_of_steps_is_answered_by_an_example(tmp_path: Path, written: str, message: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "data: {dataset: digits}\nmodel: {name: simple_cnn}\noptim: {name: sgd, lr: 0.1}\n"
        f"train: {{epochs: 1, global_batch_size: 8}}\naugment:\n  operations: {written}\n"
    )
    parser = build_parser(prog="train.py", description="")
    with pytest.raises(ValueError, match=message):
        parse_config(["--config", str(recipe)], parser=parser)
    with pytest.raises(ValueError, match=message):
        parse_config(["--config", str(DEFAULT_RECIPE), "--augment.operations", written], parser=parser)


def test_no_list_is_refused_where_a_configuration_is_not_parsed() -> None:
    with pytest.raises(ValueError, match=r"augment\.operations is 'equalize', and must be a list of steps"):
        read_operations("equalize")


def test_operations_and_a_pipeline_of_ones_own_exclude_each_other(tmp_path: Path) -> None:
    pipeline = tmp_path / "mine.yaml"
    pipeline.write_text("{}")
    parser = build_parser(prog="train.py", description="")
    given = ["--config", str(DEFAULT_RECIPE), "--augment.albumentations", str(pipeline)]
    parse_config(given, parser=parser)
    with pytest.raises(ValueError, match="put it all into the pipeline, or drop one of them"):
        parse_config([*given, "--augment.operations", '["equalize"]'], parser=parser)


def test_every_field_of_every_step_has_a_meaning_and_limits() -> None:
    assert len(STEPS) == 17
    for step in set(STEPS.values()):
        for field in dataclasses.fields(step):
            assert f"{field.name}: " in str(step.__doc__), (step, field.name)
            assert {"least", "most"} <= set(field.metadata)
