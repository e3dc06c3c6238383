"""A run that others start or learn from: what its network is, and the weights that it is judged by.

run folder -> scored checkpoint -> its card: model, input, classes; its weights: file and hash -> Origin
"""

from pathlib import Path
from typing import NamedTuple

from configs.schema import InputSpec, ModelConfig
from engine.checkpoint import read_card, read_manifest, scored_checkpoint, weights_file
from engine.record import RunFolder


class Origin(NamedTuple):
    """What a run has made.

    model: its network. spec: what that takes, complete. class_names: what it tells apart, in the order of labels.
    checkpoint: the one that it is judged by, for `engine.checkpoint.load_weights`. weights: the .safetensors file in it
    that counts, the average where there is one. digest: SHA-256 of that file. is_knn: whether its last layer
    are nearest neighbours (finetune.py --strategy.classifier knn), which only evaluate.py builds.
    """

    model: ModelConfig
    spec: InputSpec
    class_names: tuple[str, ...]
    checkpoint: Path
    weights: Path
    digest: str
    is_knn: bool


def load_origin(folder: str | Path) -> Origin:
    """What the run in this folder has made so far.

    Args:
        folder: Of train.py or finetune.py.

    Raises:
        FileNotFoundError: There is no such folder, it holds no whole checkpoint, or its best one is gone.
    """
    run = RunFolder(folder)
    if not run.path.is_dir():
        raise FileNotFoundError(
            f"there is no such run folder (looked for in {Path.cwd()}); networks with pretrained weights are called "
            "torchvision/NAME or timm/NAME."
        )
    checkpoint = scored_checkpoint(run.checkpoints)
    card, weights = read_card(checkpoint), weights_file(checkpoint)
    given = card["input"]
    return Origin(
        model=ModelConfig(**card["model"]),
        spec=InputSpec(**{**given, "mean": tuple(given["mean"]), "std": tuple(given["std"])}),
        class_names=tuple(card["class_names"]),
        checkpoint=checkpoint,
        weights=weights,
        digest=read_manifest(checkpoint)["sha256"][weights.name],
        is_knn="knn" in card,
    )
