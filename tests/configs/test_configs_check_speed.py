"""Speed against the rest of a configuration."""

import pytest
from test_configs_check import with_values

from configs.check import check_config
from configs.schema import Config, GroupConfig

SIZES = tuple((float(epoch), 32 + 8 * epoch) for epoch in range(9))
GOOD = [
    {"speed__fused": "on"},
    {"speed__fused": "auto", "optim__name": "rmsprop"},
    {"speed__compile": "reduce-overhead"},
    {"speed__compile": "default", "train__accumulation": 2},
    {"speed__compile": "default", "augment__sizes_px": SIZES[:8], "train__epochs": 10},
    {"augment__sizes_px": SIZES, "train__epochs": 10},
    {"speed__shard": True, "speed__compile": "default", "speed__gradient_checkpointing": True},
    {"speed__shard": False, "optim__name": "lamb"},
]
BAD = [
    ({"speed__fused": "on", "optim__name": "rmsprop"}, r"torch has no fused rmsprop; it has sgd, adam, adamw"),
    ({"speed__fused": "on", "optim__groups": (GroupConfig(name="muon"),)}, r"torch has no fused muon"),
    (
        {"speed__compile": "default", "augment__sizes_px": SIZES, "train__epochs": 10},
        r"for 8 at most, but augment\.sizes_px has 9; use fewer, or --speed\.compile none",
    ),
    (
        {"speed__compile": "max-autotune", "train__accumulation": 2},
        r"speed\.compile=max-autotune records CUDA graphs.*train\.accumulation=2 adds up; use --speed\.compile default",
    ),
    ({"speed__shard": True, "optim__name": "lars"}, r"a part of every parameter, but lars computes with whole ones"),
    ({"speed__shard": True, "optim__groups": (GroupConfig(name="muon"),)}, r"but muon computes with whole ones"),
    ({"speed__shard": True, "train__precision": "fp16"}, r"does not go with train\.precision=fp16.*use bf16"),
    ({"speed__shard": True, "average__ema_decay": 0.99}, r"does not go with averages of weights or train.bn_images"),
    ({"speed__shard": True, "average__swa_start_epoch": 1}, r"does not go with averages of weights or train.bn_images"),
]


@pytest.mark.parametrize("values", GOOD)
def test_what_goes_together_passes(config: Config, values: dict) -> None:
    check_config(with_values(config, **values))


@pytest.mark.parametrize(("values", "message"), BAD)
def test_what_contradicts_is_refused_with_what_to_do(config: Config, values: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(with_values(config, **values))
