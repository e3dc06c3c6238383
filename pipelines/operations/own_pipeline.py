"""A user's own albumentations pipeline, as `albumentations.save` wrote it, run on finished windows; its only home.

file -> Compose -> tried out on images of the run's sizes
                -> a copy per thread, for each image seeded anew by its row of the plan -> uint8 (S, S, C), in place

What an image becomes depends on its seed alone, not on what the thread did before. albumentations 2.0.8 is the last
release under the MIT licence.

Legend of shape letters: S height and width of the image in pixels, C channels.
"""

import copy
import hashlib
import io
import itertools
import json
import os
import random
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from threading import local
from typing import Any

import numpy as np
import numpy.typing as npt

from configs.imports import load_object
from configs.nearest import nearest
from configs.own_pipeline import HOW_TO_SAVE, read_pipeline
from pipelines.plan import Plan

_NUM_TRIES = 5  # seeds per image size, for the pipeline as it is and for each way in which all that may happen does
_ALL_NAMES = "those of its documentation, explore.albumentations.ai"
_DONE_HERE = (
    "leave out what normalises, converts, resizes or crops to another size (Normalize, ToTensorV2, Resize, RandomCrop, "
    "...): that is done here, by input.mean, input.std, input.size_px and augment.crop"
)


class OwnPipeline:
    """Does the user's pipeline to single images: an `Operate`, for many threads at once; it can be sent to processes.

    Args:
        path: The file, .yaml, .yml or .json.
        describe: What to call a sample in a message.

    Raises:
        ValueError: It holds no pipeline that can be loaded here, or one that asks for more than an image.
    """

    def __init__(self, path: str, *, describe: Callable[[int], str]) -> None:
        self._name = f"augment.albumentations={path}"
        self._describe = describe
        self._compose = _load(read_pipeline(path), name=self._name)
        _check_arguments(self._compose, name=self._name)
        _check_inputs(self._compose, name=self._name)
        self._local = local()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_local"}  # a thread's stays where it is

    def __setstate__(self, state: dict[str, Any]) -> None:
        _import_albumentations()  # for what it sets
        vars(self).update(state, _local=local())

    def fingerprint(self) -> str:
        """A hash of the pipeline as it was loaded, and of albumentations' version; not of how the file is written."""
        return hashlib.sha256(_canonical(self._compose).encode()).hexdigest()

    def try_out(self, *, sizes_px: Sequence[int], channels: int) -> None:
        """Runs it on random images.

        Args:
            sizes_px: Every height and width of the run's images.
            channels: 1 or 3.

        Raises:
            ValueError: It fails, gives no image of the same shape and dtype, or two different ones for one seed.
        """
        tried = [copy.deepcopy(self._compose), *_with_all_that_may_happen(self._compose)]
        for size_px in sizes_px:
            shape = (size_px, size_px, channels)
            image = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
            for compose, seed in itertools.product(tried, range(_NUM_TRIES)):
                try:
                    first, again = (_run(compose, image.copy(), seed=seed) for _ in range(2))
                except Exception as error:  # whatever transforms raise
                    raise ValueError(f"{self._name}: for an image uint8 {shape}, {_explain(error)}") from error
                if not np.array_equal(first, again):
                    raise ValueError(
                        f"{self._name} gives two images for one seed, so a run could not be repeated; in transforms of "
                        "your own draw from self.py_random and self.random_generator alone."
                    )

    def __call__(self, image_SSC: npt.NDArray[np.uint8], *, plan: Plan, row: int) -> None:
        """Changes `image_SSC`, uint8 (S, S, C), contiguous, in place, seeded by row `row` of the plan.

        Raises:
            ValueError: A transform fails, or gives another shape or dtype; sample, transform and file are named.
        """
        assert plan.own_seeds_N is not None, "they are drawn where there is a pipeline"
        try:
            result = _run(self._compose_of_thread(), image_SSC, seed=int(plan.own_seeds_N[row]))
        except Exception as error:  # whatever transforms raise
            sample = self._describe(int(plan.ids_N[row]))
            raise ValueError(f"{sample}: {self._name}: for this image, {_explain(error)}") from error
        if result is not image_SSC:
            image_SSC[...] = result

    def _compose_of_thread(self) -> Any:
        if not hasattr(self._local, "compose"):
            self._local.compose = copy.deepcopy(self._compose)
        return self._local.compose


class _UnusableResultError(Exception):
    """The pipeline gives something else than it was given."""


def _import_albumentations() -> Any:
    """The library; it takes over a second, so runs without a pipeline do not import it."""
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # else it asks the network for a newer release
    import albumentations
    import cv2

    cv2.setNumThreads(0)  # each image is one thread's: teams of OpenCV's own would be in the way
    return albumentations


def _run(compose: Any, image_SSC: npt.NDArray[np.uint8], *, seed: int) -> npt.NDArray[np.uint8]:
    """The image through a pipeline that is seeded anew.

    All transforms draw from one pair of generators. By `set_random_seed` each would have its own, all of one seed: two
    transforms of p=0.5 would always happen together (albumentations 2.0.8); and it takes 149 us instead of 15 (seven
    transforms, one core of an Intel Xeon, 2026-11-26).
    """
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    result = compose(image=image_SSC)["image"]
    if not isinstance(result, np.ndarray) or result.dtype != np.uint8 or result.shape != image_SSC.shape:
        kind = f"{getattr(result, 'dtype', type(result).__name__)} {tuple(getattr(result, 'shape', ()))}"
        raise _UnusableResultError(
            f"it gives {kind}, but uint8 {image_SSC.shape} is wanted, as the image came; {_DONE_HERE}"
        )
    return result


def _explain(error: Exception) -> str:
    """What failed and why, in words that go on after a comma."""
    if isinstance(error, _UnusableResultError):
        return f"{error}."
    return f"it fails: {_blame(error)}. Correct the pipeline, or leave that transform out."


def _blame(error: Exception) -> str:
    """Kind and text of an error, and the innermost transform that raised it."""
    transform = _import_albumentations().BasicTransform
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    names = [f"{type(one).__name__}: " for one in owners if isinstance(one, transform)]
    return f"{''.join(names[-1:])}{type(error).__name__}: {str(error).rstrip('. ')}"


# --- from the file


def _load(saved: dict[str, Any], *, name: str) -> Any:
    """The pipeline, an albumentations.Compose."""
    albumentations = _import_albumentations()
    _check_names(saved["transform"], name=name)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of arguments that it has saved itself; see _check_arguments
            compose = albumentations.from_dict(saved)
        if isinstance(compose, albumentations.Compose):
            _canonical(compose)
    except Exception as error:  # whatever transforms raise about their arguments
        raise ValueError(f"{name} cannot be loaded: {_blame(error)}; {HOW_TO_SAVE}.") from error
    if not isinstance(compose, albumentations.Compose):
        raise ValueError(f"{name} holds a {type(compose).__name__}, not a Compose; save albumentations.Compose([...]).")
    return compose


def _canonical(compose: Any) -> str:
    """A pipeline as text, the same however its file was written."""
    text = io.StringIO()
    _import_albumentations().save(compose, text, data_format="json")
    return json.dumps(json.loads(text.getvalue()), sort_keys=True)


def _check_names(saved: dict[str, Any], *, name: str) -> None:
    """Checks that every transform in a saved pipeline is one that can be made from a file."""
    serialization = _import_albumentations().core.serialization
    given = str(saved.get("__class_fullname__"))
    _import_own(given, name=name)
    known = sorted(serialization.SERIALIZABLE_REGISTRY)
    if serialization.shorten_class_name(given) in serialization.NON_SERIALIZABLE_REGISTRY:
        raise ValueError(f"{name}: {given} takes functions or images that are not in the file; leave it out.")
    if given == "SelectiveChannelTransform":
        version = serialization.__version__
        raise ValueError(f"{name}: albumentations {version} does not save the channels of {given}; leave it out.")
    if serialization.shorten_class_name(given) not in known:
        offers = nearest(given, known, if_many=_ALL_NAMES)
        raise ValueError(f"{name}: albumentations {serialization.__version__} has no {given}; {offers}.")
    for one in saved.get("transforms") or []:
        if isinstance(one, dict):
            _check_names(one, name=name)


def _import_own(given: str, *, name: str) -> None:
    """Imports the module of a transform class of the user's own, `package.module.Name`, which makes it known."""
    serialization = _import_albumentations().core.serialization
    module, _, attribute = given.rpartition(".")
    known = serialization.SERIALIZABLE_REGISTRY.keys() | serialization.NON_SERIALIZABLE_REGISTRY.keys()
    if not module or module.split(".")[0] == "albumentations" or given in known:
        return
    if module == "__main__":
        raise ValueError(
            f"{name}: {given} was defined in the program that saved the pipeline, where it cannot be found again; move "
            "it into a module, import it from there, and save the pipeline once more."
        )
    load_object(f"{module}:{attribute}", option=f"{name}: __class_fullname__")


def _check_arguments(compose: Any, *, name: str) -> None:
    """Checks that no argument was passed over: albumentations takes its default instead, with a warning.

    What a class would not take itself but its parents would, `albumentations.save` has written, of no consequence.
    """
    for one in _parts(compose):
        passed_over = set(getattr(one, "invalid_args", ()))
        unknown = passed_over and passed_over - set(one.get_transform_init_args_names())
        if unknown:
            names = sorted(type(one).InitSchema.model_fields.keys() - {"strict"})
            raise ValueError(
                f"{name}: {type(one).__name__} has no argument {', '.join(sorted(unknown))}; it has {', '.join(names)}."
            )


def _check_inputs(compose: Any, *, name: str) -> None:
    """Checks that an image is all that a pipeline asks for."""
    for one in _parts(compose):
        wanted = sorted(set(getattr(one, "targets_as_params", ())) - {"image"})
        if wanted:
            raise ValueError(
                f"{name}: {type(one).__name__} asks for {', '.join(wanted)}, but there is an image and nothing else; "
                "leave it out."
            )
    asked = {"bbox_params": "bboxes" in compose.processors, "keypoint_params": "keypoints" in compose.processors}
    asked["additional_targets"] = bool(compose.additional_targets)
    extra = [argument for argument, is_asked in asked.items() if is_asked]
    if extra:
        raise ValueError(
            f"{name}: its Compose has {', '.join(extra)}, but there is an image and nothing else, no boxes, key points "
            "or masks; save it without."
        )


def _parts(transform: Any) -> Iterator[Any]:
    """A transform and those within it."""
    yield transform
    for one in _children(transform):
        yield from _parts(one)


def _children(transform: Any) -> Sequence[Any]:
    """The transforms that one is composed of; ColorJitter, too, has `transforms`, but they are functions of its own."""
    return transform.transforms if _is_composed(transform) else ()


def _is_composed(transform: Any) -> bool:
    return isinstance(transform, _import_albumentations().BaseCompose)


def _with_all_that_may_happen(compose: Any) -> list[Any]:
    """Copies in which what may happen does; one per transform, in which choices among several fall on that one."""
    places = [place for place, one in enumerate(_parts(compose)) if not _is_composed(one)]
    return [_leading_to(place, copy.deepcopy(compose)) for place in places]


def _leading_to(place: int, compose: Any) -> Any:
    """The pipeline, changed: what may happen does, and OneOf and OneOrOther take the way to the part number `place`."""
    wanted = list(_parts(compose))[place]
    for one in _parts(compose):
        chosen = [any(part is wanted for part in _parts(each)) for each in _children(one)]
        if type(one).__name__ == "OneOrOther" and 0 < one.p < 1:  # p is that of the first
            one.p = float(not chosen[-1])
        one.p = float(one.p > 0)
        possible = [
            takes and weight > 0 for takes, weight in zip(chosen, getattr(one, "transforms_ps", ()), strict=False)
        ]
        if any(possible):
            one.transforms_ps = [float(takes) for takes in possible]
    return compose
