"""A user's own albumentations pipeline on single images: what it makes follows from the seed alone; what is refused."""

import inspect
import json
import pickle
import random
import re
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from programs import ROOT

from pipelines.operations.own_pipeline import OwnPipeline, _import_albumentations
from pipelines.plan import Fit, Plan, plan_evaluation

A = _import_albumentations()
Pixels = npt.NDArray[np.uint8]
Save = Callable[..., OwnPipeline]
SIZE = 32
SERIALIZABLE = A.core.serialization.SERIALIZABLE_REGISTRY
TRANSFORMS = [one for _, one in inspect.getmembers(A, inspect.isclass) if issubclass(one, A.BasicTransform)]
CHANGE_SIZE_AT_TIMES = {"RandomScale", "RandomCropFromBorders"}
COLOURS_ONLY = {"ChromaticAberration", "HEStain", "ISONoise", "PlanckianJitter", "Spatter", "ToRGB"}
COLOURS_ONLY |= {"ChannelDropout", "RandomFog", "RandomGravel", "RandomRain", "RandomSnow", "RandomSunFlare"}


def nested() -> Any:
    """Every way to put transforms together."""
    return A.Compose(
        [
            A.OneOf([A.GaussNoise(), A.Sequential([A.HorizontalFlip(), A.SaltAndPepper()], p=1)], p=0.9),
            A.SomeOf([A.RandomBrightnessContrast(), A.VerticalFlip(), A.Affine(rotate=20)], n=2),
            A.RandomOrder([A.Transpose(), A.RandomGridShuffle(), A.Compose([A.GaussianBlur()], p=0.5)], n=2),
            A.OneOrOther(A.CoarseDropout(), A.Posterize()),
            A.ShotNoise(),
        ]
    )


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Saves a pipeline as albumentations does, and reads it."""

    def make(pipeline: Any, *, name: str = "mine.yaml") -> OwnPipeline:
        A.save(pipeline, tmp_path / name, data_format="json" if name.endswith("json") else "yaml")
        return OwnPipeline(str(tmp_path / name), describe="image {}".format)

    return make


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    """Writes a file by hand; gives its path."""

    def make(text: str, *, name: str = "mine.yaml") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return make


def image_of(*, channels: int = 3, size_px: int = SIZE) -> Pixels:
    return np.random.default_rng(0).integers(0, 256, (size_px, size_px, channels), dtype=np.uint8)


def plan_of(*seeds: int) -> Plan:
    """A row per seed, of the samples 10, 11, ..."""
    ids = np.arange(len(seeds)) + 10
    sizes = np.full((len(seeds), 2), SIZE, dtype=np.int32)
    plan = plan_evaluation(ids, sizes_N2=sizes, fit=Fit("crop", 1.0), size_px=SIZE)
    return plan._replace(own_seeds_N=np.array(seeds, dtype=np.int64))


def operated(pipeline: OwnPipeline, seed: int, *, channels: int = 3) -> Pixels:
    image = image_of(channels=channels)
    pipeline(image, plan=plan_of(1, seed), row=1)
    return image


def by_hand(compose: Any, seed: int) -> Pixels:
    compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
    result: Pixels = compose(image=image_of())["image"]
    return result


def refuses(text: str) -> Any:
    return pytest.raises(ValueError, match=re.escape(text))


# --- what an image becomes


def test_an_image_is_changed_in_place_as_the_saved_pipeline_says(save: Save) -> None:
    flipped = operated(save(A.Compose([A.HorizontalFlip(p=1), A.InvertImg(p=1)])), 3)
    assert np.array_equal(flipped, 255 - image_of()[:, ::-1])
    assert np.array_equal(operated(save(A.Compose([A.HorizontalFlip(p=0)])), 3), image_of())
    assert np.array_equal(operated(save(A.Compose([])), 3), image_of())


def test_images_are_those_of_albumentations_seeded_by_hand(save: Save) -> None:
    pipeline, compose = save(nested()), nested()
    found = [operated(pipeline, seed) for seed in range(40)]
    assert all(np.array_equal(image, by_hand(compose, seed)) for seed, image in enumerate(found))
    assert len({image.tobytes() for image in found}) > 35


def test_a_seed_is_taken_whole_and_from_its_row(save: Save) -> None:
    pipeline = save(A.Compose([A.GaussNoise(p=1)]))
    seeds = [0, 1, 2**32, 2**32 + 1, 2**63 - 1]
    images = [image_of() for _ in seeds]
    for row, image in enumerate(images):
        pipeline(image, plan=plan_of(*seeds), row=row)
    assert len({image.tobytes() for image in images}) == len(seeds)
    assert np.array_equal(images[4], operated(pipeline, 2**63 - 1))


def test_transforms_happen_independently_of_each_other(save: Save) -> None:
    """albumentations' own set_random_seed gives all of them the same draws."""
    pipeline = save(A.Compose([A.HorizontalFlip(), A.VerticalFlip()]))
    image = image_of()
    kinds = {
        np.ascontiguousarray(image[::down, ::right]).tobytes(): (down, right) for down in (1, -1) for right in (1, -1)
    }
    counts = Counter(kinds[operated(pipeline, seed).tobytes()] for seed in range(400))
    assert len(counts) == 4
    assert all(60 <= count <= 140 for count in counts.values()), counts  # 100 +- 4.6 standard deviations


def made(transform: Any) -> Any:
    """The transform with its defaults, always happening; None where it needs more, or changes size or type."""
    if transform.__name__ in CHANGE_SIZE_AT_TIMES:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one = transform(p=1)
            A.to_dict(one)
            result = A.Compose([one])(image=image_of())["image"]
    except Exception:
        return None
    is_same = isinstance(result, np.ndarray) and (result.dtype, result.shape) == (np.uint8, (SIZE, SIZE, 3))
    return one if is_same else None


def test_every_transform_of_albumentations_follows_the_seed_and_nothing_else(save: Save) -> None:
    num_seen = 0
    for transform in TRANSFORMS:
        one = made(transform)
        if one is None:
            continue
        for channels in [3] if transform.__name__ in COLOURS_ONLY else [3, 1]:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice, such as that a grey image is grey
                pipeline = save(A.Compose([one]))
                forth = [operated(pipeline, seed, channels=channels) for seed in (1, 2, 3)]
                random.seed(5)
                np.random.seed(7)
                back = [operated(pipeline, seed, channels=channels) for seed in (3, 2, 1)][::-1]
                sent = pickle.loads(pickle.dumps(pipeline))
                there = [operated(sent, seed, channels=channels) for seed in (1, 2, 3)]
            for one_way, other, third in zip(forth, back, there, strict=True):
                assert np.array_equal(one_way, other), transform
                assert np.array_equal(one_way, third), transform
            num_seen += 1
    assert num_seen == 152


def test_many_threads_at_once_make_the_images_of_one(save: Save) -> None:
    pipeline = save(nested())
    wanted = [operated(pipeline, seed) for seed in range(64)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda seed: operated(pipeline, seed), [*range(64), *range(64)]))
    assert all(np.array_equal(one, other) for one, other in zip(found, [*wanted, *wanted], strict=True))


@pytest.mark.slow
def test_a_new_process_makes_the_same_images_and_opencv_starts_no_threads(save: Save, tmp_path: Path) -> None:
    pipeline = save(nested())
    (tmp_path / "sent").write_bytes(pickle.dumps((pipeline, plan_of(*range(20)), image_of())))
    there = (
        "import pickle, sys\n"
        "import numpy as np\n"
        "pipeline, plan, image = pickle.load(open(sys.argv[1], 'rb'))\n"
        "images = [image.copy() for _ in plan.ids_N]\n"
        "[pipeline(one, plan=plan, row=row) for row, one in enumerate(images)]\n"
        "import cv2\n"
        "assert cv2.getNumThreads() == 1\n"
        "np.save(sys.argv[1] + '.npy', np.stack(images))\n"
    )
    subprocess.run([sys.executable, "-c", there, str(tmp_path / "sent")], cwd=ROOT, check=True, timeout=120)
    found = np.load(tmp_path / "sent.npy")
    assert all(np.array_equal(image, operated(pipeline, seed)) for seed, image in enumerate(found))


def test_the_library_is_not_imported_before_it_is_needed_and_then_asks_the_network_for_nothing() -> None:
    steps = [
        "import os, sys, urllib.request",
        "urllib.request.build_opener = None  # a call of it is a warning, and warnings are errors here",
        "from pipelines.operations import own_pipeline",
        "assert not {'albumentations', 'cv2', 'pydantic'} & set(sys.modules)",
        "own_pipeline._import_albumentations()",
        "assert {'albumentations', 'cv2'} <= set(sys.modules)",
    ]
    command = [sys.executable, "-W", "error", "-c", "\n".join(steps)]
    subprocess.run(command, cwd=ROOT, env={}, check=True, timeout=120)


# --- what is tried out before training


@pytest.mark.parametrize("channels", [1, 3])
def test_a_pipeline_that_keeps_size_and_type_passes(save: Save, channels: int) -> None:
    crop_and_back = A.Sequential([A.RandomCrop(8, 8), A.PadIfNeeded(16, 16)], p=0.5)
    colours = [A.RGBShift(), A.HueSaturationValue()] if channels == 3 else []
    pipeline = save(A.Compose([crop_and_back, A.SafeRotate(), A.CLAHE(), *colours]))
    pipeline.try_out(sizes_px=[16], channels=channels)


LEAVE_OUT = (
    "as the image came; leave out what normalises, converts, resizes or crops to another size (Normalize, ToTensorV2, "
    "Resize, RandomCrop, ...): that is done here, by input.mean, input.std, input.size_px and augment.crop."
)


@pytest.mark.parametrize(
    ("transform", "came"),
    [
        (A.Normalize(p=0.001), "float32 (16, 16, 3)"),
        (A.ToFloat(), "float32 (16, 16, 3)"),
        (A.ToTensorV2(), "torch.uint8 (3, 16, 16)"),
        (A.Resize(20, 24, p=0.001), "uint8 (20, 24, 3)"),
        (A.RandomCrop(8, 8), "uint8 (8, 8, 3)"),
        (A.Sequential([A.SomeOf([A.Resize(8, 8, p=0.001)], p=0.001)], p=0.001), "uint8 (8, 8, 3)"),
    ],
    ids=lambda one: type(one).__name__,
)
def test_what_changes_size_or_type_is_refused_however_rarely_it_happens(save: Save, transform: Any, came: str) -> None:
    pipeline = save(A.Compose([A.HorizontalFlip(), transform]))
    wanted = f"mine.yaml: for an image uint8 (16, 16, 3), it gives {came}, but uint8 (16, 16, 3) is wanted, {LEAVE_OUT}"
    with refuses(wanted):
        pipeline.try_out(sizes_px=[16], channels=3)


def test_every_transform_of_albumentations_passes_that_needs_an_image_only_and_keeps_its_size(save: Save) -> None:
    """Of those that can be made without arguments; p=0.5, as they are by default, so that leading to them is tried."""
    passed = {}
    for name, transform in sorted(SERIALIZABLE.items()):
        if not issubclass(transform, A.BasicTransform) or not transform.__module__.startswith("albumentations."):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                pipeline = save(A.Compose([transform()]))
            except (TypeError, ValueError, NotImplementedError):
                continue  # it needs arguments, or more than an image
            passed[name] = True
            try:
                pipeline.try_out(sizes_px=[SIZE], channels=3)
            except ValueError:  # and nothing else
                passed[name] = False
    assert passed["ColorJitter"], "it has functions where compositions have transforms"
    assert sum(passed.values()) == 83, sorted(name for name, holds in passed.items() if not holds)


def test_what_never_happens_is_not_tried(save: Save) -> None:
    save(A.Compose([A.Normalize(p=0), A.OneOf([A.ToFloat(p=1)], p=0)])).try_out(sizes_px=[16], channels=3)


def test_every_branch_of_a_choice_is_tried_however_unlikely(save: Save) -> None:
    flips = [A.HorizontalFlip(p=1) for _ in range(20)]
    rare = A.OneOf([A.VerticalFlip(), A.OneOf([*flips, A.ToFloat(p=0.001), *flips], p=0.001)], p=0.001)
    for choice in (
        rare,
        A.OneOrOther(A.HorizontalFlip(), A.ToFloat(), p=0.999),
        A.OneOrOther(A.ToFloat(), rare, p=0.001),
    ):
        with refuses("it gives float32"):
            save(A.Compose([choice])).try_out(sizes_px=[16], channels=3)
    never = A.OneOf([*flips, A.ToFloat(p=0)])
    always = [A.OneOrOther(A.HorizontalFlip(), A.ToFloat(), p=1), A.OneOrOther(A.ToFloat(), A.HorizontalFlip(), p=0)]
    save(A.Compose([never, *always])).try_out(sizes_px=[16], channels=3)


def test_every_size_of_the_run_is_tried(save: Save) -> None:
    pipeline = save(A.Compose([A.RandomCrop(16, 16), A.Resize(16, 16)]))
    pipeline.try_out(sizes_px=[16], channels=3)
    with refuses("for an image uint8 (24, 24, 3), it gives uint8 (16, 16, 3)"):
        pipeline.try_out(sizes_px=[16, 24], channels=3)
    wanted = (
        "for an image uint8 (12, 12, 3), it fails: RandomCrop: CropSizeError: Crop size (height, width) exceeds image "
        "dimensions (height, width): (16, 16) vs (12, 12). Correct the pipeline, or leave that transform out."
    )
    with refuses(wanted):
        pipeline.try_out(sizes_px=[12, 16], channels=3)


def test_a_transform_for_colours_is_refused_for_grey_images_by_name(save: Save) -> None:
    pipeline = save(A.Compose([A.OneOf([A.ISONoise(p=0.1)], p=0.1)]))
    pipeline.try_out(sizes_px=[16], channels=3)
    wanted = "for an image uint8 (16, 16, 1), it fails: ISONoise: ValueError: This transformation expects 3-channel"
    with refuses(wanted):
        pipeline.try_out(sizes_px=[16], channels=1)


class Unseeded(A.ImageOnlyTransform):  # type: ignore[misc]
    """As users write them: it draws from numpy's global generator."""

    def apply(self, img: Pixels, **_: Any) -> Pixels:
        return img + np.uint8(np.random.randint(256))


def test_a_transform_that_draws_from_elsewhere_is_refused(save: Save) -> None:
    wanted = (
        "mine.yaml gives two images for one seed, so a run could not be repeated; in transforms of your own draw from "
        "self.py_random and self.random_generator alone."
    )
    with refuses(wanted):
        save(A.Compose([Unseeded(p=0.01)])).try_out(sizes_px=[16], channels=3)


# --- what is no pipeline of images


@pytest.mark.parametrize(
    ("pipeline", "wanted"),
    [
        (A.HorizontalFlip(), "mine.yaml holds a HorizontalFlip, not a Compose; save albumentations.Compose([...])."),
        (A.OneOf([A.HorizontalFlip()]), "mine.yaml holds a OneOf, not a Compose; save albumentations.Compose([...])."),
        (
            A.Compose([A.HorizontalFlip()], bbox_params=A.BboxParams("coco"), keypoint_params=A.KeypointParams("xy")),
            "mine.yaml: its Compose has bbox_params, keypoint_params, but there is an image and nothing else, no "
            "boxes, key points or masks; save it without.",
        ),
        (
            A.Compose([A.HorizontalFlip()], additional_targets={"seen": "mask"}),
            "mine.yaml: its Compose has additional_targets, but there is an image and nothing else",
        ),
        (
            A.Compose([A.OneOf([A.HorizontalFlip(), A.MaskDropout(p=0.001)])]),
            "mine.yaml: MaskDropout asks for mask, but there is an image and nothing else; leave it out.",
        ),
        (
            A.Compose([A.Lambda(name="mine", image=np.invert)]),
            "mine.yaml: Lambda takes functions or images that are not in the file; leave it out.",
        ),
        (
            A.Compose([A.OneOf([A.SelectiveChannelTransform([A.GaussNoise()], channels=[0, 2])])]),
            "mine.yaml: albumentations 2.0.8 does not save the channels of SelectiveChannelTransform; leave it out.",
        ),
    ],
    ids=["transform", "choice", "boxes", "targets", "mask", "function", "channels"],
)
def test_what_asks_for_more_than_an_image_or_is_no_compose_is_refused(save: Save, pipeline: Any, wanted: str) -> None:
    with refuses(wanted):
        save(pipeline)


COMPOSE = "transform: {__class_fullname__: Compose, p: 1.0, transforms: [%s]}"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("a: [1", "mine.yaml cannot be read as YAML (while parsing a flow sequence"),
        ("[1]", "mine.yaml does not hold what albumentations saves, {transform: ...}, and cannot be loaded; albument"),
        ("", "mine.yaml does not hold what albumentations saves"),
        (
            COMPOSE % "{__class_fullname__: HorizontalFlop, p: 0.5}",
            "mine.yaml: albumentations 2.0.8 has no HorizontalFlop; nearest: HorizontalFlip, VerticalFlip",
        ),
        (COMPOSE % "{p: 0.5}", "mine.yaml: albumentations 2.0.8 has no None; nearest: "),
        (
            COMPOSE % "{__class_fullname__: GaussNoise, var_limit: [10, 50], p: 0.5}",
            "mine.yaml: GaussNoise has no argument var_limit; it has mean_range, noise_scale_factor, p, per_channel, "
            "std_range.",
        ),
        (
            COMPOSE % "{__class_fullname__: GaussNoise, std_range: [10, 50], p: 0.5}",
            "mine.yaml cannot be loaded: GaussNoise: ValueError: 1 validation error",
        ),
        (
            "transform: {__class_fullname__: Compose, p: 1.0, steps: []}",
            "mine.yaml cannot be loaded: TypeError: Compose.__init__() got an unexpected keyword argument 'steps'; "
            'albumentations.save(pipeline, PATH, data_format="yaml") (or "json") writes one that can.',
        ),
    ],
    ids=["no_yaml", "no_mapping", "empty", "unknown", "nameless", "renamed_argument", "bad_argument", "bad_compose"],
)
def test_a_file_that_holds_no_pipeline_is_refused_with_what_is_wrong(
    write: Callable[..., str], text: str, wanted: str
) -> None:
    with refuses(wanted):
        OwnPipeline(write(text), describe=str)


INVERT = """
import albumentations as A

class Invert(A.ImageOnlyTransform):
    def apply(self, img, **_):
        return 255 - img
"""


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package in the present folder, whose module `transforms` has `Invert`; forgotten afterwards."""
    package, registry = tmp_path / "invert_of_this_test", SERIALIZABLE.copy()
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "transforms.py").write_text(INVERT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield package.name
    SERIALIZABLE.clear()
    SERIALIZABLE.update(registry)
    for name in [one for one in sys.modules if one.startswith(package.name)]:
        del sys.modules[name]


def test_a_transform_of_the_users_own_is_imported_from_the_module_that_its_name_says(
    write: Callable[..., str], own_module: str
) -> None:
    inside = "{__class_fullname__: OneOf, p: 1.0, transforms: [{__class_fullname__: %s.transforms.Invert, p: 1.0}]}"
    pipeline = OwnPipeline(write(COMPOSE % inside % own_module), describe=str)
    pipeline.try_out(sizes_px=[16], channels=3)
    assert np.array_equal(operated(pipeline, 1), 255 - image_of())
    assert f"{own_module}.transforms" in sys.modules


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (
            "PACKAGE.transforms.Inverd",
            "mine.yaml: __class_fullname__=PACKAGE.transforms:Inverd: PACKAGE.transforms has no 'Inverd'; nearest: Inv",
        ),
        ("PACKAGE.other.Invert", "PACKAGE.other:Invert: there is no module 'PACKAGE.other'; it is looked for in"),
        ("PACKAGE.broken.Invert", "importing PACKAGE.broken failed at"),
        (
            "__main__.Invert",
            "mine.yaml: __main__.Invert was defined in the program that saved the pipeline, where it cannot be found "
            "again; move it into a module, import it from there, and save the pipeline once more.",
        ),
        ("albumentations.mine.Invert", "mine.yaml: albumentations 2.0.8 has no albumentations.mine.Invert; "),
    ],
    ids=["name", "module", "broken", "program", "not_ours"],
)
def test_a_transform_of_the_users_own_that_cannot_be_imported_is_named(
    write: Callable[..., str], own_module: str, given: str, wanted: str
) -> None:
    Path(own_module, "broken.py").write_text("1 / 0")
    step = f"{{__class_fullname__: {given.replace('PACKAGE', own_module)}, p: 1.0}}"
    with refuses(wanted.replace("PACKAGE", own_module)):
        OwnPipeline(write(COMPOSE % step), describe=str)


def test_yaml_in_a_file_json_is_refused_and_json_in_a_file_yaml_is_read(
    write: Callable[..., str], tmp_path: Path
) -> None:
    with refuses("mine.json cannot be read as JSON (Expecting"):
        OwnPipeline(write(COMPOSE % "", name="mine.json"), describe=str)
    A.save(nested(), tmp_path / "mine.yaml")  # albumentations writes JSON where one does not say otherwise
    assert operated(OwnPipeline(str(tmp_path / "mine.yaml"), describe=str), 1).any()


def test_arguments_that_albumentations_saves_beyond_its_own_are_no_mistake(save: Save) -> None:
    with pytest.warns(UserWarning, match="are not valid for transform RGBShift"):
        A.from_dict(A.to_dict(A.Compose([A.RGBShift()])))
    save(A.Compose([A.RGBShift(), A.SafeRotate(), A.PadIfNeeded(16, 16)])).try_out(sizes_px=[32], channels=3)


# --- errors in training


class FailsOnBright(A.ImageOnlyTransform):  # type: ignore[misc]
    def apply(self, img: Pixels, **_: Any) -> Pixels:
        if img.mean() > 250:
            raise KeyError("too bright.")
        return img


def test_an_error_names_sample_file_transform_and_message(save: Save) -> None:
    pipeline = save(A.Compose([A.OneOf([FailsOnBright(p=1)], p=1)]))
    pipeline.try_out(sizes_px=[16], channels=3)
    image = np.full((SIZE, SIZE, 3), 255, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"^image 11: augment\.albumentations=/.*/mine\.yaml: ") as caught:
        pipeline(image, plan=plan_of(1, 2), row=1)
    wanted = "mine.yaml: for this image, it fails: FailsOnBright: KeyError: 'too bright.'. Correct the pipeline, or"
    assert wanted in str(caught.value)


def test_a_result_of_another_size_is_an_error_too_and_never_written_into_the_image(save: Save) -> None:
    pipeline = save(A.Compose([A.RandomCrop(1, 1)]))  # its one pixel would fill the image
    with refuses(
        f"image 11: augment.albumentations={pipeline._name.partition('=')[2]}: for this image, it gives uint8 (1"
    ):
        operated(pipeline, 4)


# --- the fingerprint


def test_the_fingerprint_is_of_the_pipeline_and_not_of_its_file(save: Save, write: Callable[..., str]) -> None:
    first = save(nested()).fingerprint()
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert save(nested(), name="other.json").fingerprint() == first
    saved = yaml.safe_load((Path(save(nested())._name.partition("=")[2])).read_text())
    shuffled = json.dumps(dict(reversed(saved.items())), indent=7)
    assert OwnPipeline(write(shuffled, name="third.json"), describe=repr).fingerprint() == first


def test_the_fingerprint_changes_with_a_probability_an_order_and_the_version(
    save: Save, monkeypatch: pytest.MonkeyPatch
) -> None:
    flips = [A.HorizontalFlip(), A.VerticalFlip()]
    pipelines = [A.Compose(flips), A.Compose(flips[::-1]), A.Compose(flips, p=0.5), A.Compose([flips[0]])]
    pipelines += [A.Compose([A.HorizontalFlip(p=0.4), flips[1]])]
    found = [save(one).fingerprint() for one in pipelines]
    monkeypatch.setattr("albumentations.core.serialization.__version__", "2.0.9")
    found.append(save(pipelines[0]).fingerprint())
    assert len(set(found)) == 6
