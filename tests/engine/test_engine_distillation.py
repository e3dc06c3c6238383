"""Distillation against formulas written out in float64, and what it does to teachers: nothing."""

import copy
import math
import re

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn
from torchvision.transforms.v2 import functional as vision

from configs.schema import InputSpec
from engine.distillation import AttentionTransfer, Teacher, adapter, attention_map, average_probabilities, distilled
from engine.losses import cross_entropy, supervised
from pipelines.batch import Batch, Mix, split_batch

NUM_CLASSES, COUNT = 5, 12


def network(seed, *, width=6, stride=1):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(2, width, 3, stride=stride, padding=1),
        nn.Tanh(),
        nn.Conv2d(width, width, 3, padding=1),
        nn.Tanh(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(width, NUM_CLASSES),
    ).double()


def teacher(module, *, adapt=lambda view: view):
    return Teacher("runs/teacher", module.eval().requires_grad_(False), adapt, "0")


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, NUM_CLASSES, (COUNT,), generator=generator)
    weights = torch.rand(COUNT // 2, generator=generator, dtype=torch.float64).repeat_interleave(2)
    return Batch(
        inputs=(torch.randn(COUNT, 2, 8, 8, generator=generator, dtype=torch.float64),),
        labels_N=labels,
        mix=Mix(labels.reshape(-1, 2).flip(1).reshape(-1), weights),
        ids_N=torch.arange(COUNT),
        valid_N=torch.ones(COUNT, dtype=torch.bool),
    )


def softmax(logits_NK):
    powers = logits_NK.exp()
    return powers / powers.sum(dim=1, keepdim=True)


def by_hand(student, teachers, batch, *, temperature, weight):
    """The loss from its definition: sums over classes and images, one after another."""
    logits = student(*batch.inputs)
    own = softmax(logits / temperature)
    wanted = sum(softmax(one(*batch.inputs) / temperature) for one in teachers) / len(teachers)
    divergence = sum(
        wanted[row, k] * (wanted[row, k].log() - own[row, k].log()) for row in range(COUNT) for k in range(NUM_CLASSES)
    )
    hard = 0.0
    for row in range(COUNT):
        log_probs = softmax(logits)[row].log()
        part = 1.0 if batch.mix is None else batch.mix.weight_N[row]
        hard = hard - part * log_probs[batch.labels_N[row]]
        if batch.mix is not None:
            hard = hard - (1 - part) * log_probs[batch.mix.partner_labels_N[row]]
    return (weight * temperature**2 * divergence + (1 - weight) * hard) / COUNT


@pytest.mark.parametrize("num_teachers", [1, 3])
@pytest.mark.parametrize("is_mixed", [False, True])
@pytest.mark.parametrize(("temperature", "weight"), [(4.0, 0.9), (1.0, 0.5), (2.5, 0.0), (3.0, 1.0)])
def test_loss_and_gradient_are_those_of_the_definition(batch, num_teachers, is_mixed, temperature, weight):
    batch = batch if is_mixed else batch._replace(mix=None)
    student, modules = network(0), [network(seed, width=4) for seed in range(1, 1 + num_teachers)]
    loss_fn = distilled(
        cross_entropy(),
        [teacher(one) for one in modules],
        num_classes=NUM_CLASSES,
        temperature=temperature,
        weight=weight,
    )
    expected = by_hand(student, modules, batch, temperature=temperature, weight=weight)
    output = loss_fn(student, batch)
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    parameters = list(student.parameters())
    for one, other in zip(
        torch.autograd.grad(output.loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        assert torch.allclose(one, other, rtol=1e-9, atol=1e-13)


def test_without_a_weight_for_the_teachers_it_is_the_supervised_loss(batch):
    student = network(0)
    alone = supervised(num_classes=NUM_CLASSES)(student, batch)
    output = distilled(cross_entropy(), [teacher(network(1))], num_classes=NUM_CLASSES, temperature=2.0, weight=0.0)(
        student, batch
    )
    assert output.loss.item() == pytest.approx(alone.loss.item(), rel=1e-15)
    assert torch.equal(output.sums["top1_frac"], alone.sums["top1_frac"])


def test_the_sums_are_of_the_parts_and_of_what_both_take_an_image_for(batch):
    student, module = network(0), network(1)
    loss_fn = distilled(cross_entropy(), [teacher(module)], num_classes=NUM_CLASSES, temperature=2.0, weight=0.3)
    loss, sums = loss_fn(student, batch)
    own, wanted = (one(*batch.inputs).argmax(dim=1).tolist() for one in (student, module))
    assert int(sums["teacher_agreement_frac"]) == sum(one == other for one, other in zip(own, wanted, strict=True))
    assert not sums["teacher_agreement_frac"].is_floating_point()
    mean = (0.7 * sums["label_loss"] + 0.3 * sums["distill_loss"]) / COUNT
    assert mean.item() == pytest.approx(loss.item(), rel=1e-12)
    assert not any(value.requires_grad for value in sums.values())


def test_of_several_teachers_the_probabilities_are_averaged_and_not_the_logits():
    logits = [torch.tensor([[10.0, 0.0]]), torch.tensor([[-2.0, 0.0]])]
    expected = (1 / (1 + math.exp(-10)) + 1 / (1 + math.exp(2))) / 2
    assert average_probabilities(logits, temperature=1.0)[0, 0].item() == pytest.approx(expected, rel=1e-6)


def test_micro_batches_add_up_to_the_whole_with_attention_too(batch):
    student, module = network(0), network(1, stride=2)
    attention = AttentionTransfer(student, module, layers={"0": "0", "2": "3"})
    loss_fn = distilled(
        cross_entropy(),
        [teacher(module)],
        num_classes=NUM_CLASSES,
        temperature=4.0,
        weight=0.7,
        attention=attention,
        attention_weight=100.0,
    )
    parameters = list(student.parameters())
    expected = torch.autograd.grad(loss_fn(student, batch).loss, parameters)
    for num_parts in (2, 5):  # of 12 images: 2, 2, 3, 2, 3
        parts = split_batch(batch, num_parts)
        loss = sum(loss_fn(student, part).loss * len(part.labels_N) / COUNT for part in parts)
        for one, other in zip(torch.autograd.grad(loss, parameters), expected, strict=True):
            assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_a_teacher_gets_no_gradient_and_stays_in_evaluation_mode(batch):
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(128), nn.Dropout(0.5), nn.Linear(128, NUM_CLASSES)).double()
    before = copy.deepcopy(module.state_dict())
    student = network(0).train()
    loss_fn = distilled(cross_entropy(), [teacher(module)], num_classes=NUM_CLASSES, temperature=4.0, weight=0.9)
    outputs = [loss_fn(student, batch) for _ in range(2)]
    assert outputs[0].loss.item() == outputs[1].loss.item(), "no dropout, no statistics of the batch"
    outputs[0].loss.backward()
    assert all(parameter.grad is None for parameter in module.parameters())
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert not module.training


def test_a_view_is_renormalised_to_what_the_teacher_takes():
    pixels = torch.rand(3, 3, 8, 8, dtype=torch.float64)
    seen = InputSpec(size_px=8, channels=3, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    wanted = InputSpec(size_px=8, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    own, expected = (vision.normalize(pixels, mean=list(spec.mean), std=list(spec.std)) for spec in (seen, wanted))
    adapt = adapter(seen=seen, wanted=wanted, device=torch.device("cpu"), dtype=torch.float64)
    assert torch.allclose(adapt(own), expected, rtol=0, atol=1e-13)
    same = adapter(seen=seen, wanted=seen, device=torch.device("cpu"), dtype=torch.float64)
    assert same(own) is own


def test_grey_becomes_colour_for_a_teacher_of_colour():
    pixels = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    seen = InputSpec(size_px=8, channels=1, mean=(0.5,), std=(0.2,))
    wanted = InputSpec(size_px=8, channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 0.6, 0.7))
    expected = vision.normalize(pixels.expand(3, 3, 8, 8), mean=list(wanted.mean), std=list(wanted.std))
    adapt = adapter(seen=seen, wanted=wanted, device=torch.device("cpu"), dtype=torch.float64)
    assert torch.allclose(adapt((pixels - 0.5) / 0.2), expected, rtol=0, atol=1e-13)
    with pytest.raises(ValueError, match=r"trained on grey images, and this run sees colour; use --input.channels 1"):
        adapter(seen=wanted, wanted=seen, device=torch.device("cpu"), dtype=torch.float64)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size_px", [5, 21])
def test_a_view_is_resized_as_pillow_does_it(interpolation, size_px):
    spec = InputSpec(size_px=12, channels=1, mean=(0.0,), std=(1.0,))
    wanted = InputSpec(size_px=size_px, channels=1, mean=(0.0,), std=(1.0,), interpolation=interpolation)
    pixels = torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    adapt = adapter(seen=spec, wanted=wanted, device=torch.device("cpu"), dtype=torch.float32)
    filters = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
    expected = Image.fromarray(pixels[0, 0].numpy()).resize((size_px, size_px), filters[interpolation])
    assert torch.allclose(
        adapt(pixels)[0, 0], torch.tensor(list(expected.get_flattened_data())).view(size_px, size_px), rtol=0, atol=1e-6
    )


def test_an_attention_map_is_the_sum_of_squares_over_channels_of_length_one():
    output = torch.randn(3, 4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    given = attention_map(output, size=(6, 5))
    for row in range(3):
        squares = [sum(output[row, c, h, w].item() ** 2 for c in range(4)) for h in range(6) for w in range(5)]
        length = math.sqrt(sum(value**2 for value in squares))
        assert given[row].tolist() == pytest.approx([value / length for value in squares], rel=1e-12)


def test_the_attention_loss_pools_the_larger_map_and_is_the_mean_squared_difference(batch):
    student, module = network(0), network(1, width=3, stride=2).eval()
    attention = AttentionTransfer(student, module, layers={"0": "0", "3": "2"})
    with attention.listening():
        student(*batch.inputs), module(*batch.inputs)
        given = attention.loss()
    expected = 0.0
    for depth, other in ((1, 1), (4, 3)):
        own, wanted = student[:depth](*batch.inputs), module[:other](*batch.inputs)
        assert (own.shape[2:], wanted.shape[2:]) == ((8, 8), (4, 4))
        maps = own.pow(2).sum(dim=1).reshape(COUNT, 4, 2, 4, 2).mean(dim=(2, 4)), wanted.pow(2).sum(dim=1)
        vectors = [one.flatten(1) / one.flatten(1).norm(dim=1, keepdim=True) for one in maps]
        expected += ((vectors[0] - vectors[1]) ** 2).mean(dim=1).mean()
    assert given.item() == pytest.approx(expected.item(), rel=1e-12)
    assert not attention._student.outputs, "nothing is held beyond the step"


def test_layers_are_listened_to_in_a_wrapped_and_in_a_compiled_network_and_only_while_asked(batch):
    student, module = network(0), network(1)
    attention = AttentionTransfer(student, module.eval(), layers={"2": "2"})
    values = []
    for wrapped in (student, nn.Sequential(student), torch.compile(student, backend="eager")):
        with attention.listening():
            wrapped(*batch.inputs), module(*batch.inputs)
            values.append(attention.loss().item())
        wrapped(*batch.inputs)
        assert not attention._student.outputs
    assert values == pytest.approx([values[0]] * 3, rel=1e-12)


def test_a_layer_that_is_not_there_is_answered_with_the_nearest():
    student = nn.Sequential()
    student.add_module("layer1", nn.Conv2d(2, 2, 1))
    student.add_module("layer2", nn.Conv2d(2, 2, 1))
    message = "distill.features: the network has no layer 'layr1'; nearest: layer1, layer2; valid: layer1, layer2"
    with pytest.raises(ValueError, match=re.escape(message)):
        AttentionTransfer(student, student, layers={"layr1": "layer1"})
    with pytest.raises(ValueError, match="the teacher has no layer ''; valid: layer1, layer2"):
        AttentionTransfer(student, student, layers={"layer1": ""})


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        ("5", r"layer '5' of the teacher gives shape \(12, 6\); wanted: one that gives feature maps"),
        ("7", "layer '7' of the teacher is not used for an image"),
    ],
)
def test_a_layer_without_feature_maps_is_refused(batch, layer, why):
    student, module = network(0), network(1)
    module.add_module("7", nn.Identity())
    module.forward = lambda inputs: nn.Sequential(*list(module)[:7])(inputs)
    attention = AttentionTransfer(student, module, layers={"0": layer})
    with attention.listening():
        student(*batch.inputs), module(*batch.inputs)
        with pytest.raises(ValueError, match=why):
            attention.check()


def test_maps_of_one_place_are_refused(batch):
    student, module = network(0), network(1)
    attention = AttentionTransfer(student, module, layers={"0": "4"})
    with attention.listening():
        student(*batch.inputs), module(*batch.inputs)
        with pytest.raises(
            ValueError, match=r"the maps of '0' and '4' have \(8, 8\) and \(1, 1\) places; of one place"
        ):
            attention.check()


def test_half_precision_is_compared_in_float32(batch):
    logits = torch.randn(COUNT, NUM_CLASSES, generator=torch.Generator().manual_seed(0)).bfloat16()
    other = torch.randn(COUNT, NUM_CLASSES, generator=torch.Generator().manual_seed(1)).bfloat16()
    loss_fn = distilled(
        cross_entropy(),
        [teacher(nn.Identity(), adapt=lambda view: other)],
        num_classes=NUM_CLASSES,
        temperature=4.0,
        weight=1.0,
    )
    output = loss_fn(lambda inputs: logits, batch._replace(mix=None))
    expected = 16 * F.kl_div(
        (logits.double() / 4).log_softmax(1), (other.double() / 4).softmax(1), reduction="batchmean"
    )
    assert output.loss.dtype == torch.float32
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-4)
