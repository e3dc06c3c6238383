"""What a network makes of images before its last layer: computed once, kept on disk, read again.

loader (each sample once) -> network in eval mode -> what goes into its last layer -> gathered over the ranks, by id
    -> Features -> CACHE/features/<what they follow from>.safetensors -> every later run with the same weights and data

Legend of shape letters: N samples (of a batch, or of the split), D width, K classes.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from configs.load import config_to_dict
from configs.schema import Config, InputSpec
from engine.bad_samples import BadSampleLog, check_num_bad
from engine.freezing import in_evaluation
from engine.progress import Progress
from engine.runtime import Runtime
from engine.teachers import hash_weights
from pipelines.batch import Batch, Features, Loader

__all__ = ["Features", "HeadError", "cached_features", "compute_features", "features_key"]

_VERSION = 1  # of what is computed here: a change of it leaves kept features unread
_PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow", "simplejpeg")  # that pixels and features follow from
_TOLERANCE = 0.01  # of the largest logit: what a matrix product may differ by in bf16, computed in another way
_WAY_OUT = "Its head cannot be trained on features alone; use --strategy.name linear, which runs the whole network."


class HeadError(ValueError):
    """The last layer of the network cannot be trained on its features alone."""


def cached_features(
    module: nn.Module,
    loader: Loader,
    *,
    head: str,
    folder: Path,
    key: str,
    runtime: Runtime,
    beat: Callable[[], None],
    progress: Progress,
    bad_log: BadSampleLog | None = None,
) -> Features:
    """`compute_features`, or what an earlier run has kept of it; the network is not asked then.

    All ranks read the same features, or all compute them. What lacks images that could not be read is not kept: they
    may well be read next time.

    Args:
        module: As in `compute_features`, and so `loader`, `head`, `runtime`, `beat` and `bad_log`.
        loader: As there.
        head: As there.
        folder: Of what is kept between runs (`pipelines.build.default_cache`).
        key: What the features follow from (`features_key`).
        runtime: As there.
        beat: As there.
        progress: Where it is said what was read or kept.
        bad_log: As there.

    Raises:
        FloatingPointError, RuntimeError, ValueError: As `compute_features`.
    """
    path = folder / "features" / f"{key}.safetensors"
    kept = _load(path, num_samples=loader.num_samples)
    digests = runtime.gather_objects([None if kept is None else _digest(kept)])
    if kept is not None and len(set(digests)) == 1:
        progress.say(f"features: those of {path}, from {loader.num_samples:,} images")
        return kept
    if path.exists() and kept is None:
        progress.say(f"features: {path} is damaged; they are computed anew")
    features = compute_features(
        module, loader, head=head, runtime=runtime, beat=beat, progress=progress, bad_log=bad_log
    )
    if len(features.ids_N) == loader.num_samples:
        _keep(features, path, runtime=runtime, progress=progress)
    return features


def compute_features(
    module: nn.Module,
    loader: Loader,
    *,
    head: str,
    runtime: Runtime,
    beat: Callable[[], None],
    progress: Progress,
    bad_log: BadSampleLog | None = None,
) -> Features:
    """What goes into the layer `head` for each sample of the loader; modules are left in the modes they were in.

    Dropout before the last layer is off, as in every evaluation.

    Args:
        module: images (N, C, H, W) -> logits (N, K), placed, not wrapped.
        loader: Each sample once; rows with valid False are left out.
        head: The path of the last layer, which takes (N, D) or (N, D, 1, 1).
        runtime: Device, autocast and gathering.
        beat: Called before each batch, as a sign of life.
        progress: Where it is shown how far it is.
        bad_log: Where samples that cannot be read are written; they are left out.

    Returns:
        Of all ranks, on every rank, on the CPU.

    Raises:
        FloatingPointError: A feature is not finite.
        RuntimeError: Not exactly the loader's samples were computed or left out.
        HeadError: The last layer alone does not make the logits of its features.
        ValueError: A sample could not be read, or more of them than is allowed.
    """
    layer = module.get_submodule(head)
    parts: list[tuple[Tensor, Tensor]] = []
    runtime.seed(runtime.rank)
    with in_evaluation(module), torch.no_grad(), _listening(layer) as heard:
        for batch in progress.through(loader, doing="features: batches", num_items=loader.steps_per_epoch):
            beat()
            heard.clear()
            with runtime.autocast():
                logits_NK = module(*batch.inputs)
                features_ND = _flat(heard, head=head)
                if not parts:
                    _check_head(layer, heard[0], features_ND, logits_NK, head=head)
            parts.append(_gather_valid(features_ND, batch, runtime=runtime))
    features = _joined(parts)
    num_bad = _count_bad(loader, runtime=runtime, bad_log=bad_log)
    _check_features(features, num_bad=num_bad, num_samples=loader.num_samples)
    return features


def features_key(
    config: Config,
    module: nn.Module,
    *,
    head: str,
    spec: InputSpec,
    fingerprint: str,
    backend: str,
    runtime: Runtime,
) -> str:
    """32 letters for all that features follow from: the network but for its last layer, its input, images, rounding.

    Args:
        config: model and loader.decode are read.
        module: With the weights that make the features, placed.
        head: The path of the last layer, whose own weights change nothing.
        spec: What the network sees, complete.
        fingerprint: Of the split (`pipelines.build.fingerprint_splits`).
        backend: Of the loader; each decodes and resizes in its own way, to a rounding error.
        runtime: Device and precision.
    """
    about = {
        "version": _VERSION,
        "weights": hash_weights(module, but=head),
        "head": head,
        "model": config_to_dict(config.model),
        "input": config_to_dict(spec),
        "data": fingerprint,
        "pixels": [backend, config.loader.decode],
        "computed": [runtime.precision, runtime.device.type],
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


@contextlib.contextmanager
def _listening(layer: nn.Module) -> Iterator[list[Tensor]]:
    """The list to which each call of the layer adds what it is given."""
    heard: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: heard.append(inputs[0]))
    try:
        yield heard
    finally:
        hook.remove()


def _flat(heard: list[Tensor], *, head: str) -> Tensor:
    """What the last layer was given, (N, D), float32 or float64.

    Raises:
        HeadError: It is not called once for a batch, or takes something else.
    """
    if len(heard) != 1:
        raise HeadError(f"the network calls its last layer {head} {len(heard)} times, and not once. {_WAY_OUT}")
    given = heard[0]
    if given.dim() != 2 and (given.dim() != 4 or given.shape[2:] != (1, 1)):
        raise HeadError(
            f"the last layer {head} of the network takes {tuple(given.shape)}; wanted: a vector for each image, (N, D) "
            f"or (N, D, 1, 1). {_WAY_OUT}"
        )
    return given.flatten(1).to(torch.promote_types(given.dtype, torch.float32))


def _check_head(layer: nn.Module, given: Tensor, features_ND: Tensor, logits_NK: Tensor, *, head: str) -> None:
    """Raises HeadError where the network does more after its last layer than to hand on what that gives."""
    own_NK = layer(features_ND.reshape(given.shape)).flatten(1)
    is_same = own_NK.shape == logits_NK.shape
    if is_same:
        difference = (own_NK.double() - logits_NK.double()).abs().max()
        is_same = bool(difference <= _TOLERANCE * logits_NK.double().abs().max())
    if not is_same:
        raise HeadError(
            f"the network does something to what its last layer {head} gives: its logits are not those of that layer. "
            f"{_WAY_OUT}"
        )


def _gather_valid(features_ND: Tensor, batch: Batch, *, runtime: Runtime) -> tuple[Tensor, Tensor]:
    """Features (N, D) and int64 (N, 2), ids and labels, of the valid rows of all ranks, on the CPU."""
    numbers_N3 = torch.stack([batch.ids_N, batch.labels_N, batch.valid_N.long()], dim=1)
    features_ND, numbers_N3 = runtime.gather(features_ND.contiguous()).cpu(), runtime.gather(numbers_N3).cpu()
    is_valid_N = numbers_N3[:, 2] == 1
    return features_ND[is_valid_N], numbers_N3[is_valid_N, :2]


def _joined(parts: list[tuple[Tensor, Tensor]]) -> Features:
    """All parts as one, in the order of the ids."""
    numbers_N2 = torch.cat([numbers for _, numbers in parts])
    places_N = numbers_N2[:, 0].argsort(stable=True)
    features_ND = torch.cat([features for features, _ in parts])[places_N]
    return Features(features_ND, numbers_N2[places_N, 1].contiguous(), numbers_N2[places_N, 0].contiguous())


def _count_bad(loader: Loader, *, runtime: Runtime, bad_log: BadSampleLog | None) -> int:
    """How many samples could not be read, over all ranks; they are written down.

    Raises:
        ValueError: They are more than the loader allows.
    """
    met = loader.take_bad_samples()
    num_bad = int(runtime.sum_over_ranks(torch.tensor([len(met)], device=runtime.device)).item())
    if num_bad:
        if bad_log is not None:
            bad_log.write(met, step=0)
        check_num_bad(num_bad, loader)
    return num_bad


def _check_features(features: Features, *, num_bad: int, num_samples: int) -> None:
    num_ids = len(features.ids_N)
    num_different = int((features.ids_N.diff(prepend=torch.tensor([-1])) > 0).sum())  # they are in order
    if num_ids != num_different or num_ids + num_bad != num_samples:
        raise RuntimeError(
            f"features of {num_ids} samples were computed, {num_different} of them different, and {num_bad} could not "
            f"be read, but the split has {num_samples}."
        )
    num_not_finite = int((~features.features_ND.isfinite().all(dim=1)).sum())
    if num_not_finite:
        raise FloatingPointError(
            f"the features of {num_not_finite} of {num_ids} images are not finite; look at the weights that the "
            "network starts from, or, with train.precision=fp16, use bf16 or fp32."
        )


def _digest(features: Features) -> str:
    """SHA-256 of all values."""
    digest = hashlib.sha256()
    for value in features:
        digest.update(f"{value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(_bytes_of(value))
    return digest.hexdigest()


def _bytes_of(value: Tensor) -> memoryview:
    return value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def _load(path: Path, *, num_samples: int) -> Features | None:
    """What `_keep` wrote; None where there is nothing, or it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            features = Features(*(file.get_tensor(name) for name in Features._fields))
            expected = (file.metadata() or {}).get("sha256")
    except (OSError, SafetensorError):
        return None
    return features if len(features.ids_N) == num_samples and _digest(features) == expected else None


def _keep(features: Features, path: Path, *, runtime: Runtime, progress: Progress) -> None:
    """Writes the features whole or not at all, once on each machine; that it cannot be done is said, and no error."""
    failure = None
    with runtime.first_on_this_machine():
        kept = _load(path, num_samples=len(features.ids_N))
        if kept is None or _digest(kept) != _digest(features):
            try:
                _save(features, path)
            except (OSError, SafetensorError) as error:
                failure = error
    if failure is None:
        progress.say(f"features: kept in {path}")
    else:
        progress.say(f"features: they cannot be kept in {path} ({failure}), so the next start computes them again")


def _save(features: Features, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        save_file(features._asdict(), unfinished, metadata={"sha256": _digest(features)})
        with open(unfinished, "rb") as file:
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
