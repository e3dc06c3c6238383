"""What no run can do with averages of weights, BatchNorm measured anew and batch sizes that change."""

import itertools

from configs.schema import AverageConfig, Config, TrainConfig


def check_average(config: Config) -> None:
    """Checks sections `average` and, of `train`, batch_sizes, batch_lr and bn_images.

    Raises:
        ValueError: Options that contradict each other, or that nothing reads.
    """
    average, train = config.average, config.train
    if average.ema_decay > 0 and average.swa_start_epoch is not None:
        raise ValueError(
            f"average.ema_decay={average.ema_decay:g} and average.swa_start_epoch={average.swa_start_epoch} are both "
            "set, and a run has one average; drop one of them."
        )
    _check_unread(average, train)
    if average.swa_start_epoch is not None and average.swa_start_epoch >= train.epochs:
        raise ValueError(
            f"average.swa_start_epoch={average.swa_start_epoch} leaves no epoch to average, for the last one of "
            f"train.epochs={train.epochs} is {train.epochs - 1} (they count from 0); use "
            f"{train.epochs * 3 // 4}."
        )
    if average.swa_start_epoch is not None and train.early_stop_epochs is not None:
        raise ValueError(
            f"train.early_stop_epochs={train.early_stop_epochs} might end the run before average.swa_start_epoch="
            f"{average.swa_start_epoch}, and it would have no average; drop one of them."
        )
    if average.swa_lr_frac is not None and config.schedule.name == "plateau":
        raise ValueError(
            f"average.swa_lr_frac={average.swa_lr_frac:g} is a fraction of optim.lr, which schedule.name=plateau "
            "lowers by what it sees; drop it, or use another schedule."
        )
    if train.bn_images == 1:
        raise ValueError("train.bn_images=1: one image has no variance; use 2 or more, for example 10000.")
    if train.bn_images and train.early_stop_epochs is not None:
        raise ValueError(
            f"train.bn_images={train.bn_images} measures BatchNorm's statistics in the last epoch, and with "
            f"train.early_stop_epochs={train.early_stop_epochs} it is not known which that is; drop one of them."
        )
    if config.speed.shard and (train.bn_images or average.ema_decay or average.swa_start_epoch is not None):
        raise ValueError(
            "speed.shard=true does not go with averages of weights or train.bn_images, which need whole networks on "
            "every process; drop one of them."
        )
    _check_batch_sizes(train)


def _check_unread(average: AverageConfig, train: TrainConfig) -> None:
    """Options that were set, and that nothing reads as the others are."""
    has_ema, has_swa = average.ema_decay > 0, average.swa_start_epoch is not None
    default, default_lr = AverageConfig(), "none"
    read = {
        "average.ema_warmup": (has_ema, average.ema_warmup, default.ema_warmup, "average.ema_decay above 0"),
        "average.ema_every_steps": (
            has_ema,
            average.ema_every_steps,
            default.ema_every_steps,
            "average.ema_decay above 0",
        ),
        "average.swa_lr_frac": (has_swa, average.swa_lr_frac, default.swa_lr_frac, "average.swa_start_epoch"),
        "average.bn_images": (has_swa, average.bn_images, default.bn_images, "average.swa_start_epoch"),
        "train.batch_lr": (bool(train.batch_sizes), train.batch_lr, default_lr, "train.batch_sizes"),
    }
    for key, (is_read, value, unset, reader) in read.items():
        if not is_read and value != unset:
            raise ValueError(f"{key}={str(value).lower()} is read only with {reader}; drop it, or set that too.")


def _check_batch_sizes(train: TrainConfig) -> None:
    starts = [start for start, _ in train.batch_sizes]
    shown = [list(pair) for pair in train.batch_sizes]
    rises = all(one < other for one, other in itertools.pairwise(starts))
    if starts and not (starts[0] == 0 and rises):
        raise ValueError(
            f"train.batch_sizes={shown} must begin at epoch 0, and go on at epochs that rise; for example "
            f"[[0, {train.global_batch_size}], [{max(train.epochs // 2, 1)}, {2 * train.global_batch_size}]]."
        )
    if starts and starts[-1] >= train.epochs:
        raise ValueError(
            f"train.batch_sizes begins a size at epoch {starts[-1]}, but train.epochs={train.epochs} ends before; drop "
            "it."
        )
    for _, size in train.batch_sizes:
        if size < 1:
            raise ValueError(f"train.batch_sizes has a size of {size} images; use 1 or more.")
