"""On a GPU the executors and the tail make what they make on the CPU. Skipped, saying so, where there is none."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED, EXECUTORS, Setting
from PIL import Image

from pipelines.effects import EffectSettings, Erasing, Mixing, draw_effects
from pipelines.executors.resident import ResidentExecutor, load_store
from pipelines.operations.vocabulary import NATIVE_OPERATIONS, Operation, Operations
from pipelines.parallel import RowPool
from pipelines.plan import Augmentation, Fit, Plan, plan_training
from pipelines.source import Source
from pipelines.sources.scan import scan_folder
from pipelines.tail import Tail
from pipelines.transfer import Transfer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine"),
]
CUDA = torch.device("cuda", 0)
FITS = [Fit("crop", 1.0), Fit("letterbox", 1.0, border=(124, 7, 255))]
AUGMENTATIONS = [
    Augmentation(crop="rrc", flip="random", vertical_flip_prob=0.5),
    Augmentation(crop="pad", pad_px=4, flip="random", vertical_flip_prob=0.5),
    Augmentation(flip="random", vertical_flip_prob=0.5),
]


@pytest.fixture
def source(write_folder: Callable[..., Path]) -> Source:
    root = write_folder({"train": {"a": 20, "b": 20}}, sizes=[(90, 120)])
    for file in sorted(root.rglob("*.png")):
        with Image.open(file) as image:
            image.save(file.with_suffix(".jpg"), quality=90)
        file.unlink()
    return scan_folder(str(root), show_progress=False)["train"]


def draw_plans(source: Source, augmentation: Augmentation, *, fit: Fit, size_px: int) -> list[Plan]:
    return [
        plan_training(
            ids,
            copies_N=np.zeros_like(ids),
            sizes_N2=source.sizes_N2[ids],
            fit=fit,
            augmentation=augmentation,
            seed=0,
            epoch=0,
            size_px=size_px,
        )
        for ids in np.split(np.random.default_rng(0).permutation(40), 5)
    ]


@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.fit)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda augmentation: augmentation.crop)
def test_resident_on_the_gpu_makes_the_pixels_of_the_cpu(source: Source, augmentation: Augmentation, fit: Fit) -> None:
    store = load_store(source, channels=3, windows=None, interpolation="bilinear", show_progress=False)
    on_gpu = store._replace(images_NHWC=store.images_NHWC.to(CUDA))
    executors = [
        ResidentExecutor(each, interpolation="bilinear", windows="drawn", pool=RowPool(1)) for each in (store, on_gpu)
    ]
    plans = draw_plans(source, augmentation, size_px=64, fit=fit)
    for one, two in zip(*(executor.run(iter(plans)) for executor in executors), strict=True):
        difference = (one.images_NHWC.int() - two.images_NHWC.cpu().int()).abs()
        assert difference.max() <= 1
        assert difference.float().mean() < 0.01


@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of DALI for this system")
@pytest.mark.parametrize("fit", FITS, ids=lambda fit: fit.fit)
@pytest.mark.parametrize("augmentation", AUGMENTATIONS, ids=lambda augmentation: augmentation.crop)
def test_dali_on_the_gpu_is_near_the_reference(source: Source, augmentation: Augmentation, fit: Fit) -> None:
    from pipelines.executors.dali import DaliExecutor

    dali = DaliExecutor(source, channels=3, interpolation="bilinear", device=CUDA, num_threads=2, num_prefetched=2)
    reference = EXECUTORS["reference_0_workers"](source, Setting())
    plans = draw_plans(source, augmentation, size_px=64, fit=fit)
    for one, two in zip(reference.run(iter(plans)), dali.run(iter(plans)), strict=True):
        assert not two.bad
        assert two.images_NHWC.device.type == "cuda"
        assert (one.images_NHWC.int() - two.images_NHWC.cpu().int()).abs().float().mean() < 2


@pytest.mark.skipif(not DALI_IS_EXPECTED, reason="no builds of DALI for this system")
@pytest.mark.parametrize("operation", sorted(NATIVE_OPERATIONS))
def test_the_operations_of_dali_on_the_gpu_are_those_of_the_cpu(source: Source, operation: Operation) -> None:
    from pipelines.executors.dali import DaliExecutor

    values = {Operation.AFFINE: [20, 4, -6, 1.1, 5, -5], Operation.GAUSSIAN_BLUR: [1.5, 0, 0, 0, 0, 0]}
    codes_NK, values_NKP = np.zeros((8, 2), dtype=np.int8), np.zeros((8, 2, 6))
    codes_NK[::2, 1], values_NKP[::2, 1] = operation, values.get(operation, [1.4, 0, 0, 0, 0, 0])
    plans = [
        plan._replace(operations=Operations(codes_NK, values_NKP))
        for plan in draw_plans(source, Augmentation(crop="rrc", flip="random"), size_px=64)
    ]
    on_cpu, on_gpu = (
        DaliExecutor(
            source,
            channels=3,
            interpolation="bilinear",
            device=device,
            num_threads=2,
            num_prefetched=2,
            operations=NATIVE_OPERATIONS,
            num_slots=2,
        )
        for device in (torch.device("cpu"), CUDA)
    )
    for one, two in zip(on_cpu.run(iter(plans)), on_gpu.run(iter(plans)), strict=True):
        assert two.images_NHWC.device.type == "cuda"
        assert (one.images_NHWC.int() - two.images_NHWC.cpu().int()).abs().float().mean() < 2


def test_the_transfer_and_the_tail_give_on_the_gpu_what_the_cpu_gives() -> None:
    rng = np.random.default_rng(0)
    settings = EffectSettings(Mixing(0.4, 1.0, 0.8), Erasing(0.5), noise_std=0.05)
    tails = [
        Tail(mean=[0.4] * 3, std=[0.2] * 3, device=device, dtype=torch.float32, pool=RowPool(1))
        for device in (torch.device("cpu"), CUDA)
    ]
    transfer, kept = Transfer(CUDA), []
    slot = torch.empty(16, 40, 40, 3, dtype=torch.uint8, pin_memory=True)
    for step in range(12):  # the slot and the ring are used over and over
        slot.copy_(torch.from_numpy(rng.integers(0, 256, slot.shape, dtype=np.uint8)))
        ids_N, zeros_N = np.arange(16), np.zeros(16, dtype=np.int64)
        plan = Plan(ids_N, np.zeros((16, 4), np.int64), np.zeros((16, 2), np.int64), zeros_N > 0, zeros_N > 0, 40)
        effects = draw_effects(
            plan, copies_B=zeros_N, positions_B=16 * step + ids_N, settings=settings, seed=0, epoch=0
        )
        (wanted,) = tails[0](slot, effects)
        (found,) = tails[1](transfer.start(slot), effects)
        transfer.mark_read()
        transfer.wait_for_copy()
        kept.append((wanted.clone(), found))
    for wanted, found in kept:
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert torch.allclose(wanted, found.cpu(), atol=2e-4)
