"""Optimizer, groups and lengths of the schedule, against each other."""

import re

import pytest
from test_configs_check import with_values

from configs.check import check_config
from configs.schema import Config, GroupConfig

GOOD = [
    {"optim__groups": (GroupConfig(name="sgd", momentum=0.9, nesterov=True), GroupConfig(until_epoch=4.0))},
    {"optim__name": "sgd", "optim__momentum": 0.9, "optim__nesterov": True},
    {"optim__clip_value": 0.1},
    {"schedule__name": "cosine", "schedule__warmup_epochs": 1.0, "schedule__cooldown_epochs": 2.5},
]
BAD = [
    ({"optim__clip_norm": 1.0, "optim__clip_value": 0.1}, "optim.clip_norm=1 and optim.clip_value=0.1 are both set"),
    ({"optim__name": "sgd", "optim__nesterov": True}, "optim.nesterov=true needs optim.momentum above 0; use 0.9."),
    ({"optim__name": "muon", "optim__ns_coefficients": (1.0, float("nan"), 2.0)}, "must be finite; use [3.4445"),
    ({"optim__groups": (GroupConfig(match=()),)}, "optim.groups[0].match is empty; give names of parameters"),
    (
        {"optim__groups": (GroupConfig(), GroupConfig(momentum=0.9))},
        "optim.groups[1].momentum=0.9 is read only by sgd, rmsprop, lars, muon, but the group's optimizer is adamw",
    ),
    ({"optim__groups": (GroupConfig(lr=float("nan")),)}, "optim.groups[0].lr=nan must be a number above 0"),
    ({"optim__groups": (GroupConfig(weight_decay=-1.0),)}, "optim.groups[0].weight_decay=-1.0 must be a number from 0"),
    ({"optim__groups": (GroupConfig(name="sgd", momentum=1.0),)}, "optim.groups[0].momentum=1.0 must be at least 0"),
    ({"optim__groups": (GroupConfig(name="sgd", nesterov=True),)}, "optim.groups[0].nesterov=true needs a momentum"),
    ({"optim__groups": (GroupConfig(betas=(0.9, 1.0)),)}, "optim.groups[0].betas=[0.9, 1.0] must each be at least 0"),
    ({"optim__groups": (GroupConfig(until_epoch=-1.0),)}, "until_epoch=-1 must be above 0 and at most train.epochs=4"),
    ({"optim__groups": (GroupConfig(until_epoch=5.0),)}, "until_epoch=5 must be above 0 and at most train.epochs=4"),
    (
        {"schedule__name": "cosine", "schedule__warmup_epochs": 2.0, "schedule__cooldown_epochs": 2.0},
        "schedule.warmup_epochs=2 and schedule.cooldown_epochs=2 leave nothing of train.epochs=4",
    ),
    ({"schedule__name": "cosine_restarts", "schedule__cycle_epochs": 1e-7}, "schedule.cycle_epochs=1e-07 is too small"),
]


@pytest.mark.parametrize("values", GOOD)
def test_what_goes_together_passes(config: Config, values: dict) -> None:
    check_config(with_values(config, **values))


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_contradicts_is_refused_with_what_to_do(config: Config, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_config(with_values(config, **values))
