"""Packed data sets that are damaged: what is said at the start, and what training does about a sample."""

import dataclasses
import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packed_cases import config_of, flip_byte, open_folder, opened, pack_folder, write_many, write_varied

from configs.schema import InputSpec, LoaderConfig, RunConfig, TrainConfig
from pipelines.build import Place, build_data, build_evaluation_loader, build_training_loader
from pipelines.scratch import Arena, Scratch
from pipelines.sources.packed import open_packed
from pipelines.sources.packed_index import load_packed_index, save_packed_index


@pytest.fixture
def packed(tmp_path: Path) -> Path:
    pack_folder(write_many(tmp_path / "r", 24), tmp_path / "d", shard_mib=0.02)
    return tmp_path / "d"


def change_dataset(root: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    said = json.loads((root / "dataset.json").read_text())
    change(said)
    (root / "dataset.json").write_text(json.dumps(said))


def refused(root: Path, wanted: str, kind: type[Exception] = ValueError) -> None:
    with pytest.raises(kind, match=re.escape(wanted)):
        open_packed(str(root))


# --- at the start


def test_a_missing_a_short_and_a_long_shard_are_told_before_training(packed: Path) -> None:
    shard = packed / "train-00001.tar"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-512])
    refused(packed, f"{shard} has {len(whole) - 512:,} bytes, but {len(whole):,} were packed; copy it again.")
    shard.write_bytes(whole + b"0")
    refused(packed, f"has {len(whole) + 1:,} bytes, but {len(whole):,} were packed")
    shard.unlink()
    refused(packed, f"{shard}: FileNotFoundError: No such file or directory; copy it again from where")


def test_a_broken_index_is_told(packed: Path, tmp_path: Path) -> None:
    index = packed / "train.index"
    whole = index.read_bytes()
    for broken in (b"", b"text", whole[:-1], whole[: len(whole) // 2], whole + b"0"):
        index.write_bytes(broken)
        refused(packed, f"{index}: it is not whole; copy it again, or pack again.")
    for place in np.random.default_rng(0).integers(0, len(whole) - 132, 20).tolist():
        index.write_bytes(whole)
        flip_byte(index, place)
        refused(packed, f"{index}: it is not whole")
    index.unlink()
    refused(packed, f"{index}: FileNotFoundError")
    pack_folder(write_many(tmp_path / "more", 60), tmp_path / "e", shard_mib=0.011)
    index.write_bytes((tmp_path / "e" / "train.index").read_bytes())
    refused(packed, f"{index}: it is that of another data set than dataset.json")


def say_otherwise(path: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Makes an index say something else, its checksum right."""
    index = load_packed_index(path)
    save_packed_index(dataclasses.replace(index, **{name: change(np.array(getattr(index, name)))}), path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("sizes_N2", lambda values: values[:3]),
        ("names_N", lambda values: values[:2]),
        ("weights_N", lambda values: np.ones(3)),
        ("offsets_N", lambda values: values.astype(np.float64)),
        ("segment_lengths_L", lambda values: values.astype(np.uint8)),
        ("sizes_N2", lambda values: -values),
        ("offsets_N", lambda values: -values),
        ("num_bytes_N", lambda values: -values),
        ("segment_starts_N", lambda values: values + 2**40),
        ("segment_starts_N", lambda values: values - 1),
        ("cuts_N5", lambda values: values * (1, 1, 1, 0, 1)),
        ("cuts_N5", lambda values: values * (1, 1, 1, 1, -1)),
        ("cuts_N5", lambda values: values * (1, 1, 1000, 1, 1)),
        ("cuts_N5", lambda values: values * (-1, 1, 1, 1, 1)),
        ("cuts_N5", lambda values: values * (10**4, 1, 1, 1, 1)),
        ("cuts_N5", lambda values: values * (1, 10**4, 1, 1, 1)),
    ],
)
def test_an_index_that_says_what_cannot_be_is_told(tmp_path: Path, name: str, change: Callable[[Any], Any]) -> None:
    pack_folder(write_varied(tmp_path / "r"), tmp_path / "d", "jpeg")
    path = tmp_path / "d" / "train.index"
    say_otherwise(path, name, lambda values: values)
    open_packed(str(tmp_path / "d"))
    say_otherwise(
        path, name, lambda values: change(values).astype(values.dtype) if name == "cuts_N5" else change(values)
    )
    with pytest.raises(ValueError, match=r"train\.index: (its|what it says of sample \d+ cannot be).*; copy it again"):
        open_packed(str(tmp_path / "d"))


def test_segments_that_reach_beyond_their_image_are_told_and_not_followed(tmp_path: Path) -> None:
    pack_folder(write_varied(tmp_path / "r"), tmp_path / "d", "jpeg")
    say_otherwise(tmp_path / "d" / "train.index", "segment_lengths_L", lambda values: values | 0xF000)
    source = opened(tmp_path / "d")["train"]
    source.checked_M[:] = True
    ids = np.flatnonzero(source.index.cuts_N5[:, 2]).tolist()
    windows = [(height // 2, width // 2, 9, 9) for height, width in source.sizes_N2[ids].tolist()]
    assert len(ids) >= 5
    found = list(source.read_windows(ids, windows, channels=3, scratch=Scratch(), least_px=None))
    assert [str(error) for error in found] == [
        "its segments reach beyond it: the index is not that of this file; pack again"
    ] * len(ids)
    with pytest.raises(ValueError, match="reach beyond it"):
        source.read_jpeg_part(ids[0], windows[0], scratch=Arena())


@pytest.mark.parametrize("name", ["../train-00000.tar", "/etc/passwd", "a/b.tar", "..", ".", ""])
def test_names_that_lead_elsewhere_are_refused(packed: Path, name: str) -> None:
    change_dataset(packed, lambda said: said["splits"]["train"][0].update(name=name))
    refused(packed, f"names {name!r}, which is not a plain file name; nothing outside {packed} is read.")


def test_names_of_splits_that_lead_elsewhere_are_refused(packed: Path) -> None:
    change_dataset(packed, lambda said: said["splits"].update({"../x": said["splits"].pop("train")}))
    refused(packed, "names '../x', which is not a plain file name")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (lambda said: said.update(version=7), "is of version 7, and this program reads 1; pack again."),
        (lambda said: said.update(format="other"), "is not that of a packed data set; give the folder that tools.pack"),
        (lambda said: said.pop("splits"), "is broken (KeyError: 'splits'); copy it again, or pack again."),
        (lambda said: said.update(splits=[1]), "is broken (AttributeError"),
        (lambda said: said["splits"]["train"][0].pop("name"), "is broken (TypeError"),
        (lambda said: said["splits"]["train"][0].update(name=7), "is broken (TypeError"),
        (lambda said: said.update(splits={}), "has no split train, only none"),
    ],
)
def test_a_dataset_json_that_cannot_be_used_is_told(packed: Path, change: Callable[..., Any], wanted: str) -> None:
    change_dataset(packed, change)
    refused(packed, wanted)


def test_a_dataset_json_that_is_none_and_a_folder_without_one_are_told(packed: Path, tmp_path: Path) -> None:
    (packed / "dataset.json").write_text("{")
    refused(packed, "dataset.json is not JSON (")
    (packed / "dataset.json").unlink()
    refused(packed, "has no dataset.json, so it is no packed data set", FileNotFoundError)
    refused(tmp_path / "nowhere", "is not a folder", FileNotFoundError)


# --- in training


def config_for(root: Path, **data: Any) -> Any:
    return dataclasses.replace(
        config_of(dataset="packed", root=str(root), val_frac=0.0, max_bad_frac=0.5, **data),
        input=InputSpec(size_px=32, channels=3, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        loader=LoaderConfig(backend="threads", num_threads=2, eval_batch_size_per_rank=8),
        train=TrainConfig(epochs=1, global_batch_size=8),
        run=RunConfig(select="last"),
    )


def damage(packed: Path, sample_id: int) -> str:
    source = opened(packed)["train"]
    start = int(source.index.offsets_N[sample_id] + source.index.num_bytes_N[sample_id] // 2)
    flip_byte(Path(source.shards.paths[source.index.shards_N[sample_id]]), start)
    return source.describe(sample_id)


PLACE = Place(torch.device("cpu"), torch.float32, 0, 1, 2)


def test_raise_stops_training_and_names_the_sample(packed: Path) -> None:
    name = damage(packed, 5)
    config = config_for(packed)
    data = build_data(config, show_progress=False)
    loader = build_training_loader(config, data, place=PLACE, show_progress=False)
    with pytest.raises(ValueError, match=re.escape(f"{name}: its bytes are not those that were packed; python -m")):
        list(loader)


def test_replace_puts_another_of_the_class_in_its_place(packed: Path) -> None:
    name = damage(packed, 5)
    config = config_for(packed, on_bad_sample="replace")
    data = build_data(config, show_progress=False)
    loader = build_training_loader(config, data, place=PLACE, show_progress=False)
    batches = list(loader)
    met = loader.take_bad_samples()
    assert [bad.name for bad in met] == [name]
    assert data.train.labels_N[met[0].replaced_by] == data.train.labels_N[5]
    assert met[0].replaced_by != 5
    ids = sorted(i for batch in batches for i in batch.ids_N.tolist())
    assert ids == sorted([i for i in range(24) if i != 5] + [met[0].replaced_by])


def test_exclude_leaves_it_out_of_evaluation(tmp_path: Path) -> None:
    root = write_many(tmp_path / "r", 24)
    (root / "test").symlink_to(root / "train")
    pack_folder(root, tmp_path / "d", shard_mib=0.02)
    source = opened(tmp_path / "d")["test"]
    flip_byte(Path(source.shards.paths[source.index.shards_N[7]]), int(source.index.offsets_N[7]) + 100)
    config = config_for(tmp_path / "d", on_bad_eval_sample="exclude")
    data = build_data(config, show_progress=False)
    loader = build_evaluation_loader(config, data, "test", place=PLACE, show_progress=False)
    counted = [i for batch in loader for i, valid in zip(batch.ids_N.tolist(), batch.valid_N, strict=True) if valid]
    assert sorted(counted) == [i for i in range(24) if i != 7]


def test_damage_is_found_once_even_where_only_a_window_is_asked_for(packed: Path) -> None:
    damage(packed, 5)
    source = opened(packed)["train"]
    with pytest.raises(ValueError, match="its bytes are not those that were packed"):
        source.read_image(5, channels=3, scratch=Scratch(), window=(0, 0, 4, 4))
    with pytest.raises(ValueError, match="its bytes are not those that were packed"):
        source.read_jpeg(5)


def test_a_shard_that_goes_or_shrinks_while_training_is_told(packed: Path) -> None:
    source = opened(packed)["train"]
    shard = Path(source.shards.paths[0])
    source.read_image(0, channels=3)
    with open(shard, "r+b") as file:
        file.truncate(600)
    with pytest.raises(ValueError, match=r"ends before byte .*: it has been cut short"):
        source.read_image(1, channels=3)
    shard.unlink()
    with pytest.raises(ValueError, match="FileNotFoundError: No such file or directory"):
        opened_anew(source).read_image(0, channels=3)


def opened_anew(source: Any) -> Any:
    return pickle.loads(pickle.dumps(source))


# --- parts


def test_part_of_it_and_a_copy_in_another_process_give_the_same(tmp_path: Path) -> None:
    pack_folder(write_varied(tmp_path / "r"), tmp_path / "d", "jpeg", long_side_px=160)
    source = opened(tmp_path / "d")["train"]
    ids = np.array([3, 0, 7])
    part, copy = source.take(ids), opened_anew(source)
    for place, i in enumerate(ids.tolist()):
        np.testing.assert_array_equal(part.read_image(place, channels=3), source.read_image(i, channels=3))
        np.testing.assert_array_equal(copy.read_image(i, channels=3), source.read_image(i, channels=3))
        assert part.describe(place) == source.describe(i)
        assert bytes(part.read_jpeg(place) or b"") == source.read_bytes(i)
    assert part.labels_N.tolist() == source.labels_N[ids].tolist()
    assert part.fingerprint() != source.fingerprint()
    assert source.take(np.arange(len(source.labels_N))).fingerprint() == source.fingerprint()
    assert part.take(np.array([1])).describe(0) == source.describe(0)
    source.expect(np.array([0, 1, 2]))


def test_the_fingerprint_is_that_of_the_samples_wherever_they_lie(packed: Path, tmp_path: Path) -> None:
    before = opened(packed)["train"].fingerprint()
    packed.rename(tmp_path / "moved")
    assert opened(tmp_path / "moved")["train"].fingerprint() == before
    pack_folder(tmp_path / "r", tmp_path / "one_shard", shard_mib=9)
    assert opened(tmp_path / "one_shard")["train"].fingerprint() == before
    pack_folder(tmp_path / "r", tmp_path / "raw", "raw")
    assert opened(tmp_path / "raw")["train"].fingerprint() != before


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["folder", "keep", "jpeg", "raw"])
def test_a_window_made_smaller_is_the_same_the_first_time_and_later(tmp_path: Path, kind: str, channels: int) -> None:
    root = write_varied(tmp_path / "r")
    if kind != "folder":
        pack_folder(root, tmp_path / "d", kind)
    source: Any = (open_folder(root) if kind == "folder" else opened(tmp_path / "d"))["train"]
    ids = list(range(len(source.labels_N)))
    windows = [(height // 3, width // 4, height // 2 + 1, width // 2 + 1) for height, width in source.sizes_N2.tolist()]

    def read() -> list[Any]:
        options: Any = {"channels": channels, "least_px": [(20, 20)] * len(ids)}
        return [pixels.copy() for pixels in source.read_windows(ids, windows, scratch=Scratch(), **options)]

    first, again = read(), read()
    assert all(np.array_equal(one, two) for one, two in zip(first, again, strict=True))
    num_smaller = sum(one.shape[:2] != window[2:] for one, window in zip(first, windows, strict=True))
    assert num_smaller == 0 if kind == "raw" else num_smaller >= 5
