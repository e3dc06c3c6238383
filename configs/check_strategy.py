"""What no fine-tuning can do, found before any work starts; and what is fine-tuning's alone, for train.py."""

from configs.schema import AverageConfig, Config, DistillConfig, LossConfig, StrategyConfig, WeightsConfig

_IN_PARTS = (
    "linear",
    "features",
    "head_then_all",
    "gradual",
)  # parts of the network are not trained, for a time at least
_ZOOS = ("torchvision/", "timm/")


def refuse_finetuning(config: Config) -> None:
    """For train.py, which starts from random weights.

    Raises:
        ValueError: The configuration asks for pretrained weights, or for what is made for these.
    """
    asked = [
        f"section {name}"
        for name, default in (("weights", WeightsConfig()), ("strategy", StrategyConfig()))
        if getattr(config, name) != default
    ]
    name = config.model.name
    asked += [f"model.name={name}"] if name.startswith(_ZOOS) and "." in name else []
    if asked:
        raise ValueError(
            f"{' and '.join(asked)} of the configuration {'are' if len(asked) > 1 else 'is'} for pretrained weights, "
            "but train.py starts from random ones; use finetune.py (there, --strategy.name scratch compares), or drop "
            "what asks for them."
        )


def check_strategy(config: Config) -> None:
    """Checks sections `weights` and `strategy` against the rest of the configuration.

    Raises:
        ValueError: Options that contradict each other, or that nothing reads.
    """
    strategy, weights = config.strategy, config.weights
    if weights.run is not None and weights.file is not None:
        raise ValueError(
            f"weights.run={weights.run} and weights.file={weights.file} are both set, and a network starts from one; "
            "drop one of them."
        )
    if strategy.name == "scratch" and (weights.head == "keep" or weights.partial):
        raise ValueError(
            "strategy.name=scratch draws all weights, so weights.head=keep and weights.partial=true are not read; drop "
            "them, or use another strategy."
        )
    if strategy.name == "head_then_all" and strategy.head_epochs >= config.train.epochs:
        raise ValueError(
            f"strategy.head_epochs={strategy.head_epochs} leaves none of train.epochs={config.train.epochs} in which "
            "all is trained; use fewer, or --strategy.name linear."
        )
    if strategy.stage_decay is not None and config.optim.layer_decay != 1:
        raise ValueError(
            f"strategy.stage_decay={strategy.stage_decay:g} and optim.layer_decay={config.optim.layer_decay:g} both "
            "say how learning rates fall from the head to the first layers; drop one of them."
        )
    if strategy.name in _IN_PARTS and config.optim.groups:
        raise ValueError(
            f"optim.groups is not read with strategy.name={strategy.name}, which sets its own groups; drop it, or use "
            "--strategy.name all or differential."
        )
    if strategy.name in ("head_then_all", "gradual") and config.train.batch_sizes:
        raise ValueError(
            f"train.batch_sizes and strategy.name={strategy.name} both cut training into phases; drop one of them."
        )
    if strategy.name == "features":
        _check_features(config)


def _check_features(config: Config) -> None:
    """What needs images in training, or a network that is trained as a whole."""
    unread = {
        "distill": config.distill != DistillConfig(),
        "average": config.average != AverageConfig(),
        "train.bn_images": config.train.bn_images > 0,
        "train.batch_sizes": bool(config.train.batch_sizes),
        "speed.shard": config.speed.shard,
    }
    if config.strategy.classifier != "linear":
        unread |= {
            "loss": config.loss != LossConfig(),
            "train.early_stop_epochs": config.train.early_stop_epochs is not None,
            "data.sampling": config.data.sampling != "shuffled",
            "data.class_weights": bool(config.data.class_weights),
            "weights.head=keep": config.weights.head == "keep",
        }
    asked = [name for name, is_asked in unread.items() if is_asked]
    if asked:
        raise ValueError(
            f"{' and '.join(asked)}: not read with strategy.name=features and "
            f"strategy.classifier={config.strategy.classifier}, which train one layer on features that are there; drop "
            "it, or use --strategy.name linear."
        )
