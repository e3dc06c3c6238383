"""The names of all networks: listed, searched, and nearest to what is none of them."""

import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from torchvision import models

from models.build import MODELS
from models.list import main
from models.names import list_names, list_names_like, nearest_names

ROOT = Path(__file__).parents[2]


def test_all_names_of_all_kinds_are_there() -> None:
    names = list_names(list(MODELS))
    assert names[: len(MODELS)] == list(MODELS)
    assert (
        len(names) == len(set(names)) == len(MODELS) + len(models.list_models(module=models)) + len(timm.list_models())
    )
    assert {"torchvision/resnet18", "timm/convnext_tiny"} < set(names)
    assert not any("segmentation" in one or "fcn" in one or "video" in one for one in names if one.startswith("torchv"))


def test_a_pattern_finds_names_of_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["*resnet18*"]) == 0
    *found, last = capsys.readouterr().out.splitlines()
    assert found[0] == "torchvision/resnet18"
    assert "timm/resnet18" in found
    assert all("resnet18" in one for one in found)
    assert last == f"{len(found)} of {len(list_names(list(MODELS)))} networks"


def test_the_search_of_the_help_finds_what_timm_finds(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timm/*next*"]) == 0
    found = capsys.readouterr().out.splitlines()[:-1]
    assert found == [f"timm/{one}" for one in timm.list_models() if fnmatch.fnmatch(one, "*next*")]
    assert len(found) > 50


def test_without_a_pattern_our_own_are_listed_and_the_others_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    *own, last = capsys.readouterr().out.splitlines()
    assert own == list(MODELS)
    counts = len(MODELS), len(models.list_models(module=models)), len(timm.list_models())
    assert last == "{} of our own, {} torchvision/..., {} timm/...".format(*counts)


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("resnet18", "no network is called 'resnet18'; nearest: torchvision/resnet18, timm/resnet18, "),
        ("timm/*convnxet*", "no network is called 'timm/*convnxet*'; nearest: timm/"),
        ("zzzzzzzzzz", "no network is called 'zzzzzzzzzz'; write * for any letters, for example '*next*'"),
    ],
)
def test_a_pattern_without_a_match_is_answered_with_the_nearest(
    pattern: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([pattern]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(wanted)
    assert not printed.out


def test_it_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "models.list", "timm/test_re*"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[0] == "timm/test_resnet"


def test_the_nearest_names_are_at_most_five_and_those_of_a_zoo_stay_in_it() -> None:
    names = ["resnet", "a/resnet18", "b/resnet18", "b/resnet50", "b/resnet101", "b/resnet152", "b/resnet34", "b/vgg"]
    assert nearest_names("resnet18", names)[:2] == ["a/resnet18", "b/resnet18"]
    assert len(nearest_names("resnet1", names)) == 5
    assert all(one.startswith("b/") for one in nearest_names("b/resnt50", names))
    assert nearest_names("a/vgg", names) == ["b/vgg"]
    assert nearest_names("zzz", names) == []


def test_a_pattern_with_a_dot_finds_tags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["timm/resnet18.*"]) == 0
    found = capsys.readouterr().out.splitlines()[:-1]
    assert found == [f"timm/{one}" for one in timm.list_pretrained("resnet18.*")]
    assert len(found) > 5
    assert main(["torchvision/resnet50.*"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == [
        "torchvision/resnet50.IMAGENET1K_V1",
        "torchvision/resnet50.IMAGENET1K_V2",
    ]


def test_names_with_tags_are_offered_only_for_a_name_with_one() -> None:
    tagged = {"torchvision/resnet18.IMAGENET1K_V1", "timm/resnet18.a1_in1k"}
    assert tagged <= set(list_names_like("timm/resnet18.a1", list(MODELS)))
    assert list_names_like("timm/resnet18", list(MODELS)) == list_names(list(MODELS))
