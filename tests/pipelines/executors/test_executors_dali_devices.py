"""DALI's whole way from files to pixels, on the CPU and, where there is one, on a GPU: the same tests.

Images are as people have them: JPEGs of several sizes and subsamplings, progressive, grey, CMYK and turned ones, PNGs.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED, EXECUTORS, Setting
from packed_cases import draw, write_varied
from torch import Tensor

if not DALI_IS_EXPECTED:
    pytest.skip("no builds of DALI for this system", allow_module_level=True)

from configs.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    InputSpec,
    LoaderConfig,
    ModelConfig,
    OptimConfig,
    RunConfig,
    TrainConfig,
)
from pipelines.build import Place, build_data, build_evaluation_loader, build_training_loader
from pipelines.executors import dali
from pipelines.executors.dali import DaliExecutor
from pipelines.packing.pack import Packing, pack
from pipelines.packing.stored import Settings
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import Source
from pipelines.sources.folder import FolderSource
from pipelines.sources.packed import open_packed
from pipelines.sources.scan import scan_folder

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")],
    ),
]
NUM_JPEGS = 24  # plain ones, beside the others
SIZE_PX = 48
MOST_MEAN, MOST_OFTEN_OFF = 2.0, 24  # of 255: the whole image on average; 99 of 100 values


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_varied(tmp_path_factory.mktemp("varied"))
    for number in range(NUM_JPEGS):
        path = root / "train" / ("cat", "dog")[number % 2] / f"plain_{number:02}.jpg"
        draw(90 + 7 * number, 240 - 5 * number, seed=100 + number).save(path, quality=90, subsampling=number % 3)
    return root


@pytest.fixture
def source(written: Path) -> Source:
    return scan_folder(str(written), show_progress=False)["train"]


def build(source: Source, device: torch.device, **options: Any) -> DaliExecutor:
    return DaliExecutor(
        source, channels=3, interpolation="bilinear", device=device, num_threads=2, num_prefetched=2, **options
    )


def draw_plans(source: Source, *, batch_size: int = 8, sizes_px: tuple[int, ...] = (SIZE_PX,)) -> list[Plan]:
    """One epoch of every image, the last batch smaller."""
    ids_N = np.random.default_rng(0).permutation(len(source.labels_N))
    return [
        plan_training(
            ids,
            copies_N=np.zeros_like(ids),
            sizes_N2=source.sizes_N2[ids],
            fit=Fit("crop", 1.0),
            augmentation=Augmentation(crop="rrc", rrc_scale=(0.1, 1.0), flip="random", vertical_flip_prob=0.2),
            seed=0,
            epoch=0,
            size_px=sizes_px[number % len(sizes_px)],
        )
        for number, ids in enumerate(np.split(ids_N, range(batch_size, len(ids_N), batch_size)))
    ]


def carry_out(executor: Any, plans: list[Plan]) -> list[Tensor]:
    """Images of each plan, on the CPU; none is bad."""
    found = []
    for carried in executor.run(iter(plans)):
        assert not carried.bad
        found.append(carried.images_NHWC.cpu().clone())
    assert len(found) == len(plans)
    return found


def by_reference(source: Source, plans: list[Plan]) -> list[Tensor]:
    return carry_out(EXECUTORS["reference_0_workers"](source, Setting()), plans)


def assert_near(found: list[Tensor], wanted: list[Tensor]) -> None:
    for one, two in zip(found, wanted, strict=True):
        assert one.shape == two.shape
        off = (one.int() - two.int()).abs().float()
        assert off.mean() < MOST_MEAN
        assert off.flatten().kthvalue(int(0.99 * off.numel())).values <= MOST_OFTEN_OFF


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What each pipeline was built with."""
    build_pipeline, seen = dali.build_pipeline, []

    def note(*arguments: Any, **named: Any) -> Any:
        seen.append(named)
        return build_pipeline(*arguments, **named)

    monkeypatch.setattr(dali, "build_pipeline", note)
    return seen


def test_images_of_all_kinds_come_out_near_the_reference(source: Source, device: torch.device) -> None:
    plans = draw_plans(source)
    assert len(source.labels_N) > NUM_JPEGS + 10
    assert_near(carry_out(build(source, device), plans), by_reference(source, plans))


@pytest.mark.parametrize("load", [0.0, 0.65, 1.0])
def test_whatever_the_gpus_jpeg_decoder_takes_the_images_are_near_the_reference(
    source: Source, device: torch.device, load: float, built: list[dict[str, Any]]
) -> None:
    plans = draw_plans(source)
    assert_near(carry_out(build(source, device, hw_decoder_load=load), plans), by_reference(source, plans))
    assert [named["decoder"].load_frac for named in built] == [load]


def test_an_image_has_the_same_pixels_in_any_batch_to_the_bit(source: Source, device: torch.device) -> None:
    """As on another number of ranks: with the default load it is not its place that says who decodes it."""
    small, large = (
        torch.cat(carry_out(build(source, device), draw_plans(source, batch_size=size))) for size in (4, 12)
    )
    assert torch.equal(small, large)


def test_an_epoch_continued_in_its_middle_has_the_same_pixels_to_the_bit(source: Source, device: torch.device) -> None:
    plans = draw_plans(source)
    whole, rest = carry_out(build(source, device), plans), carry_out(build(source, device), plans[2:])
    assert all(torch.equal(*pair) for pair in zip(whole[2:], rest, strict=True))


def test_a_second_run_beside_one_that_is_not_through_is_refused(source: Source, device: torch.device) -> None:
    """Else each would be given batches of the other."""
    plans, executor = draw_plans(source), build(source, device)
    wanted = carry_out(build(source, device), plans)
    first = executor.run(iter(plans))
    next(first)
    with pytest.raises(RuntimeError, match=r"a second time while its first iterator is not through; finish or close"):
        next(executor.run(iter(plans)))
    first.close()
    assert all(torch.equal(*pair) for pair in zip(carry_out(executor, plans), wanted, strict=True))


def test_sizes_change_from_plan_to_plan_without_another_pipeline(
    source: Source, device: torch.device, built: list[dict[str, Any]]
) -> None:
    plans = draw_plans(source, sizes_px=(32, 64, 40))
    found = carry_out(build(source, device), plans)
    assert {images.shape[1] for images in found} == {32, 64, 40}
    assert_near(found, by_reference(source, plans))
    assert len(built) == 1


@pytest.mark.parametrize("mode", ["keep", "jpeg", "raw"])
def test_packed_images_come_out_near_the_reference_whole_and_in_parts(
    source: Source, device: torch.device, tmp_path: Path, mode: str
) -> None:
    storing = Settings(
        mode=mode,  # type: ignore[arg-type]
        long_side_px=None,
        short_side_px=None,
        quality=90,
        subsampling="4:2:0",
        restart=True,
    )
    pack(Packing({"train": source}, None, storing, 2**20), tmp_path / "packed", num_workers=0, show_progress=False)
    packed = open_packed(str(tmp_path / "packed"))["train"]
    plans = draw_plans(packed)
    executor, wanted = build(packed, device), by_reference(packed, plans)
    for _ in range(2):  # the second time only the parts under the windows are read
        assert_near(carry_out(executor, plans), wanted)


def cut_short(path: Path) -> bytes:
    return path.read_bytes()[:-200]


def headless(path: Path) -> bytes:
    return b"\xff\xd8\xff\xe0 no header"


@pytest.mark.parametrize("spoil", [cut_short, headless])
def test_a_bad_image_is_found_and_the_others_lose_nothing(
    written: Path, device: torch.device, tmp_path: Path, spoil: Callable[[Path], bytes]
) -> None:
    for path in sorted(written.rglob("plain_*.jpg")):
        copy = tmp_path / path.relative_to(written)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    source = scan_folder(str(tmp_path), show_progress=False)["train"]
    plans = draw_plans(source, batch_size=6)
    wanted = carry_out(build(source, device), plans)
    bad_id = int(plans[1].ids_N[2])
    Path(source.describe(bad_id)).write_bytes(spoil(Path(source.describe(bad_id))))
    executor = build(source, device)
    for _ in range(2):  # and it goes on after that
        num_bad = 0
        for plan, carried, right in zip(plans, executor.run(iter(plans)), wanted, strict=True):
            assert sorted(carried.bad) == np.flatnonzero(plan.ids_N == bad_id).tolist()
            good = np.flatnonzero(plan.ids_N != bad_id)
            found = carried.images_NHWC.cpu()[good]
            assert torch.equal(found, right[good]) or carried.bad, "what came from the reference is only near"
            assert_near([found], [right[good]])
            num_bad += len(carried.bad)
        assert num_bad == 1


def test_what_dali_alone_cannot_decode_is_decoded_here_and_a_pipeline_goes_on_at_the_same_step(
    source: Source, device: torch.device, built: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is whole; only DALI is given half of it, or a header that it cannot read."""
    plans = draw_plans(source)
    wanted = carry_out(build(source, device), plans)
    plain = [place for place, plan in enumerate(plans) if "plain" in source.describe(int(plan.ids_N[1]))]
    half_id, junk_id = (int(plans[place].ids_N[1]) for place in (plain[0], plain[-1]))
    assert half_id != junk_id
    read_jpeg = FolderSource.read_jpeg

    def read_spoilt(source: FolderSource, sample_id: int, **arguments: Any) -> bytes | memoryview | None:
        jpeg = read_jpeg(source, sample_id, **arguments)
        return {half_id: (jpeg or b"")[: len(jpeg or b"") // 2], junk_id: b"no"}.get(sample_id, jpeg)

    monkeypatch.setattr(FolderSource, "read_jpeg", read_spoilt)
    executor, num_before = build(source, device), len(built)
    with pytest.warns(UserWarning, match="what it fails on is decoded on the CPU, from now on each time"):
        found = carry_out(executor, plans)
    assert_near(found, wanted)
    spoilt = {plain[0], plain[-1]}
    assert len(built) > num_before + 1, "it failed, and was built anew"
    untouched = [place for place in range(len(plans)) if min(abs(place - each) for each in spoilt) > 1]
    assert untouched
    assert all(torch.equal(found[place], wanted[place]) for place in untouched)
    num_built = len(built)
    assert_near(carry_out(executor, plans), wanted)
    carry_out(executor, plans)
    assert len(built) <= num_built + 1, "it is known by now"


def make_config(root: Path, **augment: Any) -> Config:
    return Config(
        data=DataConfig(
            dataset="folder",
            root=str(root),
            val_frac=0.0,
            on_bad_sample="replace",
            on_bad_eval_sample="exclude",
            max_bad_frac=0.5,
        ),
        input=InputSpec(size_px=SIZE_PX, channels=3, mean=(0.5, 0.4, 0.3), std=(0.25, 0.2, 0.3)),
        augment=AugmentConfig(crop="rrc", flip="random", **augment),
        loader=LoaderConfig(backend="dali", num_threads=2, eval_batch_size_per_rank=7),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=1, global_batch_size=8),
        run=RunConfig(select="last"),
    )


@pytest.fixture
def spoilt_root(written: Path, tmp_path: Path) -> Path:
    """A copy of the images, to be spoilt."""
    for path in sorted(path for path in written.rglob("*") if path.is_file()):
        copy = tmp_path / "images" / path.relative_to(written)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    return tmp_path / "images"


def test_the_loader_replaces_and_excludes_what_goes_bad_in_mid_epoch_and_counts_exactly(
    spoilt_root: Path, device: torch.device
) -> None:
    config = make_config(spoilt_root, mixup_alpha=0.2, erase_prob=0.3)
    data = build_data(config, show_progress=False)
    place = Place(device, torch.float32, 0, 1, 2)
    train = build_training_loader(config, data, place=place, show_progress=False)
    wanted = [(batch.ids_N.cpu(), batch.inputs[0].cpu()) for batch in train]
    assert wanted[0][1].shape == (8, 3, SIZE_PX, SIZE_PX)
    bad_id = int(wanted[2][0][3])
    path = Path(data.train.describe(bad_id))
    path.write_bytes(path.read_bytes()[:60])

    train = build_training_loader(config, data, place=place, show_progress=False)
    found = [(batch.ids_N.cpu(), batch.inputs[0].cpu()) for batch in train]
    assert len(found) == len(wanted) == train.steps_per_epoch
    (bad,) = train.take_bad_samples()
    assert (bad.name, bad.sample_id, bad.step) == (str(path), bad_id, 2)
    for step, ((ids, images), (right_ids, right)) in enumerate(zip(found, wanted, strict=True)):
        changed = ids != right_ids
        assert changed.sum().item() == (step == 2)
        assert bad_id not in ids
        assert images.device.type == "cpu"
        if step != 2:
            assert torch.equal(images, right)

    position = build_training_loader(config, data, place=place, show_progress=False)
    position.load_state_dict({**train.state_dict(), "epoch": 0, "samples_consumed": 3 * config.train.global_batch_size})
    rest = [(batch.ids_N.cpu(), batch.inputs[0].cpu()) for batch in position]
    assert len(rest) == len(found) - 3
    assert all(torch.equal(one[0], two[0]) for one, two in zip(rest, found[3:], strict=True))
    assert all(torch.equal(one[1], two[1]) for one, two in zip(rest, found[3:], strict=True))

    scored = build_evaluation_loader(config, data, "train", place=place, show_progress=False)
    batches = list(scored)
    counted = torch.cat([batch.ids_N[batch.valid_N].cpu() for batch in batches])
    assert sorted(counted.tolist()) == [each for each in range(len(data.train.labels_N)) if each != bad_id]
    assert {len(batch.ids_N) for batch in batches} == {7}


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this system")
def test_the_cores_of_this_process_stay_as_they_are(source: Source, device: torch.device) -> None:
    """Threads near the GPU are DALI's affair; the program's own may go on anywhere."""
    before = os.sched_getaffinity(0)
    carry_out(build(source, device), draw_plans(source))
    assert os.sched_getaffinity(0) == before
