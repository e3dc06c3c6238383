"""What differs from the defaults, what makes two runs one group, and what groups are called."""

from run_folders import CONFIG

from configs.load import config_to_dict, replace_section
from report.settings import flatten, names_of_groups, settings_changed, settings_of_result


def plain(**sections):
    config = CONFIG
    for section, changes in sections.items():
        config = replace_section(config, section, **changes)
    return config_to_dict(config)


def test_options_that_differ_from_their_defaults_are_listed():
    changed = [tuple(setting) for setting in settings_changed(plain(augment={"rrc_scale": (0.5, 1.0)}))]
    assert changed == [
        ("data.dataset", "digits", "(none)"),
        ("augment.rrc_scale", "[0.5, 1.0]", "[0.08, 1.0]"),
        ("model.name", "simple_cnn", "(none)"),
        ("model.args.norm", "batch", "(none)"),
        ("optim.name", "sgd", "(none)"),
        ("optim.lr", "0.1", "(none)"),
        ("train.epochs", "6", "(none)"),
        ("train.global_batch_size", "60", "(none)"),
    ]


def test_runs_that_differ_in_seed_place_or_speed_only_are_one_group():
    one = settings_of_result(plain())
    other = plain(run={"seed": 7, "out": "x", "num_threads": 3}, loader={"backend": "threads"}, data={"root": "/y"})
    assert settings_of_result(other) == one
    assert settings_of_result(plain(optim={"lr": 0.2})) != one
    assert settings_of_result(plain(model={"args": {"norm": "none"}})) != one
    assert settings_of_result(plain(run={"select": "last"})) != one


def test_an_option_that_came_later_had_its_default():
    old = plain()
    del old["train"]["early_stop_epochs"], old["schedule"]
    assert settings_of_result(old) == settings_of_result(plain())


def test_groups_are_called_by_what_tells_them_apart():
    configs = [plain(), plain(augment={"crop": "pad"}, optim={"lr": 0.2}), plain(model={"args": {"width": 8}})]
    assert names_of_groups([settings_of_result(config) for config in configs]) == [
        "augment.crop=none, model.args.norm=batch, optim.lr=0.1, model.args.width=(none)",
        "augment.crop=pad, model.args.norm=batch, optim.lr=0.2, model.args.width=(none)",
        "augment.crop=none, model.args.norm=(none), optim.lr=0.1, model.args.width=8",
    ]
    assert names_of_groups([settings_of_result(plain())]) == [""]


def test_flat_names_are_those_of_the_command_line():
    assert flatten({"a": {"b": {"c": 1}, "d": []}, "e": None}) == {"a.b.c": 1, "a.d": [], "e": None}
