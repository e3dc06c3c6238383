"""What no run can do, found before any work starts.

`check_config` needs the configuration alone, `check_batch` also the number of processes. Each message says what came,
what was wanted and the nearest value that works.
"""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

from configs.check_average import check_average
from configs.check_loss import check_loss
from configs.check_optim import check_optim
from configs.check_speed import check_speed
from configs.check_strategy import check_strategy
from configs.imports import is_import_path
from configs.operations import read_operations
from configs.schema import AugmentConfig, Config, DataConfig, InputSpec, ScheduleConfig

DataKind = Literal["digits", "folder", "manifest", "packed", "torchvision", "own"]

# field -> (the field beside it, the choices of that one that read it); set with another choice, it is an error
_READ_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "optim.momentum": ("optim.name", ("sgd", "rmsprop", "lars", "muon")),
    "optim.nesterov": ("optim.name", ("sgd", "lars", "muon")),
    "optim.alpha": ("optim.name", ("rmsprop",)),
    "optim.betas": ("optim.name", ("adam", "adamw", "lamb")),
    "optim.eps": ("optim.name", ("rmsprop", "adam", "adamw", "lamb")),
    "optim.trust_coefficient": ("optim.name", ("lars",)),
    "optim.ns_steps": ("optim.name", ("muon",)),
    "optim.ns_coefficients": ("optim.name", ("muon",)),
    "optim.muon_scale": ("optim.name", ("muon",)),
    "optim.fix_filter_norm": ("optim.name", ("muon",)),
    "schedule.step_epochs": ("schedule.name", ("step",)),
    "schedule.milestones_epochs": ("schedule.name", ("multi_step",)),
    "schedule.gamma": ("schedule.name", ("step", "multi_step", "exponential", "plateau")),
    "schedule.final_lr_frac": (
        "schedule.name",
        ("linear", "polynomial", "cosine", "cosine_restarts", "one_cycle"),
    ),
    "schedule.cooldown_epochs": ("schedule.name", ("linear", "polynomial", "cosine", "cosine_restarts")),
    "schedule.power": ("schedule.name", ("polynomial",)),
    "schedule.cycle_epochs": ("schedule.name", ("cosine_restarts",)),
    "schedule.cycle_mult": ("schedule.name", ("cosine_restarts",)),
    "schedule.cycle_decay": ("schedule.name", ("cosine_restarts",)),
    "schedule.start_lr_frac": ("schedule.name", ("one_cycle",)),
    "schedule.rise_frac": ("schedule.name", ("one_cycle",)),
    "schedule.momentum_range": ("schedule.name", ("one_cycle",)),
    "schedule.patience_epochs": ("schedule.name", ("plateau",)),
    "schedule.threshold_frac": ("schedule.name", ("plateau",)),
    "schedule.min_lr_frac": ("schedule.name", ("plateau",)),
    "loss.target_threshold": ("loss.name", ("bce",)),
    "loss.focal_gamma": ("loss.name", ("focal",)),
    "loss.effective_beta": ("loss.balance", ("effective",)),
    "loss.adjustment_tau": ("loss.balance", ("logit_adjustment",)),
    "augment.pad_px": ("augment.crop", ("pad",)),
    "augment.rrc_scale": ("augment.crop", ("rrc",)),
    "augment.rrc_ratio": ("augment.crop", ("rrc",)),
    "input.crop_frac": ("input.fit", ("crop",)),
    "optim.layer_decay": ("strategy.name", ("differential", "gradual", "head_then_all", "all", "scratch", "auto")),
    "strategy.head_epochs": ("strategy.name", ("head_then_all", "gradual", "auto")),
    "strategy.all_lr_frac": ("strategy.name", ("head_then_all", "auto")),
    "strategy.stage_decay": ("strategy.name", ("differential", "gradual", "auto")),
    "strategy.frozen_bn": ("strategy.name", ("linear", "head_then_all", "gradual", "auto")),
    "strategy.classifier": ("strategy.name", ("features",)),
    "strategy.cv_folds": ("strategy.classifier", ("logistic", "svm", "knn")),
    "strategy.similarity": ("strategy.name", ("auto",)),
    "loader.workers": ("loader.backend", ("threads", "auto")),
    "loader.decode": ("loader.backend", ("threads",)),
    "loader.hw_decoder_load": ("loader.backend", ("dali",)),
}

# field of data -> the kinds of data sets that read it
_READ_BY_DATA: dict[str, tuple[DataKind, ...]] = {
    "data.root": ("folder", "manifest", "packed", "torchvision"),
    "data.args": ("own",),
    "data.image_root": ("manifest",),
    "data.path_column": ("manifest",),
    "data.label_column": ("manifest",),
}

# field -> fields of which one must be above 0, else it is not read; set all the same, it is an error
_READ_ABOVE_ZERO: dict[str, tuple[str, ...]] = {
    "schedule.warmup_start_lr_frac": ("schedule.warmup_epochs",),
    "augment.erase_scale": ("augment.erase_prob",),
    "augment.erase_ratio": ("augment.erase_prob",),
    "augment.mix_until_epoch": ("augment.mixup_alpha", "augment.cutmix_alpha"),
}

_AT_LEAST: dict[str, float] = {
    "train.epochs": 1,
    "train.global_batch_size": 1,
    "train.accumulation": 1,
    "loss.target_threshold": 0,
    "loader.num_workers": 0,
    "loader.num_threads": 1,
    "loader.prefetch_batches": 1,
    "loader.hw_decoder_load": 0,
    "loader.resident_max_gib": 0,
    "loader.eval_batch_size_per_rank": 1,
    "augment.pad_px": 0,
    "augment.vertical_flip_prob": 0,
    "augment.repeats": 1,
    "augment.mixup_alpha": 0,
    "augment.cutmix_alpha": 0,
    "augment.mix_prob": 0,
    "augment.mix_switch_prob": 0,
    "augment.mix_from_images": 0,
    "augment.erase_prob": 0,
    "augment.noise_std": 0,
    "augment.cutout_px": 0,
    "input.size_px": 1,
    "optim.weight_decay": 0,
    "optim.momentum": 0,
    "optim.ns_steps": 1,
    "optim.layer_decay": 1e-3,
    "loss.focal_gamma": 0,
    "loss.adjustment_tau": 0,
    "distill.weight": 0,
    "distill.features_weight": 0,
    "average.ema_every_steps": 1,
    "average.swa_start_epoch": 0,
    "average.bn_images": 2,  # of one there is no variance
    "train.bn_images": 0,
    "schedule.warmup_epochs": 0,
    "schedule.warmup_start_lr_frac": 0,
    "schedule.cooldown_epochs": 0,
    "schedule.cycle_epochs": 0.01,  # each step looks for its cycle, one after another
    "schedule.cycle_mult": 1,
    "schedule.cycle_decay": 1e-3,
    "schedule.step_epochs": 1,
    "schedule.final_lr_frac": 0,
    "schedule.start_lr_frac": 0,
    "schedule.patience_epochs": 0,
    "schedule.threshold_frac": 0,
    "schedule.min_lr_frac": 0,
    "train.early_stop_epochs": 1,
    "run.seed": 0,
    "data.split_seed": 0,
    "data.num_folds": 0,
    "data.fold": 0,
    "strategy.head_epochs": 1,
    "strategy.cv_folds": 2,
    "strategy.stage_decay": 1e-3,
    "run.log_every_steps": 1,
    "run.checkpoint_every_steps": 0,
    "run.checkpoint_every_minutes": 0,
    "run.stall_minutes": 0,
    "run.keep_checkpoints": 1,
    "run.world_size": 1,
    "run.num_threads": 1,
}

_ABOVE_ZERO = (
    "optim.lr",
    "optim.eps",
    "optim.trust_coefficient",
    "optim.clip_norm",
    "optim.clip_value",
    "schedule.gamma",
    "schedule.power",
    "distill.temperature",
    "average.swa_lr_frac",
    "strategy.all_lr_frac",
    "augment.mix_until_epoch",
    "run.max_minutes",
)
_FRACTIONS_BELOW_ONE = (
    "data.val_frac",
    "data.max_bad_frac",
    "loss.label_smoothing",
    "optim.momentum",
    "optim.alpha",
    "loss.effective_beta",
    "average.ema_decay",
    "schedule.rise_frac",
)
_AT_MOST: dict[str, float] = {
    "run.seed": 2**64 - 1,  # what torch and numpy, and scikit-learn, take as a seed
    "data.split_seed": 2**32 - 1,
    "run.num_threads": 1024,
    "loader.num_workers": 1024,
    "loader.num_threads": 1024,
    "loader.prefetch_batches": 1024,
    "loader.hw_decoder_load": 1,
    "augment.vertical_flip_prob": 1,
    "augment.mixup_alpha": 100,
    "augment.cutmix_alpha": 100,
    "augment.mix_prob": 1,
    "augment.mix_switch_prob": 1,
    "augment.erase_prob": 1,
    "augment.noise_std": 1,
    "optim.ns_steps": 99,
    "optim.layer_decay": 1,
    "strategy.stage_decay": 1,
    "loss.target_threshold": 1,
    "loss.focal_gamma": 100,
    "loss.adjustment_tau": 100,
    "distill.weight": 1,
    "distill.features_weight": 1e9,
    "schedule.final_lr_frac": 1,
    "schedule.warmup_start_lr_frac": 1,
    "schedule.cycle_mult": 100,
    "schedule.cycle_decay": 1,
    "schedule.start_lr_frac": 1,
    "schedule.threshold_frac": 1,
    "schedule.min_lr_frac": 1,
    "input.size_px": 16384,
}


_KIND_WORDS: dict[DataKind, str] = {
    "digits": "data.dataset=digits",
    "folder": "data.dataset=folder",
    "manifest": "data.dataset=manifest",
    "packed": "data.dataset=packed",
    "torchvision": "a data set of torchvision's",
    "own": "your own data set (data.dataset=package.module:Name)",
}


def data_kind(dataset: str) -> DataKind:
    """Which kind of data set a name stands for; whether torchvision has it is not looked at."""
    if is_import_path(dataset):
        return "own"
    return dataset if dataset in ("digits", "folder", "manifest", "packed") else "torchvision"  # type: ignore[return-value]


def check_config(config: Config) -> None:
    """Checks every field and every combination that the configuration alone decides.

    Raises:
        ValueError: A value out of range, a missing one, or options that contradict each other.
    """
    _check_empty(config)
    _check_ranges(config)
    _check_unread(config)
    _check_combinations(config)
    check_loss(config)
    check_optim(config)
    check_input(config.input)
    _check_schedule(config.schedule, epochs=config.train.epochs)
    _check_sizes(config.augment, epochs=config.train.epochs)
    _check_mix_until(config.augment.mix_until_epoch, epochs=config.train.epochs)
    check_average(config)
    check_strategy(config)
    _check_folds(config.data)
    if read_operations(config.augment.operations) and config.augment.albumentations is not None:
        raise ValueError(
            "augment.operations and augment.albumentations are both set, and all that is done to pixels has one place; "
            "put it all into the pipeline, or drop one of them."
        )
    if config.augment.crop == "pad" and config.input.size_px is not None:
        check_pad(config.augment.pad_px, size_px=config.input.size_px)
    if config.augment.crop == "rrc":
        _check_range("augment.rrc_scale", config.augment.rrc_scale, most=1, default=(0.08, 1.0))
        _check_range("augment.rrc_ratio", config.augment.rrc_ratio, most=None, default=(0.75, 1.3333))
    _check_own_pipeline(config.augment.albumentations)
    _check_range("augment.erase_scale", config.augment.erase_scale, most=1, default=(0.02, 0.33))
    _check_range("augment.erase_ratio", config.augment.erase_ratio, most=None, default=(0.3, 3.3))
    check_speed(config)


def _check_folds(data: DataConfig) -> None:
    if data.num_folds == 1 or data.fold >= max(data.num_folds, 1):
        raise ValueError(
            f"data.num_folds={data.num_folds} and data.fold={data.fold}: cross-validation needs two parts or more, of "
            f"which val is one, 0 to {max(data.num_folds, 2) - 1}; use data.num_folds=5 and data.fold=0, or drop both."
        )


def check_batch(config: Config, *, world_size: int) -> None:
    """Checks that every global batch divides into equal micro-batches.

    Raises:
        ValueError: One does not; the message offers the multiples on either side.
    """
    for _, size in config.train.batch_sizes:
        _check_batch_size(config, size, key="train.batch_sizes: a size", world_size=world_size)
    if not config.train.batch_sizes:
        _check_batch_size(config, config.train.global_batch_size, key="train.global_batch_size", world_size=world_size)


def _check_batch_size(config: Config, batch: int, *, key: str, world_size: int) -> None:
    accumulation, repeats = config.train.accumulation or 1, config.augment.repeats
    augment = config.augment
    mixes = augment.mix_prob > 0 and (augment.mixup_alpha > 0 or augment.cutmix_alpha > 0)
    mixes = mixes and augment.mix_from_images == 0  # else the loader checks it, which knows how many images there are
    parts = math.lcm(world_size * accumulation, repeats, 2 if mixes else 1)
    if batch % parts == 0:
        return
    below, above = batch // parts * parts, (batch // parts + 1) * parts
    offers = f"{below} or {above}" if below else f"{above}"
    if batch % (world_size * accumulation):
        product = f"{world_size}*{accumulation} = {world_size * accumulation}"
        reason = f"is not divisible by world_size*accumulation = {product}"
    elif batch % repeats:
        reason = f"is not divisible by augment.repeats={repeats}"
    else:
        reason = "is odd, but mixup and CutMix take images in pairs"
    raise ValueError(f"{key}={batch} {reason}; use {offers}.")


def check_input(spec: InputSpec) -> None:
    """Checks an input specification, complete or not.

    Raises:
        ValueError: A crop larger than the image, a number of channels other than 1 or 3, or a mean or std that does
            not fit the channels.
    """
    if not 0 < spec.crop_frac <= 1:
        raise ValueError(
            f"input.crop_frac={spec.crop_frac} would crop {spec.crop_frac:g} times the short side of the image; it "
            f"must be above 0 and at most 1; use {'1.0' if spec.crop_frac > 1 else '0.875'}."
        )
    if spec.channels not in (None, 1, 3):
        raise ValueError(f"input.channels={spec.channels}, but networks here take 1 (grey) or 3 (RGB); use 1 or 3.")
    for name in ("mean", "std"):
        values = getattr(spec, name)
        if values is None:
            continue
        if (spec.channels or len(values)) != len(values) or len(values) not in (1, 3):
            wanted = f"{spec.channels} (input.channels)" if spec.channels else "1 or 3"
            raise ValueError(f"input.{name} has {len(values)} values {list(values)}; give one per channel: {wanted}.")
        if any(not 0 <= value <= 1 for value in values) or (name == "std" and 0 in values):
            raise ValueError(
                f"input.{name}={list(values)} is not on the scale 0 to 1; divide values for 0..255 by 255, "
                "or leave the field out and it is measured."
            )
    if spec.mean is not None and spec.std is not None and len(spec.mean) != len(spec.std):
        raise ValueError(f"input.mean has {len(spec.mean)} values and input.std {len(spec.std)}; give as many of each.")


def check_pad(pad_px: int, *, size_px: int) -> None:
    """Checks that a crop shifted by `pad_px` can be filled by reflection.

    Raises:
        ValueError: The shift is not smaller than the image.
    """
    if pad_px >= size_px:
        raise ValueError(
            f"augment.pad_px={pad_px} shifts the crop beyond an image of input.size_px={size_px}: reflection reaches "
            f"at most {size_px - 1}; use {min(4, size_px - 1)}."
        )


def value_at(config: Any, key: str) -> Any:
    """The value of a dotted key such as `optim.lr`."""
    for part in key.split("."):
        config = getattr(config, part)
    return config


def explain_empty(key: str, *, default: Any) -> str:
    """What is said of an option that a recipe names and gives nothing."""
    if isinstance(default, str | bool | int | float | tuple | dict):
        return f"{key} is empty; write {_as_typed(default)} or drop it."
    return f"{key} is empty, and must be given."


def _check_empty(config: Any, *, prefix: str = "") -> None:
    """A recipe's `key:` with nothing after it is None, which jsonargparse lets pass for every type."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            _check_empty(value, prefix=f"{prefix}{field.name}.")
        elif value is None and type(None) not in get_args(field.type):
            default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
            raise ValueError(explain_empty(prefix + field.name, default=default))


def _check_ranges(config: Config) -> None:
    for key, least in _AT_LEAST.items():
        value = value_at(config, key)
        if value is not None and not value >= least:
            raise ValueError(f"{key}={value} is too small; it must be at least {least}; use {least}.")
    for key, most in _AT_MOST.items():
        value = value_at(config, key)
        if value is not None and not value <= most:
            raise ValueError(f"{key}={value} is too large; use at most {most}.")
    for key in _ABOVE_ZERO:
        value = value_at(config, key)
        if value is not None and not 0 < value < float("inf"):
            raise ValueError(f"{key}={value} must be a number above 0; for example {key}=0.001.")
    for key in _FRACTIONS_BELOW_ONE:
        if not 0 <= value_at(config, key) < 1:
            raise ValueError(f"{key}={value_at(config, key)} must be at least 0 and below 1; for example 0.1.")
    if config.optim.weight_decay == float("inf"):
        raise ValueError("optim.weight_decay=inf must be a finite number; for example 0.0005.")
    if any(not 0 <= beta < 1 for beta in config.optim.betas):
        raise ValueError(
            f"optim.betas={list(config.optim.betas)} must each be at least 0 and below 1; use [0.9, 0.999]."
        )


def _check_unread(config: Config) -> None:
    for key, (choice_key, choices) in _READ_BY.items():
        default, chosen = _default(config, key), value_at(config, choice_key)
        if choice_key == "optim.name" and any(group.name in choices for group in config.optim.groups):
            continue
        if chosen not in choices and value_at(config, key) != default:
            raise ValueError(
                f"{key}={value_at(config, key)} is read only with {choice_key}={' or '.join(choices)}, but "
                f"{choice_key}={chosen}; drop it, or set it back to {_as_typed(default)} if it is the recipe's, or use "
                f"{choice_key}={choices[0]}."
            )
    kind = data_kind(config.data.dataset)
    for key, kinds in _READ_BY_DATA.items():
        if kind not in kinds and value_at(config, key) != _default(config, key):
            raise ValueError(
                f"{key}={value_at(config, key)} is read only with {' or '.join(_KIND_WORDS[one] for one in kinds)}, "
                f"but data.dataset={config.data.dataset}; drop it, or use another data.dataset."
            )
    for key, switches in _READ_ABOVE_ZERO.items():
        if value_at(config, key) != _default(config, key) and not any(value_at(config, one) for one in switches):
            raise ValueError(
                f"{key}={value_at(config, key)} is read only with {' or '.join(switches)} above 0; drop it, or set it "
                f"back to {_as_typed(_default(config, key))}."
            )


def _as_typed(value: Any) -> str:
    """A value as one writes it on the command line or in a recipe."""
    return json.dumps(value) if not isinstance(value, str) else value


def _default(config: Config, key: str) -> Any:
    section, name = key.split(".")
    field = next(field for field in dataclasses.fields(getattr(config, section)) if field.name == name)
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _check_combinations(config: Config) -> None:
    if config.data.dataset == "folder" and config.data.root is None:
        raise ValueError("data.dataset=folder needs data.root, the folder that holds train/; add --data.root DIR.")
    if config.data.dataset == "manifest" and config.data.root is None:
        raise ValueError(
            "data.dataset=manifest needs data.root, the folder that holds train.csv (or .tsv, .jsonl) or such a file "
            "itself; add --data.root DIR."
        )
    if config.data.dataset == "packed" and config.data.root is None:
        raise ValueError("data.dataset=packed needs data.root, the folder that tools.pack made; add --data.root DIR.")
    if config.loader.decode == "scaled" and config.data.on_bad_sample == "replace":
        raise ValueError(
            "loader.decode=scaled with data.on_bad_sample=replace: what takes a bad image's place is decoded at its "
            "stored size, so pixels would depend on when the damage is met; use --data.on_bad_sample raise, or "
            "--loader.decode exact."
        )
    if config.data.sampling == "weighted" and config.data.dataset not in ("manifest", "packed"):
        raise ValueError(
            "data.sampling=weighted takes weights from a manifest, but data.dataset="
            f"{config.data.dataset}; use --data.sampling balanced, or --data.class_weights.NAME FACTOR."
        )
    for name, factor in config.data.class_weights.items():
        if not isinstance(name, str):  # class_weights: {3: 2} in a recipe, for YAML takes 3 as a number
            raise ValueError(
                f"data.class_weights has {name!r}, read as {type(name).__name__} and not as the name of a class; put "
                'the name in quotes, as in {"cat": 2}.'
            )
        if not 0 < factor < float("inf"):
            raise ValueError(f"data.class_weights.{name}={factor} must be a number above 0; for example 2.")
    if config.run.out == "":
        raise ValueError("run.out is empty; give a folder, or leave the option out.")


def _check_schedule(schedule: ScheduleConfig, *, epochs: int) -> None:
    milestones = schedule.milestones_epochs
    rises = all(one < other for one, other in itertools.pairwise((0, *milestones, epochs)))
    if schedule.name == "multi_step" and not (milestones and rises):
        offer = f"[{epochs / 2:g}, {epochs * 3 / 4:g}]"
        raise ValueError(
            f"schedule.milestones_epochs={list(milestones)} must be one or more epochs that rise from above 0 to below "
            f'train.epochs={epochs}; for example --schedule.milestones_epochs "{offer}".'
        )
    if schedule.name == "one_cycle" and schedule.warmup_epochs > 0:
        raise ValueError(
            f"schedule.warmup_epochs={schedule.warmup_epochs:g} does not go with schedule one_cycle, which rises by "
            "itself (schedule.rise_frac); set --schedule.warmup_epochs 0."
        )
    if schedule.name == "one_cycle" and schedule.rise_frac == 0:
        raise ValueError("schedule.rise_frac=0 leaves one_cycle nothing to rise in; use 0.3.")
    if schedule.momentum_range is not None:
        high, low = schedule.momentum_range
        if not 0 <= low <= high < 1:
            raise ValueError(
                f"schedule.momentum_range=[{high:g}, {low:g}] must fall within 0 to below 1; use [0.95, 0.85]."
            )


def _check_sizes(augment: AugmentConfig, *, epochs: int) -> None:
    starts = [start for start, _ in augment.sizes_px]
    if starts != sorted(set(starts)) or not all(start >= 0 for start in starts):
        raise ValueError(
            f"augment.sizes_px={[list(pair) for pair in augment.sizes_px]} must begin at epochs that rise from 0; for "
            "example [[0, 128], [0.5, 160]]."
        )
    if starts and starts[-1] >= epochs:
        raise ValueError(
            f"augment.sizes_px begins a size at epoch {starts[-1]:g}, but train.epochs={epochs} ends before; drop it."
        )
    for _, size_px in augment.sizes_px:
        if not 1 <= size_px <= _AT_MOST["input.size_px"]:
            raise ValueError(f"augment.sizes_px has a size of {size_px} pixels; use 1 to {_AT_MOST['input.size_px']}.")
        if augment.crop == "pad":
            check_pad(augment.pad_px, size_px=size_px)


def _check_mix_until(until_epoch: float | None, *, epochs: int) -> None:
    if until_epoch is not None and until_epoch >= epochs:
        raise ValueError(
            f"augment.mix_until_epoch={until_epoch:g} is not before the end, train.epochs={epochs}; drop it to mix to "
            f"the end, or use {epochs * 0.9:g}."
        )


def _check_own_pipeline(path: str | None) -> None:
    if path is None:
        return
    if Path(path).suffix not in (".yaml", ".yml", ".json"):
        raise ValueError(
            f"augment.albumentations={path} must be a file .yaml, .yml or .json that albumentations has written; save "
            'the pipeline by albumentations.save(pipeline, "pipeline.yaml", data_format="yaml").'
        )
    if not Path(path).is_file():
        raise ValueError(
            f"augment.albumentations={path} is not there (looked for in {Path.cwd()}); give the path of the file that "
            "albumentations.save has written."
        )


def _check_range(key: str, given: tuple[float, float], *, most: float | None, default: tuple[float, float]) -> None:
    low, high = given
    if 0 < low <= high <= (most or high) and high < float("inf"):
        return
    limits = (
        "must rise within 0 to 1, for a box cannot be larger than the image" if most else "must be above 0 and rise"
    )
    low_offer = low if 0 < low <= (most or float("inf")) and low < float("inf") else default[0]
    high_offer = high if low_offer <= high <= (most or high) and high < float("inf") else max(default[1], low_offer)
    raise ValueError(f"{key}=[{low:g}, {high:g}] {limits}; use [{low_offer:g}, {high_offer:g}].")
