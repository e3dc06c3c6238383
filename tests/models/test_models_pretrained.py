"""Published weights, read from the libraries' own caches: nothing here is downloaded."""

import re

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models.vision_transformer import interpolate_embeddings

from configs.schema import InputSpec, ModelConfig
from models.build import build_model, build_pretrained, build_pretrained_spec, build_published
from models.pretrained import describe_published
from models.surgery import find_head, list_head
from models.timm_zoo import list_timm_weights
from models.torchvision_zoo import list_torchvision_weights


@pytest.fixture
def torch_cache(tmp_path, monkeypatch):
    """Puts a state dict where torch.hub looks for the weights of a network; downloads fail."""

    def refuse(url, *args, **kwargs):
        raise OSError(f"no way out to {url}")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)

    def put(name, state, *, tag="DEFAULT"):
        url = models.get_model_weights(name)[tag].url
        folder = tmp_path / "hub" / "checkpoints"
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / url.rpartition("/")[2])

    return put


@pytest.fixture
def hugging_face_cache(tmp_path, monkeypatch):
    """The same for Hugging Face's hub, offline."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(repository, state):
        folder = tmp_path / f"models--{repository.replace('/', '--')}"
        (folder / "refs").mkdir(parents=True)
        (folder / "refs" / "main").write_text("0" * 40)
        snapshot = folder / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        save_file(state, snapshot / "model.safetensors")

    return put


@pytest.fixture
def publish(torch_cache, hugging_face_cache):
    """Puts weights of a network where its library looks for them, drawn so that no two layers do the same."""

    def put(name, *, seed=0):
        library, _, own_name = name.partition("/")
        torch.manual_seed(seed)
        if library == "torchvision":
            state = draw(models.get_model(own_name, **SMALLER.get(name, {})))
            torch_cache(own_name, FORMER_NAMES.get(name, lambda state: state)(state))
        else:
            state = draw(timm.create_model(own_name))
            hugging_face_cache(timm.get_pretrained_cfg(own_name).hf_hub_id, state)

    return put


SMALLER = {"torchvision/googlenet": {"init_weights": False}, "torchvision/inception_v3": {"init_weights": False}}


def draw(module):
    """A state dict in which zeros and ones of the beginning, such as statistics of norms, are drawn too."""
    for value in module.state_dict().values():
        if value.is_floating_point():
            value.add_(0.02 * torch.randn_like(value))
    return module.state_dict()


def rename(pattern, replacement):
    return lambda state: {re.sub(pattern, replacement, name): value for name, value in state.items()}


# what is in the files that torchvision publishes is called as it was when they were made
FORMER_NAMES = {
    "torchvision/vit_b_16": lambda state: rename(r"\.mlp\.3\.", ".mlp.linear_2.")(
        rename(r"\.mlp\.0\.", ".mlp.linear_1.")(state)
    ),
    "torchvision/densenet121": lambda state: rename(r"(denselayer\d+\.(?:norm|conv))(\d)\.", r"\1.\2.")(
        {name: value for name, value in state.items() if "num_batches_tracked" not in name}  # they are of 2017
    ),
}


def load_by_library(name, **arguments):
    library, _, own_name = name.partition("/")
    if library == "torchvision":
        return models.get_model(own_name, weights="DEFAULT", **arguments).eval()
    return timm.create_model(own_name, pretrained=True, **arguments).eval()


def start(
    name, *, num_classes=7, size_px=64, channels=3, seed=0, keeps_head=False, partial=False, stem="default", **args
):
    return build_published(
        ModelConfig(name=name, args=args, stem=stem),
        num_classes=num_classes,
        spec=InputSpec(size_px=size_px, channels=channels),
        seed=seed,
        keeps_head=keeps_head,
        partial=partial,
    )


def draw_images(size_px):
    return torch.randn(2, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))


def watch_features(module, num_classes):
    """What goes into the last layer, and the logits, of two images."""
    seen = []
    head = module.get_submodule(find_head(module, num_classes=num_classes))
    head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))

    def run(images):
        seen.clear()
        with torch.no_grad():
            logits = module.eval()(images)
        return seen[0], logits

    return run


def assert_same_weights(module, expected):
    assert module.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in module.state_dict().items())


ACCEPTED = [
    "torchvision/resnet18",
    pytest.param("torchvision/resnet50", marks=pytest.mark.slow),
    pytest.param("torchvision/convnext_tiny", marks=pytest.mark.slow),
    pytest.param("torchvision/vit_b_16", marks=pytest.mark.slow),
    "torchvision/efficientnet_b0",
    "torchvision/mobilenet_v3_small",
    "timm/resnet18",
    pytest.param("timm/resnet50.a1_in1k", marks=pytest.mark.slow),
    pytest.param("timm/convnext_tiny", marks=pytest.mark.slow),
    pytest.param("timm/vit_base_patch16_224", marks=pytest.mark.slow),
    "timm/efficientnet_b0",
    "timm/mobilenetv3_small_100",
    "torchvision/densenet121",
    "timm/test_vit",
]


@pytest.mark.parametrize("name", ACCEPTED)
def test_a_start_computes_what_the_librarys_own_network_does_to_the_bit(publish, name):
    publish(name)
    size_px = 224 if "vit_b" in name else describe_published(name).size_px if "test_vit" in name else 64
    images, theirs = draw_images(size_px), load_by_library(name)
    wanted_features, wanted_logits = watch_features(theirs, 1000)(images)
    assert wanted_logits.std() > 0

    kept, match = start(name, num_classes=1000, size_px=size_px, keeps_head=True)
    num_tensors = len(theirs.state_dict())
    assert match.describe() == f"{num_tensors} of {num_tensors} tensors loaded"
    assert_same_weights(kept, theirs.state_dict())
    features, logits = watch_features(kept, 1000)(images)
    assert torch.equal(logits, wanted_logits)
    assert torch.equal(features, wanted_features)
    del kept, logits

    fresh, match = start(name, size_px=size_px)
    head = list_head(fresh, find_head(fresh, num_classes=7))
    assert match.new == tuple(head)
    assert match.describe() == f"{num_tensors - len(head)} of {num_tensors} tensors loaded; new: {', '.join(head)}"
    features, logits = watch_features(fresh, 7)(images)
    assert torch.equal(features, wanted_features)
    assert logits.shape == (2, 7)


def test_all_networks_of_the_acceptance_are_here():
    names = [name if isinstance(name, str) else name.values[0] for name in ACCEPTED]
    assert len(names) == 14
    assert sum(name.startswith("torchvision/") for name in names) == 7


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_resnet"])
def test_the_new_head_follows_from_the_seed_alone_and_the_generator_stays(publish, name):
    publish(name)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, _ = start(name, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, _ = start(name, seed=1)
    other, _ = start(name, seed=2)
    head = list_head(first, find_head(first, num_classes=7))
    weights = [[module.get_parameter(one) for one in head] for module in (first, again, other)]
    assert all(map(torch.equal, weights[0], weights[1]))
    assert not any(torch.equal(one, two) for one, two in zip(weights[0], weights[2], strict=True) if one.any())
    spec = InputSpec(size_px=64, channels=3)
    drawn = build_model(ModelConfig(name=name), num_classes=7, spec=spec, seed=1)
    assert all(torch.equal(one, drawn.get_parameter(key)) for one, key in zip(weights[0], head, strict=True))


def test_a_start_trains_all_of_its_parameters_in_training_mode(publish):
    publish("timm/test_resnet")
    module, _ = start("timm/test_resnet")
    assert module.training
    module(draw_images(64)).sum().backward()
    assert all(one.grad is not None for one in module.parameters())


def test_timms_position_embeddings_are_resampled_as_timm_does(publish):
    publish("timm/test_vit")
    module, match = start("timm/test_vit", size_px=96)
    theirs = load_by_library("timm/test_vit", img_size=96)
    assert match.reshaped == ()
    images = draw_images(96)
    assert torch.equal(watch_features(module, 7)(images)[0], watch_features(theirs, 1000)(images)[0])


@pytest.mark.slow
def test_torchvisions_position_embeddings_are_resampled_as_torchvision_does(publish):
    publish("torchvision/vit_b_16")
    module, match = start("torchvision/vit_b_16", size_px=96)
    wanted = interpolate_embeddings(96, 16, load_by_library("torchvision/vit_b_16").state_dict())
    assert match.reshaped == ()
    assert module.encoder.pos_embedding.shape == (1, 37, 768)
    assert torch.equal(module.encoder.pos_embedding, wanted["encoder.pos_embedding"])


def test_tags_choose_among_weights(torch_cache):
    states = []
    for seed, tag in enumerate(("IMAGENET1K_V1", "IMAGENET1K_V2")):
        torch.manual_seed(seed)
        states.append(draw(models.mobilenet_v2()))
        torch_cache("mobilenet_v2", states[-1], tag=tag)
    for tag, state in (("", states[1]), (".IMAGENET1K_V1", states[0]), (".IMAGENET1K_V2", states[1])):
        module, _ = start(f"torchvision/mobilenet_v2{tag}", num_classes=1000, keeps_head=True)
        assert_same_weights(module, state)
        module, _ = build_pretrained(f"torchvision/mobilenet_v2{tag}", num_classes=1000)
        assert_same_weights(module, state)


def test_arguments_that_change_layers_need_partial(publish):
    publish("timm/test_vit")
    with pytest.raises(ValueError, match=r"(?s)--weights\.partial true\..*- missing blocks\.6\.norm1\.weight"):
        start("timm/test_vit", depth=8)
    module, match = start("timm/test_vit", depth=8, partial=True)
    assert len(module.blocks) == 8
    assert "blocks.6.norm1.weight" in match.missing
    _, match = start("timm/test_vit", drop_path_rate=0.1)
    assert match.missing == ()


def test_a_network_that_scales_its_images_itself_is_told_to(publish):
    publish("torchvision/googlenet")
    with pytest.raises(ValueError, match=r"^torchvision/googlenet .*; add --model\.args\.transform_input true\.$"):
        start("torchvision/googlenet")
    module, _ = start("torchvision/googlenet", num_classes=1000, keeps_head=True, transform_input=True)
    images = draw_images(64)
    theirs = load_by_library("torchvision/googlenet")
    assert torch.equal(watch_features(module, 1000)(images)[1], watch_features(theirs, 1000)(images)[1])


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"stem": "small"}, "model.stem=small changes the first layers of torchvision/resnet18, which its weights we"),
        ({"channels": 1}, "torchvision/resnet18 has weights for images of 3 channels, but input.channels=1; leave it"),
        ({"keeps_head": True}, "weights.head=keep, but torchvision/resnet18 tells 1000 classes apart, and the data ha"),
        ({"name": "torchvision/resnet17"}, "unknown model 'torchvision/resnet17'; nearest: torchvision/resnet"),
        ({"name": "resnet"}, "there is no network 'resnet' with pretrained weights; nearest: timm/resnet"),
        ({"depth": 18}, "torchvision/resnet18 has no argument 'depth'; "),
        ({"name": "timm/levit_128s", "size_px": 224}, "LevitDistilled has 2 last layers (head.linear, head_dist.l"),
        ({"name": "timm/test_vit", "size_px": 65}, "timm/test_vit fails on a black image of 3 x 65 x 65"),
    ],
)
def test_what_weights_cannot_go_into_is_refused_before_they_are_looked_for(torch_cache, arguments, wanted):
    with pytest.raises(ValueError, match="^" + re.escape(wanted)):
        start(**{"name": "torchvision/resnet18", **arguments})


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/test_vit", "torchvision/resnet18.IMAGENET1K_V1"])
def test_weights_to_start_from_that_are_not_to_be_had_are_named(torch_cache, hugging_face_cache, name):
    with pytest.raises(OSError, match=rf"the weights of {name} cannot be had: .*copy its cache \(\$TORCH_HOME"):
        start(name)


def test_weights_of_another_network_in_the_cache_are_refused(torch_cache):
    torch_cache("resnet18", models.shufflenet_v2_x0_5().state_dict())
    with pytest.raises(OSError, match=r"the weights of torchvision/resnet18 cannot be had: RuntimeError: Error\(s\)"):
        start("torchvision/resnet18")


def test_torchvisions_weights_come_from_its_cache_with_what_they_take(torch_cache):
    torch.manual_seed(0)
    stored = models.resnet18().state_dict()
    torch_cache("resnet18", stored)
    module, spec = build_pretrained("torchvision/resnet18", num_classes=1000)
    assert_same_weights(module, stored)
    assert not module.training
    assert spec == InputSpec(
        size_px=224,
        channels=3,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        interpolation="bilinear",
        crop_frac=224 / 256,
    )


@pytest.mark.parametrize("name", ["test_resnet.r160_in1k", "test_resnet"])
def test_timms_weights_come_from_hugging_faces_cache_with_what_they_take(hugging_face_cache, name):
    torch.manual_seed(0)
    stored = timm.create_model("test_resnet", num_classes=1000).state_dict()
    hugging_face_cache("timm/test_resnet.r160_in1k", stored)
    module, spec = build_pretrained(f"timm/{name}", num_classes=1000)
    assert_same_weights(module, stored)
    assert not module.training
    published = timm.get_pretrained_cfg("test_resnet")
    assert (spec.size_px, spec.channels) == (published.input_size[-1], 3) == (160, 3)
    assert (spec.mean, spec.std) == (published.mean, published.std)
    assert (spec.interpolation, spec.crop_frac) == (published.interpolation, published.crop_pct)


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/resnet18", "timm/resnet18.a1_in1k"])
def test_a_network_of_other_classes_is_refused_before_its_weights_are_looked_for(torch_cache, hugging_face_cache, name):
    message = f"{name} tells 1000 classes apart, but the data has 10: fine-tune it on the data first, and name the run"
    with pytest.raises(ValueError, match=re.escape(message)):
        build_pretrained(name, num_classes=10)


def test_weights_that_are_not_to_be_had_are_named_with_what_to_do(torch_cache, hugging_face_cache):
    for name in ("torchvision/resnet18", "timm/test_resnet"):
        with pytest.raises(OSError, match=rf"the weights of {name} cannot be had: .*copy its cache \(\$TORCH_HOME"):
            build_pretrained(name, num_classes=1000)


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("torchvision/resnet17", "torchvision/resnet"),
        ("torchvision/resnet50.IMAGENET1K_V3", r"torchvision/resnet50\.IMAGENET1K_V"),
        ("timm/resnet17", "timm/resnet"),
        ("timm/resnet18.none_such", r"timm/resnet18\."),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"no network '{name}' with pretrained weights; nearest: {nearest}"):
        build_pretrained(name, num_classes=1000)


def test_every_network_of_torchvision_says_what_its_weights_take():
    names = models.list_models(module=models)
    tagged = list_torchvision_weights()
    for name in [*(f"torchvision/{one}" for one in names), *tagged]:
        published = describe_published(name)
        assert published.num_classes == len(published.class_names) == 1000, name
        assert published.class_names[0] == "tench", name
        assert published.interpolation in ("bilinear", "bicubic"), name
        assert 0 < published.crop_frac <= 1, name
        assert published.size_px >= 224, name
    assert len(names) == 80
    assert len(tagged) > 100


def test_tags_of_torchvision_say_what_each_of_them_takes():
    assert describe_published("torchvision/resnet50.IMAGENET1K_V1").crop_frac == 224 / 256
    assert describe_published("torchvision/resnet50.IMAGENET1K_V2").crop_frac == 224 / 232
    assert describe_published("torchvision/resnet50") == describe_published("torchvision/resnet50.IMAGENET1K_V2")
    assert describe_published("torchvision/vit_b_16.IMAGENET1K_SWAG_E2E_V1").size_px == 384


def test_every_tenth_name_of_timm_says_what_its_weights_take_without_being_built(torch_cache, hugging_face_cache):
    names = list_timm_weights()[::10]
    for name in names:
        spec = build_pretrained_spec(name)
        published = timm.get_pretrained_cfg(name.removeprefix("timm/"))
        assert (spec.size_px, spec.channels) == (published.input_size[-1], published.input_size[0]), name
        assert (spec.mean, spec.std) == (tuple(published.mean), tuple(published.std)), name
        assert describe_published(name).num_classes == published.num_classes, name
    assert len(names) > 100


def test_what_is_described_is_what_the_loaded_network_says(publish):
    publish("timm/test_vit")
    module, spec = build_pretrained("timm/test_vit", num_classes=1000)
    shown = timm.data.resolve_model_data_config(module)
    assert (spec.size_px, spec.mean, spec.std) == (shown["input_size"][-1], shown["mean"], shown["std"])
    assert (spec.interpolation, spec.crop_frac) == (shown["interpolation"], shown["crop_pct"])
