"""The graph as a GPU gets it, looked at without one; and what DALI is told about memory and decoders."""

import inspect
import os
from typing import Any

import numpy as np
import pytest
import torch
from executor_builders import DALI_IS_EXPECTED

if not DALI_IS_EXPECTED:
    pytest.skip("no builds of DALI for this system", allow_module_level=True)

import nvidia.dali

from configs.schema import LoaderConfig
from pipelines.executors import dali_graph
from pipelines.executors.dali import DaliExecutor, decoder_hint
from pipelines.executors.dali_graph import GpuDecoder, GraphSettings, build_pipeline, define_pipeline
from pipelines.operations.vocabulary import NATIVE_OPERATIONS

CUDA = torch.device("cuda", 3)
DECODER = GpuDecoder(0.75, 400, 600)
EVERYTHING = GraphSettings(3, "bilinear", NATIVE_OPERATIONS, 2, (1, 2, 3))


def define(settings: GraphSettings, device: torch.device) -> Any:
    pipeline = define_pipeline(settings, device=device, decoder=DECODER, batch_size=8, num_threads=2, depth=2)
    pipeline._build_graph()  # what `build` does first; what follows needs the GPU
    return pipeline


def operators(pipeline: Any) -> list[tuple[str, str]]:
    """Name and device of each operator."""
    return [(op._op._init_args.get("_display_name", op.name), op._op._device) for op in pipeline._ops]


@pytest.mark.parametrize("settings", [EVERYTHING, GraphSettings(1, "bicubic"), EVERYTHING._replace(channels=1)])
def test_on_a_gpu_pixels_are_decoded_and_changed_there_and_only_numbers_on_the_cpu(settings: GraphSettings) -> None:
    found = operators(define(settings, CUDA))
    assert [device for name, device in found if name == "image_slice"] == ["mixed"]
    pixels = {"resize", "slice", "flip", "warp_affine", "brightness", "brightness_contrast", "gaussian_blur", "mean"}
    pixels |= {"coord_transform", "color_space_conversion"} if settings.channels == 3 else set()
    seen = {name for name, _ in found} & pixels
    assert seen == (pixels if settings.operations else {"resize", "flip"})
    assert {device for name, device in found if name in pixels} == {"gpu"}
    assert {device for name, device in found if "Merge" in name} <= {"gpu"}, "what conditionals join"


def test_on_the_cpu_nothing_of_the_graph_needs_a_gpu() -> None:
    assert {device for _, device in operators(define(EVERYTHING, torch.device("cpu")))} == {"cpu"}


def test_a_gpus_decoder_is_told_its_part_of_a_batch_and_the_size_of_images() -> None:
    (said,) = [op._op._init_args for op in define(EVERYTHING, CUDA)._ops if op._op._device == "mixed"]
    wanted = {"hw_decoder_load": 0.75, "preallocate_height_hint": 400, "preallocate_width_hint": 600}
    assert {name: said[name] for name in wanted} == wanted
    assert said["jpeg_fancy_upsampling"] is True
    assert said["affine"] is False


def test_a_pipeline_goes_to_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert define(EVERYTHING, CUDA).device_id == 3
    assert define(EVERYTHING, CUDA).num_threads == 2
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert define(EVERYTHING, torch.device("cuda")).device_id == 1
    assert define(EVERYTHING, torch.device("cpu")).device_id is None


def affinities() -> dict[int, set[int]]:
    """The cores that each thread of this process may use, by its number."""
    return {int(task): os.sched_getaffinity(int(task)) for task in os.listdir("/proc/self/task")}


def test_dalis_threads_run_on_the_cores_near_its_gpu_and_no_others_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Built for the CPU, and told of cores near it."""
    before, core = affinities(), {min(os.sched_getaffinity(0))}
    monkeypatch.setattr(dali_graph, "cores_near", lambda device: core)
    pipeline = build_pipeline(
        GraphSettings(3, "bilinear"), device=torch.device("cpu"), decoder=DECODER, batch_size=8, num_threads=2, depth=2
    )
    after = affinities()
    new = [cores for task, cores in after.items() if task not in before]
    assert len(new) >= 2
    assert all(cores == core for cores in new)
    assert all(after[task] == cores for task, cores in before.items() if task in after)
    del pipeline


def test_by_default_an_images_place_in_its_batch_does_not_say_who_decodes_it() -> None:
    assert inspect.signature(DaliExecutor).parameters["hw_decoder_load"].default == LoaderConfig().hw_decoder_load == 1


def test_memory_is_kept_for_the_size_that_nearly_all_images_have() -> None:
    sizes_N2 = np.full((1000, 2), (375, 500), dtype=np.int32)
    sizes_N2[:5] = (4000, 6000)
    assert decoder_hint(sizes_N2, num_rows=256) == (375, 500)
    sizes_N2[:20] = (480, 640)
    assert decoder_hint(sizes_N2, num_rows=256) == (480, 640)


def test_memory_is_kept_for_a_gib_at_most() -> None:
    sizes_N2 = np.full((10, 2), (4000, 6000), dtype=np.int32)
    assert decoder_hint(sizes_N2, num_rows=1) == (4000, 6000)
    height, width = decoder_hint(sizes_N2, num_rows=256)
    assert 0.99 * 2**30 < 256 * 3 * height * width <= 2**30
    assert height / width == pytest.approx(4 / 6, abs=0.01)


def test_sizes_that_are_not_known_do_not_count() -> None:
    assert decoder_hint(np.zeros((3, 2), dtype=np.int32), num_rows=8) == (1, 1)
    assert decoder_hint(np.array([[0, 0], [20, 30]], dtype=np.int32), num_rows=8) == (20, 30)


def test_libraries_that_dali_misses_beside_a_gpu_and_this_graph_does_not_need_are_not_complained_of(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Warnings are errors here."""
    build = nvidia.dali.Pipeline.build

    def build_as_on_a_gpu(pipeline: Any) -> None:
        nvidia.dali.backend.cuda_checked = False
        nvidia.dali.backend.check_cuda_runtime()
        build(pipeline)

    monkeypatch.setattr(nvidia.dali.backend, "GetCudaVersion", lambda: 13000)
    monkeypatch.setattr(nvidia.dali.backend, "GetCufftVersion", lambda: -1)
    monkeypatch.setattr(nvidia.dali.backend, "GetNppVersion", lambda: -1)
    monkeypatch.setattr(nvidia.dali.Pipeline, "build", build_as_on_a_gpu)
    cpu = torch.device("cpu")
    build_pipeline(EVERYTHING, device=cpu, decoder=DECODER, batch_size=8, num_threads=2, depth=2)
    monkeypatch.setattr(nvidia.dali.backend, "GetCudaVersion", lambda: -1)
    with pytest.raises(Warning, match="GPU is not available"):
        build_pipeline(EVERYTHING, device=cpu, decoder=DECODER, batch_size=8, num_threads=2, depth=2)
