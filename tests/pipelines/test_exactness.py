"""The same samples, crops, flips, operations, mixes and pixels: any executor, any number of ranks, after any stop.

Operations are torchvision's in `reference` and the kernels' elsewhere: as decided the same everywhere, as pixels among
those two each.
"""

import dataclasses
import gc
import hashlib
import itertools
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED
from PIL import Image

from configs.load import replace_section
from configs.operations import STEPS
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
from pipelines.batch import Batch
from pipelines.build import Data, Place, build_data, build_evaluation_loader, build_training_loader
from pipelines.effects import Effects
from pipelines.loader import Draw, PlannedLoader
from pipelines.operations.vocabulary import Operation
from pipelines.order import Share
from pipelines.plan import Plan

GLOBAL_BATCH = 168
WORLD_SIZES = (1, 2, 3, 7, 8)  # 21 images per rank at 8: an odd number, so a pair lies on two ranks
BACKENDS = {
    "threads_1": {"backend": "threads", "num_threads": 1},
    "threads_2": {"backend": "threads", "num_threads": 2},
    "threads_4": {"backend": "threads", "num_threads": 4, "prefetch_batches": 1},
    "processes_2": {"backend": "threads", "workers": "processes", "num_workers": 2},
    "workers_0": {"backend": "reference", "num_workers": 0},
    "workers_2": {"backend": "reference", "num_workers": 2},
    "resident": {"backend": "resident"},
}
if DALI_IS_EXPECTED:
    BACKENDS["dali"] = {"backend": "dali", "num_threads": 2}
EVERYTHING = AugmentConfig(
    crop="pad",
    pad_px=3,
    flip="random",
    vertical_flip_prob=0.3,
    mixup_alpha=0.4,
    cutmix_alpha=1.0,
    mix_prob=0.8,
    erase_prob=0.3,
    noise_std=0.02,
)
OPERATED = dataclasses.replace(
    EVERYTHING,
    cutout_px=5,
    operations=(
        {"randaugment": {"n": 2, "m": 9, "m_std": 0.5}},
        {"color_jitter": {"brightness": 0.4, "contrast": 0.4, "saturation": 0.4, "hue": 0.1, "prob": 0.8}},
        "trivial_augment",
        {"affine": {"degrees": 10, "translate": 0.1, "scale": 0.1, "shear_x": 5, "shear_y": 5, "prob": 0.3}},
        *({name: {"factor": 0.4, "prob": 0.2}} for name in ("brightness", "contrast", "saturation", "sharpness")),
        {"hue": {"shift": 0.1, "prob": 0.2}},
        *({name: {"prob": 0.2}} for name in STEPS if {*STEPS[name].__dataclass_fields__} <= {"prob", "most", "sigma"}),
        {"posterize": {"prob": 0.2}},
        {"solarize": {"prob": 0.2}},
    ),
)
AUGMENTS = {"geometry": EVERYTHING, "operations": OPERATED}
SIZE_PX = 16


class Step(NamedTuple):
    """What all ranks together did in one step: ids and digests of everything that was decided, and of the pixels."""

    ids: list[int]
    decided: str
    pixels: str


def write_jpegs(root: Path, count: int) -> str:
    """Images of 16 x 16 pixels in three classes: no executor has to resize them, so pixels must be equal to the bit."""
    rng = np.random.default_rng(0)
    for number in range(count):
        path = root / "train" / "abc"[number % 3] / f"{number:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (SIZE_PX, SIZE_PX, 3), dtype=np.uint8)).save(path, quality=95)
    return str(root)


def make_config(root: str, *, backend: str = "threads_2", augment: AugmentConfig = EVERYTHING, seed: int = 5) -> Config:
    return Config(
        data=DataConfig(dataset="folder", root=root, val_frac=0.0),
        input=InputSpec(size_px=SIZE_PX, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        augment=augment,
        loader=LoaderConfig(**BACKENDS[backend], eval_batch_size_per_rank=24),
        model=ModelConfig(name="simple_cnn"),
        optim=OptimConfig(name="sgd", lr=0.1),
        train=TrainConfig(epochs=2, global_batch_size=GLOBAL_BATCH),
        run=RunConfig(select="last", seed=seed),
    )


class Ranks:
    """The loaders of all ranks of one run, in this process; they record what was decided."""

    def __init__(self, config: Config, data: Data, world_size: int) -> None:
        self.loaders: list[PlannedLoader] = []
        self.backend = ""
        self.decided: list[tuple[Plan, Share, Effects]] = []
        for rank in range(world_size):
            place = Place(torch.device("cpu"), torch.float32, rank, world_size, 2)
            loader = build_training_loader(config, data, place=place, show_progress=False)
            loader._draw = Draw(loader._draw.plan, recording(loader._draw.effects, self.decided))
            self.loaders.append(loader)

    def steps(self) -> Iterator[Step]:
        self.decided.clear()
        for batches in zip(*self.loaders, strict=True):
            yield Step(torch.cat([batch.ids_N for batch in batches]).tolist(), *digests(list(batches), self.decided))
            self.decided.clear()

    def go_to(self, state: dict[str, object]) -> None:
        for loader in self.loaders:
            loader.load_state_dict(state)


def recording(
    draw: Callable[[Plan, Share, int, int], Effects], decided: list[tuple[Plan, Share, Effects]]
) -> Callable[[Plan, Share, int, int], Effects]:
    """No method: loaders that lead back to themselves are left to the garbage collector, and their workers hang."""

    def record(plan: Plan, share: Share, epoch: int, step: int) -> Effects:
        decided.append((plan, share, draw(plan, share, epoch, step)))
        return decided[-1][2]

    return record


def digests(batches: list[Batch], decided: list[tuple[Plan, Share, Effects]]) -> tuple[str, str]:
    """sha256 of ids, crops, flips, operations, boxes, noise keys, mixes and labels, in global order; and of pixels."""
    own = [share.own for _, share, _ in decided]
    operated = [(plan.operations, part) for (plan, _, _), part in zip(decided, own, strict=True) if plan.operations]
    cut = [(effects.cutout_N4, part) for (_, _, effects), part in zip(decided, own, strict=True)]
    fields: list[list[np.ndarray]] = [
        [plan.ids_N[part] for (plan, _, _), part in zip(decided, own, strict=True)],
        [plan.windows_N4[part] for (plan, _, _), part in zip(decided, own, strict=True)],
        [plan.shifts_N2[part] for (plan, _, _), part in zip(decided, own, strict=True)],
        [plan.flips_N[part] for (plan, _, _), part in zip(decided, own, strict=True)],
        [plan.vertical_flips_N[part] for (plan, _, _), part in zip(decided, own, strict=True)],
        [effects.erase_N4[part] for (_, _, effects), part in zip(decided, own, strict=True)],
        [effects.noise_keys_N[part] for (_, _, effects), part in zip(decided, own, strict=True)],
        [effects.mix.kinds_B[part] for (_, _, effects), part in zip(decided, own, strict=True)],
        [effects.mix.boxes_B4[part] for (_, _, effects), part in zip(decided, own, strict=True)],
        [batch.labels_N.numpy() for batch in batches],
        [batch.mix.partner_labels_N.numpy() for batch in batches],
        [batch.mix.weight_N.numpy() for batch in batches],
        [operations.codes_NK[part] for operations, part in operated],
        [operations.values_NKP[part] for operations, part in operated],
        [boxes[part] for boxes, part in cut if boxes is not None],
    ]
    return sha256(fields), sha256([[batch.inputs[0].permute(0, 2, 3, 1).numpy() for batch in batches]])


def sha256(fields: list[list[np.ndarray]]) -> str:
    total = hashlib.sha256()
    for joined in (np.concatenate(parts) for parts in fields if parts):
        total.update(f"{joined.dtype} {joined.shape}".encode() + np.ascontiguousarray(joined).tobytes())
    return total.hexdigest()


@pytest.fixture(scope="module")
def divisible(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_jpegs(tmp_path_factory.mktemp("divisible"), 3 * GLOBAL_BATCH)


@pytest.fixture(scope="module")
def ragged(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_jpegs(tmp_path_factory.mktemp("ragged"), 6 * GLOBAL_BATCH + 5)


@pytest.fixture(scope="module")
def data_of() -> Callable[[Config], Data]:
    built: dict[str, Data] = {}

    def build(config: Config) -> Data:
        return built.setdefault(str(config.data.root), build_data(config, show_progress=False))

    return build


Wanted = Callable[[str, str], list[list[Step]]]  # backend, augmentation -> the steps of two epochs


@pytest.fixture(scope="module")
def wanted(divisible: str, data_of: Callable[[Config], Data]) -> Wanted:
    """What one rank makes, by worker processes or by one thread; without operations the two must agree."""
    made: dict[tuple[str, str], list[list[Step]]] = {}

    def make(backend: str, augment: str) -> list[list[Step]]:
        alike = "workers_0" if backend.startswith("workers") or augment == "geometry" else "threads_1"
        if (alike, augment) not in made:
            config = make_config(divisible, backend=alike, augment=AUGMENTS[augment])
            ranks = Ranks(config, data_of(config), 1)
            made[alike, augment] = [list(ranks.steps()) for _ in range(2)]
        return made[alike, augment]

    return make


def test_every_backend_and_world_size_is_tried() -> None:
    assert {settings["backend"] for settings in BACKENDS.values()} >= {"threads", "reference", "resident"}
    assert len(BACKENDS) * len(WORLD_SIZES) == (40 if DALI_IS_EXPECTED else 35)


@pytest.mark.parametrize("augment", AUGMENTS)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_decided_and_computed_is_the_same(
    backend: str, world_size: int, augment: str, divisible: str, wanted: Wanted, data_of: Callable[[Config], Data]
) -> None:
    config = make_config(divisible, backend=backend, augment=AUGMENTS[augment])
    ranks = Ranks(config, data_of(config), world_size)
    for epoch in range(2):
        assert list(ranks.steps()) == wanted(backend, augment)[epoch]


def test_every_operation_is_on_and_changes_pixels_alike_by_kernels_and_by_torchvision(
    wanted: Wanted, divisible: str, data_of: Callable[[Config], Data]
) -> None:
    drawn, batches = {}, {}
    for backend in ("workers_0", "threads_1"):
        config = make_config(divisible, backend=backend, augment=OPERATED)
        ranks = Ranks(config, data_of(config), 1)
        batches[backend] = torch.cat([batch.inputs[0] for batch in ranks.loaders[0]])
        drawn[backend] = {code for plan, _, _ in ranks.decided for code in np.unique(plan.operations.codes_NK).tolist()}
    assert drawn["workers_0"] == drawn["threads_1"] == {int(operation) for operation in Operation}
    by_torchvision, by_kernels = wanted("workers_0", "operations"), wanted("threads_1", "operations")
    assert [step.decided for step in by_torchvision[0]] == [step.decided for step in by_kernels[0]]
    difference = (255 * 0.25 * (batches["workers_0"] - batches["threads_1"])).abs()
    assert 0 < difference.mean() < 0.5  # over a dozen operations in a row
    plain = wanted("threads_1", "geometry")
    assert all(step.pixels != other.pixels for step, other in zip(plain[0], by_kernels[0], strict=True))


def test_each_sample_comes_exactly_once_where_the_batch_divides_and_at_most_once_elsewhere(
    wanted: Wanted, ragged: str, data_of: Callable[[Config], Data]
) -> None:
    epochs = wanted("threads_1", "operations")
    for steps in epochs:
        assert sorted(itertools.chain(*(step.ids for step in steps))) == list(range(3 * GLOBAL_BATCH))
    assert epochs[0] != epochs[1]
    config = make_config(ragged)
    ids = list(itertools.chain(*(step.ids for step in Ranks(config, data_of(config), 7).steps())))
    assert len(set(ids)) == len(ids) == 6 * GLOBAL_BATCH


@pytest.mark.parametrize("backend", BACKENDS)
def test_evaluation_counts_every_sample_exactly_once(
    backend: str, ragged: str, data_of: Callable[[Config], Data]
) -> None:
    config = make_config(ragged, backend=backend)
    for world_size in (1, 3, 8):
        counted: list[int] = []
        num_steps = set()
        for rank in range(world_size):
            place = Place(torch.device("cpu"), torch.float32, rank, world_size, 2)
            loader = build_evaluation_loader(config, data_of(config), "train", place=place, show_progress=False)
            batches = list(loader)
            num_steps.add(len(batches))
            counted += itertools.chain(*(batch.ids_N[batch.valid_N].tolist() for batch in batches))
        assert sorted(counted) == list(range(6 * GLOBAL_BATCH + 5))
        assert len(num_steps) == 1


@pytest.mark.parametrize("augment", [AugmentConfig(crop="rrc", flip="random"), AugmentConfig(repeats=3, crop="rrc")])
def test_crops_and_repeats_are_the_same_too(
    augment: AugmentConfig, divisible: str, data_of: Callable[[Config], Data]
) -> None:
    """With a resize, so pixels are compared by the contract test; here it is what was decided."""
    seen = set()
    for backend, world_size in (("threads_4", 1), (list(BACKENDS)[-1], 3), ("resident", 8), ("workers_0", 7)):
        config = make_config(divisible, backend=backend, augment=augment)
        ranks = Ranks(config, data_of(config), world_size)
        total = hashlib.sha256()
        for batches in zip(*ranks.loaders, strict=True):
            for field in ("ids_N", "windows_N4", "flips_N"):
                total.update(np.concatenate([getattr(plan, field) for plan, _, _ in ranks.decided]).tobytes())
            ranks.decided.clear()
            total.update(torch.cat([batch.labels_N for batch in batches]).numpy().tobytes())
        seen.add(total.hexdigest())
    assert len(seen) == 1


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_run_stopped_at_100_random_points_continues_exactly_elsewhere(
    augment: str, ragged: str, data_of: Callable[[Config], Data]
) -> None:
    """With operations, pixels are compared where they are the kernels', as in the run that was not stopped."""
    rng = random.Random(0)
    start = make_config(ragged, augment=AUGMENTS[augment])
    straight = Ranks(start, data_of(start), 1)
    epochs = [list(straight.steps()) for _ in range(2)]
    made: dict[tuple[str, int], Ranks] = {}

    def same(steps: list[Step], ranks: Ranks, wanted_steps: list[Step]) -> bool:
        by_torchvision = augment == "operations" and ranks.backend.startswith("workers")
        return [step[: 2 if by_torchvision else 3] for step in steps] == [
            step[: 2 if by_torchvision else 3] for step in wanted_steps
        ]

    def anywhere() -> Ranks:
        key = (rng.choice(list(BACKENDS)), rng.choice(WORLD_SIZES))
        if key not in made:
            gc.collect()  # a DALI pipeline that is garbage must not be collected in a worker process: it crashes
            config = make_config(ragged, backend=key[0], augment=AUGMENTS[augment])
            made[key] = Ranks(config, data_of(config), key[1])
            made[key].backend = key[0]
        return made[key]

    state = straight.loaders[0].state_dict()
    for _ in range(100):
        epoch, stop = rng.randrange(2), rng.randrange(1, 6)
        before, after = anywhere(), anywhere()
        before.go_to({**state, "epoch": epoch, "samples_consumed": (stop - 1) * GLOBAL_BATCH})
        running = before.steps()
        assert same([next(running)], before, epochs[epoch][stop - 1 : stop])
        stopped_at = rng.choice(before.loaders).state_dict()
        assert stopped_at == {**state, "epoch": epoch, "samples_consumed": stop * GLOBAL_BATCH}
        del running
        after.go_to(stopped_at)
        assert same(list(after.steps()), after, epochs[epoch][stop:])


def test_the_state_of_another_seed_data_set_or_plan_is_refused_with_the_reason(
    divisible: str, ragged: str, data_of: Callable[[Config], Data]
) -> None:
    config = make_config(ragged)
    loader = Ranks(config, data_of(config), 1).loaders[0]
    other_seed = make_config(ragged, seed=6)
    other_data = make_config(divisible)
    for other, reason in ((other_seed, "run.seed has changed"), (other_data, "the data has changed")):
        state = Ranks(other, data_of(other), 1).loaders[0].state_dict()
        with pytest.raises(ValueError, match=reason):
            loader.load_state_dict(state)
    with pytest.raises(ValueError, match="this version of the program draws samples and crops differently"):
        loader.load_state_dict({**loader.state_dict(), "plan_version": 0})


# --- other kinds of data sets, and samples that are met several times an epoch

KINDS = ("manifest", "weighted", "balanced", "own_held", "own_on_demand")
FEW_WORLD_SIZES = (1, 2, 3)


@pytest.fixture(scope="module")
def table(divisible: str) -> str:
    """The files of `divisible` in another order, with labels and weights of their own."""
    names = sorted(path.relative_to(divisible).as_posix() for path in Path(divisible).rglob("*.jpg"))
    random.Random(0).shuffle(names)
    rows = [f"{name},{'xyz'[min(number % 7, 2)]},{number % 5}" for number, name in enumerate(names)]
    path = Path(divisible) / "table.csv"
    path.write_text("\n".join(["path,label,weight", *rows]) + "\n")
    return str(path)


def config_of(kind: str, table: str, *, backend: str) -> Config:
    config = make_config(table, backend=backend)
    if kind.startswith("own"):
        data = DataConfig(dataset="own_sets:Plain", args={"count": 3 * GLOBAL_BATCH}, val_frac=0.0)
        max_gib = 1.0 if kind == "own_held" else 0.0
        config = replace_section(config, "loader", resident_max_gib=max_gib)
    else:
        sampling = kind if kind in ("weighted", "balanced") else "shuffled"
        data = DataConfig(dataset="manifest", root=table, val_frac=0.0, sampling=sampling, class_weights={"x": 1.5})
    config = dataclasses.replace(config, data=data)
    return replace_section(config, "augment", repeats=2) if kind == "weighted" else config


def test_every_kind_of_data_set_is_tried() -> None:
    assert len(KINDS) * len(BACKENDS) * len(FEW_WORLD_SIZES) == (120 if DALI_IS_EXPECTED else 105)


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_data_sets_are_as_exact(kind: str, table: str) -> None:
    data = build_data(config_of(kind, table, backend="workers_0"), show_progress=False)
    assert type(data.train).__name__ == {"own_held": "ArraySource", "own_on_demand": "OwnSource"}.get(
        kind, "FolderSource"
    )
    wanted: list[Step] | None = None
    for backend, world_size in itertools.product(BACKENDS, FEW_WORLD_SIZES):
        gc.collect()  # see above: of DALI's pipelines
        config = config_of(kind, table, backend=backend)
        ranks = Ranks(config, data, world_size)
        steps = list(ranks.steps())
        wanted = wanted or steps
        assert steps == wanted, (backend, world_size)
        ranks.go_to({**ranks.loaders[0].state_dict(), "epoch": 0, "samples_consumed": 2 * GLOBAL_BATCH})
        assert list(ranks.steps()) == wanted[2:], (backend, world_size)
    assert wanted is not None
    counts = np.bincount(list(itertools.chain(*(step.ids for step in wanted))), minlength=3 * GLOBAL_BATCH)
    assert (counts == 1).all() == kind.startswith("own")
