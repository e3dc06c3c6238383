"""What loss and distill cannot be together, found before any work starts; `configs.check` calls it."""

from configs.schema import Config, DistillConfig, LossConfig


def check_loss(config: Config) -> None:
    """Checks the combinations of `config.loss` and `config.distill`, each alone and with the rest.

    Raises:
        ValueError: Options that contradict each other, or that nobody reads.
    """
    _check_balance(config)
    _check_class_weights(config.loss)
    if config.distill.teachers:
        _check_teachers(config.distill, out=config.run.out)
    else:
        _check_no_teachers(config.distill)


def _check_balance(config: Config) -> None:
    balance = config.loss.balance
    if balance == "logit_adjustment" and config.loss.name == "bce":
        raise ValueError(
            "loss.balance=logit_adjustment shifts the logits of a softmax, which loss.name=bce does not have; use "
            "--loss.balance effective, or --loss.name cross_entropy."
        )
    if balance != "none" and config.data.sampling == "balanced":
        raise ValueError(
            f"loss.balance={balance} and data.sampling=balanced both make up for classes of different size, together "
            "twice over; drop one of them."
        )


def _check_class_weights(loss: LossConfig) -> None:
    for name, factor in loss.class_weights.items():
        if not isinstance(name, str):  # class_weights: {3: 2} in a recipe, for YAML takes 3 as a number
            raise ValueError(
                f"loss.class_weights has {name!r}, read as {type(name).__name__} and not as the name of a class; put "
                'the name in quotes, as in {"cat": 2}.'
            )
        if not 0 < factor < float("inf"):
            raise ValueError(f"loss.class_weights.{name}={factor} must be a number above 0; for example 2.")


def _check_no_teachers(distill: DistillConfig) -> None:
    default = DistillConfig()
    for name in ("temperature", "weight", "features", "features_weight"):
        if getattr(distill, name) != getattr(default, name):
            raise ValueError(
                f"distill.{name}={getattr(distill, name)} is read only with distill.teachers; name one, for example "
                "--distill.teachers '[runs/NAME]', or drop it."
            )


def _check_teachers(distill: DistillConfig, *, out: str | None) -> None:
    teachers = distill.teachers
    if "" in teachers:
        raise ValueError("distill.teachers has an empty name; give run folders, torchvision/NAME or timm/NAME.")
    twice = [name for name in teachers if teachers.count(name) > 1]
    if twice:
        raise ValueError(f"distill.teachers names {twice[0]} twice; name each once.")
    if out is not None and out.rstrip("/") in [name.rstrip("/") for name in teachers]:
        raise ValueError(f"distill.teachers names run.out={out}, the run itself; use another --run.out.")
    for student, teacher in distill.features.items():
        if not (isinstance(student, str) and isinstance(teacher, str)):
            raise ValueError(
                f"distill.features has {student!r}: {teacher!r}, which are not both names of modules; put them in "
                'quotes, as in {"layers.2": "layers.5"}.'
            )
    if distill.features and len(teachers) > 1:
        raise ValueError(
            f"distill.features takes the layers of one teacher, but distill.teachers has {len(teachers)}; drop the "
            "features, or all teachers but one."
        )
    if not distill.features and distill.features_weight != DistillConfig().features_weight:
        raise ValueError(
            f"distill.features_weight={distill.features_weight:g} is read only with distill.features; drop it, or say "
            "which layers are to match."
        )
    if distill.weight == 0 and not distill.features:
        raise ValueError(
            "distill.weight=0 without distill.features leaves the teachers no part in the loss; drop distill.teachers, "
            "or use 0.9."
        )
