"""Features: each sample once, by id, what goes into the last layer; computed once, and anew where that is needed."""

import dataclasses
import re

import pytest
import torch
from torch import nn

from configs.load import load_config, replace_section
from configs.schema import InputSpec
from engine import features as features_module
from engine.features import cached_features, compute_features, features_key
from engine.progress import Progress

NUM_CLASSES, WIDTH = 3, 8
SILENT = Progress(num_epochs=0, is_main=False)
SPEC = InputSpec(size_px=8, channels=1, mean=(0.25,), std=(0.5,))


class Network(nn.Module):
    """Rows (N, 5) -> body with BatchNorm and dropout -> features (N, 8) -> head; counts how often it is called."""

    def __init__(self, *, head=None, after=None):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Linear(5, WIDTH), nn.BatchNorm1d(WIDTH), nn.Tanh(), nn.Dropout(0.5))
        self.head = head or nn.Linear(WIDTH, NUM_CLASSES)
        self.after = after or nn.Identity()
        self.num_calls = 0
        self.double()

    def forward(self, rows):
        self.num_calls += 1
        features = self.body(rows)
        if isinstance(self.head, nn.Conv2d):
            return self.after(self.head(features[:, :, None, None]).flatten(1))
        return self.after(self.head(features))


@pytest.fixture
def beats():
    return []


@pytest.fixture
def compute(runtime, make_loader, data, beats):
    def compute(module, *, head="head", loader=None, **options):
        loader = loader or make_loader(*data, batch_size=7)
        return compute_features(
            module, loader, head=head, runtime=runtime, beat=lambda: beats.append(1), progress=SILENT, **options
        )

    return compute


@pytest.mark.parametrize("head", [nn.Linear(WIDTH, NUM_CLASSES), nn.Conv2d(WIDTH, NUM_CLASSES, 1)])
def test_each_sample_has_what_goes_into_the_last_layer_by_id(compute, data, beats, head):
    module = Network(head=head).train()
    module.body[1].eval()  # as one that is frozen
    features = compute(module)
    inputs, labels = data
    assert features.ids_N.tolist() == list(range(24))
    assert features.labels_N.tolist() == labels.tolist()
    modes = {name: one.training for name, one in module.named_modules()}
    assert modes == {name: name != "body.1" for name in modes}
    with torch.no_grad():
        expected = module.eval().body(inputs)
    assert torch.allclose(features.features_ND, expected, rtol=0, atol=1e-12)
    assert not features.features_ND.requires_grad
    assert not features.features_ND.is_inference()
    assert len(beats) == 4
    assert not module.head._forward_pre_hooks


def test_the_order_of_the_loader_does_not_matter(compute, make_loader, data):
    inputs, labels = data
    straight = compute(Network())
    loader = make_loader(inputs, labels, batch_size=5)
    batches = list(loader)
    loader.__class__ = type("Backwards", (type(loader),), {"__iter__": lambda self: iter(reversed(batches))})
    backwards = compute(Network(), loader=loader)
    assert torch.equal(backwards.ids_N, straight.ids_N)
    assert torch.equal(backwards.labels_N, straight.labels_N)
    assert torch.allclose(backwards.features_ND, straight.features_ND, rtol=0, atol=1e-12)


def test_in_mixed_precision_features_are_float32_and_those_the_head_is_given(compute, make_loader, data, runtime):
    runtime.autocast = lambda: torch.autocast("cpu", torch.bfloat16)
    module = Network().float()
    loader = make_loader(data[0].float(), data[1], batch_size=24)
    features = compute(module, loader=loader)
    assert features.features_ND.dtype == torch.float32
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        logits, own = module.eval()(data[0].float()), module.head(features.features_ND)
    assert torch.equal(own, logits)


def test_samples_that_cannot_be_read_are_left_out_and_written_down(compute, make_loader, data, bad_log, progress):
    loader = make_loader(*data, batch_size=7, split="val", bad=(2, 13))
    features = compute(Network(), loader=loader, bad_log=bad_log)
    assert features.ids_N.tolist() == [one for one in range(24) if one not in (2, 13)]
    assert "not counted: val/2.png: burnt" in progress._stream.getvalue()
    with pytest.raises(ValueError, match="2 of 24 images of this epoch could not be read"):
        compute(Network(), loader=make_loader(*data, batch_size=7, split="val", bad=(2, 13), max_num_bad=1))


class Twice(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, rows):
        return self.head(rows) + self.head(rows)


LINEAR = nn.Linear(5, NUM_CLASSES).double()
DOES_MORE = {
    "scaled logits": (Network(after=nn.Softmax(dim=1)), "head", "does something to what its last layer head gives"),
    "another layer": (Network(), "body.0", "its logits are not those of that layer"),
    "called twice": (Twice(LINEAR), "head", "the network calls its last layer head 2 times, and not once"),
    "not called": (nn.ModuleDict({"body": LINEAR, "head": LINEAR}), "head", "calls its last layer head 0 times"),
    "maps": (
        nn.Sequential(nn.Unflatten(1, (1, 1, 5)), nn.Conv2d(1, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).double(),
        "1",
        r"the last layer 1 of the network takes (7, 1, 1, 5); wanted: a vector for each image",
    ),
}
DOES_MORE["not called"][0].forward = lambda rows: LINEAR(rows)  # the head is another object than what is called
DOES_MORE["not called"][0]["head"] = nn.Linear(5, NUM_CLASSES).double()


@pytest.mark.parametrize("name", DOES_MORE)
def test_a_network_that_does_more_than_its_last_layer_is_refused_with_what_to_do(compute, name):
    module, head, message = DOES_MORE[name]
    with pytest.raises(ValueError, match=rf"{re.escape(message)}.*use --strategy.name linear, which runs the whole"):
        compute(module, head=head)


def test_features_that_are_not_finite_stop_the_run(compute, data, make_loader):
    inputs = data[0].clone()
    inputs[20] = float("nan")
    with pytest.raises(FloatingPointError, match="the features of 1 of 24 images are not finite; look at the weights"):
        compute(Network(), loader=make_loader(inputs, data[1], batch_size=6))


def test_a_loader_that_misses_samples_is_found_out(compute, data, make_loader):
    loader = make_loader(*data, batch_size=6)
    loader.position = 1
    with pytest.raises(RuntimeError, match="features of 18 samples were computed, 18 of them different, and 0 could"):
        compute(Network(), loader=loader)


@pytest.fixture
def cached(tmp_path, runtime, make_loader, data, progress):
    def cached(module, *, key="a" * 32, folder=tmp_path, loader=None):
        return cached_features(
            module,
            loader or make_loader(*data, batch_size=7),
            head="head",
            folder=folder,
            key=key,
            runtime=runtime,
            beat=lambda: None,
            progress=progress,
        )

    return cached


def path_of(tmp_path, key="a" * 32):
    return tmp_path / "features" / f"{key}.safetensors"


def assert_equal(features, expected):
    for value, wanted in zip(features, expected, strict=True):
        assert value.dtype == wanted.dtype
        assert torch.equal(value, wanted)


def test_features_that_were_kept_are_read_and_the_network_is_not_run(cached, tmp_path, progress):
    module = Network()
    expected = cached(module)
    num_calls = module.num_calls
    assert num_calls > 0
    assert_equal(cached(module), expected)
    assert module.num_calls == num_calls
    assert f"features: kept in {path_of(tmp_path)}" in progress._stream.getvalue()
    assert f"features: those of {path_of(tmp_path)}, from 24 images" in progress._stream.getvalue()
    assert [one.name for one in path_of(tmp_path).parent.iterdir()] == [path_of(tmp_path).name]
    cached(module, key="b" * 32)
    assert module.num_calls > num_calls


DAMAGES = {
    "cut short": lambda content: content[:-9],
    "empty": lambda content: b"",
    "another bit": lambda content: content[:-100] + bytes([content[-100] ^ 1]) + content[-99:],
    "another file": lambda content: b"<!DOCTYPE html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_told_computed_anew_and_replaced(cached, tmp_path, progress, damage):
    expected = cached(Network())
    path = path_of(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    module = Network()
    assert_equal(cached(module), expected)
    assert module.num_calls > 0
    assert f"features: {path} is damaged; they are computed anew" in progress._stream.getvalue()
    assert path.read_bytes() == whole


def test_features_of_fewer_samples_than_there_are_are_not_taken(cached, make_loader, data):
    inputs, labels = data
    cached(Network(), loader=make_loader(inputs[:20], labels[:20], batch_size=7))
    assert len(cached(Network()).ids_N) == 24


def test_what_lacks_samples_is_not_kept(cached, tmp_path, make_loader, data):
    features = cached(Network(), loader=make_loader(*data, batch_size=7, split="val", bad=(2,)))
    assert len(features.ids_N) == 23
    assert not path_of(tmp_path).exists()


def test_a_cache_that_cannot_be_written_is_told_and_no_error(cached, tmp_path, progress):
    (tmp_path / "file").touch()
    features = cached(Network(), folder=tmp_path / "file")
    assert len(features.ids_N) == 24
    assert "features: they cannot be kept in" in progress._stream.getvalue()


def test_a_writing_that_fails_leaves_nothing(cached, tmp_path, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(features_module.os, "replace", fail)
    cached(Network())
    assert list(path_of(tmp_path).parent.iterdir()) == []


def test_ranks_that_read_other_features_all_compute(cached, runtime, monkeypatch):
    expected = cached(Network())
    module = Network()
    for others in (None, "another digest"):  # another machine's folder has none, or those of another start
        monkeypatch.setattr(runtime, "gather_objects", lambda mine, others=others: [*mine, others])
        before = module.num_calls
        assert_equal(cached(module), expected)
        assert module.num_calls > before


def test_the_key_is_of_all_that_features_follow_from_and_of_nothing_else(runtime, monkeypatch):
    config = load_config([], prog="", description="")
    arguments = {"head": "head", "spec": SPEC, "fingerprint": "1", "backend": "threads", "runtime": runtime}

    def key(config=config, module=None, **changes):
        return features_key(config, module or Network(), **{**arguments, **changes})

    same = Network()
    same.head.weight.data += 1
    assert key() == key(module=same) == key(config=replace_section(config, "optim", lr=0.5))
    assert re.fullmatch("[0-9a-f]{32}", key())
    weight, buffer = Network(), Network()
    weight.body[0].weight.data[1, 2] += 1e-9
    buffer.body[1].running_mean[0] += 1
    keys = [
        key(),
        key(module=weight),
        key(module=buffer),
        key(spec=dataclasses.replace(SPEC, crop_frac=0.9)),
        key(fingerprint="2"),
        key(backend="dali"),
        key(config=replace_section(config, "model", args={"width": 16})),
        key(config=replace_section(config, "loader", decode="scaled")),
    ]
    monkeypatch.setattr(runtime, "precision", "bf16")
    keys.append(key())
    monkeypatch.setattr(features_module.importlib.metadata, "version", lambda name: "0")
    keys.append(key())
    assert len(set(keys)) == len(keys)
