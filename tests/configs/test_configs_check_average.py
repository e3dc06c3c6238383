"""What is refused of averages, BatchNorm measured anew and batch sizes that change; and what is accepted."""

import re
from typing import Any

import pytest

from configs.check import check_batch, check_config
from configs.load import replace_section
from configs.schema import Config


def with_values(config: Config, **values: Any) -> Config:
    for key, value in values.items():
        section, _, name = key.partition("__")
        config = replace_section(config, section, **{name: value})
    return config


REFUSED = {
    "average.ema_decay=0.99 and average.swa_start_epoch=2 are both set": {
        "average__ema_decay": 0.99,
        "average__swa_start_epoch": 2,
    },
    "average.ema_every_steps=5 is read only with average.ema_decay above 0": {"average__ema_every_steps": 5},
    "average.ema_warmup=false is read only with average.ema_decay above 0": {"average__ema_warmup": False},
    "average.swa_lr_frac=0.1 is read only with average.swa_start_epoch": {"average__swa_lr_frac": 0.1},
    "average.bn_images=5 is read only with average.swa_start_epoch": {"average__bn_images": 5},
    "train.batch_lr=sqrt is read only with train.batch_sizes": {"train__batch_lr": "sqrt"},
    "average.swa_start_epoch=4 leaves no epoch to average, for the last one of train.epochs=4 is 3": {
        "average__swa_start_epoch": 4
    },
    "train.early_stop_epochs=2 might end the run before average.swa_start_epoch=3": {
        "average__swa_start_epoch": 3,
        "train__early_stop_epochs": 2,
    },
    "average.swa_lr_frac=0.1 is a fraction of optim.lr, which schedule.name=plateau lowers": {
        "average__swa_start_epoch": 3,
        "average__swa_lr_frac": 0.1,
        "schedule__name": "plateau",
    },
    "train.bn_images=1: one image has no variance": {"train__bn_images": 1},
    "train.bn_images=50 measures BatchNorm's statistics in the last epoch, and with train.early_stop_epochs=3": {
        "train__bn_images": 50,
        "train__early_stop_epochs": 3,
    },
    "speed.shard=true does not go with averages": {"speed__shard": True, "average__ema_decay": 0.5},
    "train.batch_sizes=[[1, 64]] must begin at epoch 0": {"train__batch_sizes": ((1, 64),)},
    "train.batch_sizes=[[0, 64], [2, 32], [2, 16]] must begin at epoch 0, and go on at epochs that rise; for example "
    "[[0, 60], [2, 120]].": {"train__batch_sizes": ((0, 64), (2, 32), (2, 16))},
    "train.batch_sizes begins a size at epoch 4, but train.epochs=4": {"train__batch_sizes": ((0, 64), (4, 32))},
    "train.batch_sizes has a size of 0 images": {"train__batch_sizes": ((0, 64), (2, 0))},
}


@pytest.mark.parametrize("message", REFUSED)
def test_it_is_refused(config: Config, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_config(with_values(config, **REFUSED[message]))


@pytest.mark.parametrize(
    "values",
    [
        {"average__ema_decay": 0.99, "average__ema_every_steps": 5, "average__ema_warmup": False},
        {"average__swa_start_epoch": 3, "average__swa_lr_frac": 0.1, "average__bn_images": 2},
        {"average__ema_decay": 0.99, "train__bn_images": 50},
        {"train__batch_sizes": ((0, 64), (3, 32)), "train__batch_lr": "linear"},
        {"speed__shard": True},
    ],
)
def test_it_is_accepted(config: Config, values: dict[str, Any]) -> None:
    check_config(with_values(config, **values))


def test_every_batch_size_must_divide_and_the_base_size_need_not(config: Config) -> None:
    sizes = with_values(config, train__batch_sizes=((0, 64), (2, 90)), train__global_batch_size=7)
    check_batch(sizes, world_size=2)
    with pytest.raises(
        ValueError,
        match=re.escape("train.batch_sizes: a size=90 is not divisible by world_size*accumulation = 4*1 = 4"),
    ):
        check_batch(sizes, world_size=4)


def test_sizes_are_read_from_recipe_and_command_line(parse: Any) -> None:
    config = parse("--train.batch_sizes", "[[0, 60], [2, 120]]")
    assert config.train.batch_sizes == ((0, 60), (2, 120))
