"""Configuration and features that are there -> the loader of one split, in the batches in which its images would come.

Config, Data, Features -> order, policy -> CachedLoader
"""

import numpy as np
import torch

from configs.schema import Config
from pipelines.batch import Features
from pipelines.build_data import Data, split_of
from pipelines.build_executor import Place
from pipelines.build_loader import evaluation_order, training_order
from pipelines.cached import CachedLoader
from pipelines.order import Order
from pipelines.policy import Policy


def build_cached_loader(config: Config, data: Data, split: str, features: Features, *, place: Place) -> CachedLoader:
    """Batches of features: of train shuffled, of val and test each sample once; no augmentation, no mixing.

    The same samples in the same steps, on the same ranks, as `build_training_loader` and `build_evaluation_loader` of
    this configuration give them. The features lie on the device, where they are no more than loader.resident_max_gib.

    Args:
        config: The run's.
        data: The splits.
        split: train, val or test.
        features: Of all samples of the split that can be read, on the CPU.
        place: Where batches go.

    Raises:
        ValueError: There is no such split, or the global batch does not fit the data or the world size.
    """
    source, ids_M = split_of(data, split), features.ids_N.numpy()
    assert np.array_equal(features.labels_N.numpy(), source.labels_N[ids_M]), f"these are not the features of {split}"
    is_train = split == "train"
    order: Order = (
        training_order(config, source, place=place) if is_train else evaluation_order(config, source, place=place)
    )
    missing = np.setdiff1d(np.arange(len(source.labels_N)), ids_M).tolist()
    policy = Policy(
        source,
        split=split,
        action=config.data.on_bad_sample if is_train else config.data.on_bad_eval_sample,
        seed=config.run.seed,
        also_bad=dict.fromkeys(missing, "it could not be read when features were computed"),
    )
    gib = features.features_ND.numel() * place.dtype.itemsize / 2**30
    is_held = gib <= config.loader.resident_max_gib
    features_MD = features.features_ND.to(place.device if is_held else torch.device("cpu"), place.dtype)
    return CachedLoader(
        features._replace(features_ND=features_MD),
        source.labels_N,
        order=order,
        policy=policy,
        seed=config.run.seed,
        fingerprint=source.fingerprint(),
        max_bad_frac=config.data.max_bad_frac,
        device=place.device,
        dtype=place.dtype,
    )
