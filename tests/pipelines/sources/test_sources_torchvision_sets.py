"""torchvision's data sets: every row of the table against torchvision's own items, from tiny files laid out alike."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from torchvision import datasets
from torchvision.datasets import utils as torchvision_utils
from torchvision_layouts import LAYOUTS

from pipelines.source import ArraySource, Source
from pipelines.sources import download, torchvision_sets
from pipelines.sources.folder import FolderSource
from pipelines.sources.torchvision_sets import SETS, load_torchvision

IN_MEMORY = {
    *("cifar10", "cifar100", "mnist", "fashion_mnist", "kmnist", "qmnist", "usps", "semeion", "svhn", "stl10"),
    *("emnist_balanced", "emnist_byclass", "emnist_bymerge", "emnist_letters", "emnist_digits", "emnist_mnist"),
}


@pytest.fixture
def any_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    """The files are not those that torchvision has sums of."""
    monkeypatch.setattr(torchvision_utils, "check_md5", lambda *arguments, **options: True)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", fail)


def items_of(source: Source) -> list[tuple[int, bytes]]:
    pixels = [source.read_image(row, channels=1 if source.is_grey else 3) for row in range(len(source.labels_N))]
    return sorted((int(label), one.tobytes()) for label, one in zip(source.labels_N, pixels, strict=True))


def test_every_row_of_the_table_is_laid_out_and_read() -> None:
    assert set(LAYOUTS) == set(SETS)
    assert len(SETS) == 32


@pytest.mark.usefixtures("any_md5", "no_network")
@pytest.mark.parametrize("name", SETS)
def test_pixels_labels_and_splits_are_torchvisions(name: str, tmp_path: Path) -> None:
    LAYOUTS[name](tmp_path)
    sources = load_torchvision(name, root=tmp_path, show_progress=False)
    assert list(sources) == list(SETS[name].splits)
    assert all(isinstance(one, ArraySource if name in IN_MEMORY else FolderSource) for one in sources.values())
    for split, source in sources.items():
        theirs = getattr(datasets, SETS[name].class_name)(str(tmp_path), **SETS[name].splits[split], download=False)
        first = 1 if name == "emnist_letters" else 0
        wanted = [(int(label) - first, np.asarray(image).tobytes()) for image, label in theirs]
        assert items_of(source) == sorted(wanted)
        assert len(wanted) >= 2
        assert sorted(set(sources["train"].labels_N.tolist())) == list(range(len(source.class_names)))
        named = [each if isinstance(each, str) else each[0] for each in getattr(theirs, "classes", [])][first:]
        assert list(source.class_names) == named or not named or name.startswith("caltech")


@pytest.mark.parametrize("name", SETS)
def test_every_class_is_torchvisions_and_takes_the_arguments(name: str) -> None:
    made = getattr(datasets, SETS[name].class_name)
    for arguments in SETS[name].splits.values():
        try:
            inspect.signature(made).bind("root", **arguments, download=False)
        except TypeError as error:
            pytest.fail(f"{made} does not take {arguments}: {error}")


@pytest.mark.parametrize("name", SETS)
def test_without_network_the_message_says_what_to_do(name: str, tmp_path: Path, no_network: None) -> None:
    with pytest.raises(OSError, match="cannot be had: it is not in") as caught:
        load_torchvision(name, root=tmp_path / "none", show_progress=False)
    told = str(caught.value)
    assert told.startswith(f"{name} cannot be had: it is not in {tmp_path}/none, and it could not be downloaded (")
    assert (
        f"run `python -m pipelines.sources.download {name} --root DIR`, and copy {SETS[name].holds} from there" in told
    )


def test_the_whole_message_without_network(tmp_path: Path, no_network: None) -> None:
    with pytest.raises(OSError, match="cifar10") as caught:
        load_torchvision("cifar10", root=tmp_path, show_progress=False)
    assert str(caught.value) == (
        f"cifar10 cannot be had: it is not in {tmp_path}, and it could not be downloaded (URLError: <urlopen error "
        "Name or service not known>). On a machine with network run `python -m pipelines.sources.download cifar10 "
        f"--root DIR`, and copy cifar-10-batches-py/ from there into {tmp_path}; or name the folder that has it "
        "by --data.root."
    )


def test_a_file_in_place_of_the_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "cifar.tar.gz").write_bytes(b"")
    wanted = (
        f"data.root={tmp_path}/cifar.tar.gz is a file; give the folder that holds cifar-10-batches-py/, or is to hold"
    )
    with pytest.raises(ValueError, match=wanted):
        load_torchvision("cifar10", root=tmp_path / "cifar.tar.gz", show_progress=False)


def test_missing_and_damaged_files_are_named(tmp_path: Path, no_network: None) -> None:
    LAYOUTS["cifar10"](tmp_path)  # with other sums than torchvision's
    (tmp_path / "cifar-10-batches-py/test_batch").unlink()
    with pytest.raises(OSError, match="is there, but not whole") as caught:
        load_torchvision("cifar10", root=tmp_path, show_progress=False)
    assert "data_batch_1 is damaged; data_batch_2 is damaged; " in str(caught.value)
    assert "test_batch is missing)" in str(caught.value)


@pytest.mark.usefixtures("any_md5", "no_network")
def test_files_that_are_all_there_but_cannot_be_read_are_to_be_removed(tmp_path: Path) -> None:
    LAYOUTS["mnist"](tmp_path)
    file = tmp_path / "MNIST/raw/t10k-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(OSError, match=r"^mnist: test in .* cannot be read .*; remove .*/MNIST/raw and start again"):
        load_torchvision("mnist", root=tmp_path, show_progress=False)


@pytest.mark.usefixtures("any_md5")
def test_an_archive_unpacked_in_part_is_noticed_where_a_class_is_empty(tmp_path: Path) -> None:
    LAYOUTS["gtsrb"](tmp_path)
    (tmp_path / "gtsrb/GTSRB/Training/00042/a.ppm").unlink()
    (tmp_path / "gtsrb/GTSRB/Training/00042").rmdir()
    with pytest.raises(ValueError, match=r"has no images of 1 classes: 42; it may be unpacked in part: remove it"):
        load_torchvision("gtsrb", root=tmp_path, show_progress=False)


@pytest.mark.usefixtures("any_md5")
def test_what_is_not_there_is_downloaded_by_torchvision_with_few_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    inner, asked = torchvision_utils.tqdm, []

    def download_here(self: datasets.CIFAR10) -> None:
        asked.append(self.root)
        print("a line of torchvision's")
        with torchvision_utils.tqdm(total=1000) as bar:
            for _ in range(1000):
                bar.update()
        LAYOUTS["cifar10"](tmp_path)

    monkeypatch.setattr(datasets.CIFAR10, "download", download_here)
    sources = load_torchvision("cifar10", root=tmp_path, show_progress=True)
    assert [len(source.labels_N) for source in sources.values()] == [50, 10]
    assert asked == [str(tmp_path)]
    out, err = capfd.readouterr()
    assert out == f"cifar10: train is not in {tmp_path}, or not whole; downloading\n"
    assert err == "a line of torchvision's\n"
    assert torchvision_utils.tqdm is inner


@pytest.mark.usefixtures("any_md5")
def test_image_files_are_indexed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LAYOUTS["dtd"](tmp_path / "data")
    seen: list[str] = []
    inner: Callable[..., Any] = torchvision_sets.index_files

    def watch(files: Any, *, key: Path, **options: Any) -> Any:
        seen.append(key.name.partition("#")[2])
        return inner(files, key=key, **options)

    monkeypatch.setattr(torchvision_sets, "index_files", watch)
    for _ in range(2):
        sources = load_torchvision("dtd", root=tmp_path / "data", show_progress=False, cache=tmp_path / "cache")
    assert seen == ["dtd#train", "dtd#val", "dtd#test"] * 2
    assert len(list((tmp_path / "cache").glob("*.index"))) == 3
    assert sources["train"].class_names == ("banded", "woven")


@pytest.mark.usefixtures("any_md5", "no_network")
def test_the_command_downloads_or_says_why_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    LAYOUTS["usps"](tmp_path)
    assert download.main(["usps", "--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"usps: 20 train, 20 test; in {tmp_path}, to be used by --data.dataset")
    assert download.main(["dtd", "--root", str(tmp_path)]) == 1
    assert "dtd cannot be had" in capsys.readouterr().err


def test_the_folder_for_downloads_lies_in_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EXACTVISION_CACHE", "/somewhere")
    assert torchvision_sets.default_root() == Path("/somewhere/datasets")
