"""Scores of units."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.channels.bundles import Bundle
from modelzip.core.channels.resize import Slot
from modelzip.core.channels.scores import METHODS, NEEDS, NORMALIZERS, score
from modelzip.errors import DataError, ModelError

X = torch.tensor([[1.0, -2.0, 0.5], [0.0, 1.0, 1.0]])
BATCH = Batch(X, torch.tensor([0, 1]))


def bundle_of(made: str, read: str, units: int, *, between: str | None = None) -> Bundle:
    index = torch.arange(units)[:, None]
    slots = [Slot(made, "out"), *([Slot(between, "out")] if between else []), Slot(read, "in")]
    return Bundle(dict.fromkeys(slots, index))


def model_and_bundle() -> tuple[nn.Sequential, list[Bundle]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    return model, [bundle_of("0", "2", 4)]


def conv_and_bundle() -> tuple[nn.Sequential, list[Bundle], Batch]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(),
    )  # fmt: skip
    nn.init.uniform_(model[1].weight, -1, 1)
    return (
        model,
        [bundle_of("0", "3", 6, between="1")],
        Batch(torch.randn(5, 2, 6, 6), torch.arange(5) % 4),
    )


def balanced(*parts: Tensor) -> Tensor:
    return torch.stack([p.detach().double() / p.detach().double().mean() for p in parts]).mean(0)


def test_l1_averages_the_layers_that_make_and_read_a_channel() -> None:
    model, (bundle,) = model_and_bundle()
    made, read = model[0].weight.abs().sum(1), model[2].weight.abs().sum(0)
    found = score(model, [bundle], method="l1")[bundle]
    torch.testing.assert_close(found, balanced(made, read))


def test_l2_squares() -> None:
    model, (bundle,) = model_and_bundle()
    made, read = model[0].weight.square().sum(1), model[2].weight.square().sum(0)
    found = score(model, [bundle], method="l2")[bundle]
    torch.testing.assert_close(found, balanced(made, read))


def test_geometric_median_sums_the_distances_between_filters() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 4.0]]))
    bundle = bundle_of("0", "1", 4)
    found = score(model, [bundle], method="geometric_median", normalize="none")[bundle]
    assert found.tolist() == pytest.approx([5 + 4, 5 + 5 + 3, 5 + 4, 4 + 4 + 3])


def test_geometric_median_of_a_transposed_convolution() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.ConvTranspose2d(2, 3, 2), nn.Conv2d(3, 1, 1))
    bundle = bundle_of("0", "1", 3)
    filters = [model[0].weight[:, i].detach().flatten() for i in range(3)]
    expected = [sum(float((a - b).norm()) for b in filters) for a in filters]
    found = score(model, [bundle], method="geometric_median", normalize="none")[bundle]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


def test_bn_scale_is_its_magnitude() -> None:
    model, (bundle,), _ = conv_and_bundle()
    found = score(model, [bundle], method="bn_scale", normalize="none")[bundle]
    torch.testing.assert_close(found, model[1].weight.detach().abs().double())


def test_bundles_without_a_batchnorm_are_left_out() -> None:
    model, bundles = model_and_bundle()
    assert score(model, bundles, method="bn_scale") == {}


def test_taylor_squares_the_change_of_each_batch() -> None:
    model, (bundle,) = model_and_bundle()
    nn.functional.cross_entropy(model(X), BATCH.targets).backward()
    change = [model[i].weight.detach() * model[i].weight.grad for i in (0, 2)]
    found = score(model, [bundle], method="taylor", calibration=[BATCH])[bundle]
    expected = balanced(change[0].sum(1).square(), change[1].sum(0).square())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_hessian_is_half_the_squared_weight_times_the_squared_gradient_of_each_sample() -> None:
    model, (bundle,), batch = conv_and_bundle()
    model.eval()
    made, read = torch.zeros(6), torch.zeros(6)
    for x, y in zip(batch.inputs, batch.targets, strict=True):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[None]), y[None]).backward()
        first, second = model[0].weight, model[3].weight
        made += (first.detach() * first.grad).square().sum((1, 2, 3)) / 2 / 5
        read += (second.detach() * second.grad).square().sum((0, 2, 3)) / 2 / 5
    given = [Batch(batch.inputs[:2], batch.targets[:2]), Batch(batch.inputs[2:], batch.targets[2:])]
    found = score(model, [bundle], method="hessian", normalize="none", calibration=given)[bundle]
    torch.testing.assert_close(found, ((made + read) / 2).double(), rtol=1e-4, atol=1e-9)


def test_hessian_agrees_with_the_loss_of_a_model_that_fits_its_labels() -> None:
    """On labels drawn from the model, the Fisher matrix is the Hessian of the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(2))
    x = torch.randn(1500, 2, dtype=torch.float64)
    targets = torch.multinomial(model(x).softmax(1), 1).flatten()
    bundle = Bundle({Slot("1", "in"): torch.arange(2)[:, None]})
    found = score(
        model, [bundle], method="hessian", normalize="none", calibration=[Batch(x, targets)]
    )[bundle]

    def loss(weight: Tensor) -> Tensor:
        return nn.functional.cross_entropy(x @ weight.T, targets)

    weight = model[1].weight.detach()
    hessian = torch.autograd.functional.hessian(loss, weight).view(4, 4).diagonal().view(2, 2)
    expected = (weight.square() * hessian / 2).sum(0)
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.0)


def test_activation_is_the_mean_magnitude_of_what_is_read() -> None:
    model, (bundle,), batch = conv_and_bundle()
    found = score(
        model,
        [bundle],
        method="activation",
        normalize="none",
        calibration=[Batch(batch.inputs, None)],
    )[bundle]
    with torch.no_grad():
        read = model.eval()[:3](batch.inputs)
    torch.testing.assert_close(found, read.abs().mean((0, 2, 3)).double(), rtol=1e-5, atol=1e-7)


def test_activation_of_heads_is_what_the_output_projection_reads() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True).eval()
    x = torch.randn(3, 5, 4)
    heads = torch.arange(4).view(2, 2)
    bundle = Bundle({Slot("self_attn", "out"): heads, Slot("self_attn.out_proj", "in"): heads})
    settings = {"method": "activation", "normalize": "none", "calibration": [Batch(x, None)]}
    found = score(model, [bundle], **settings)[bundle]
    attention = model.self_attn
    q, k, v = (
        (x @ attention.in_proj_weight.T + attention.in_proj_bias).view(3, 5, 3, 2, 2).unbind(2)
    )
    weights = torch.einsum("bqhd,bkhd->bhqk", q, k).div(2**0.5).softmax(-1)
    read = torch.einsum("bhqk,bkhd->bqhd", weights, v)
    expected = read.detach().abs().mean((0, 1)).sum(-1).double()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-7)


def test_units_of_several_channels_are_summed() -> None:
    model, _ = model_and_bundle()
    pairs = torch.tensor([[0, 1], [2, 3]])
    bundle = Bundle({Slot("0", "out"): pairs})
    found = score(model, [bundle], method="l1", normalize="none")[bundle]
    expected = model[0].weight.detach().abs().sum(1).view(2, 2).sum(1)
    torch.testing.assert_close(found, expected.double())


@pytest.mark.parametrize("size", [None, 6])
@pytest.mark.parametrize("method", ["l1", "taylor", "hessian", "geometric_median"])
def test_heads_are_scored_by_the_projections_that_make_them(method: str, size: int | None) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, kdim=size, batch_first=True)
            self.head = nn.Linear(4, 3)

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return self.head(self.attention(x, y, y)[0].mean(1))

    torch.manual_seed(0)
    model = Attending().eval()
    attention = model.attention
    x, y = torch.randn(1, 5, 4), torch.randn(1, 5, size or 4)
    if size is not None:
        attention.v_proj_weight = nn.Parameter(torch.randn(4, size))
    target = torch.tensor([1])
    nn.functional.cross_entropy(model(x, y), target).backward()
    names = (
        ["in_proj_weight"] if size is None else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    )
    weights = [getattr(attention, name) for name in names]
    rows = torch.cat([part.detach() for w in weights for part in w.split(4)], 1)
    changes = torch.cat([part for w in weights for part in (w.detach() * w.grad).split(4)], 1)
    expected = {
        "l1": rows.abs().sum(1),
        "taylor": changes.sum(1).square(),
        "hessian": changes.square().sum(1) / 2,
        "geometric_median": torch.stack([(rows - row).norm(dim=1).sum() for row in rows]),
    }[method]
    bundle = Bundle({Slot("attention", "out"): torch.arange(4).view(2, 2)})
    batch = Batch((x, y), target)
    found = score(model, [bundle], method=method, normalize="none", calibration=[batch])[bundle]
    torch.testing.assert_close(found, expected.double().view(2, 2).sum(1), rtol=1e-4, atol=1e-9)


def test_random_scores_follow_the_seed() -> None:
    model, (bundle,) = model_and_bundle()
    first, again, other = (
        score(model, [bundle], method="random", seed=s)[bundle] for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_labels_of_every_position_are_used() -> None:
    class Tagger(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers, _ = model_and_bundle()
            self.first = False

        def forward(self, x: Tensor) -> Tensor:
            found = self.layers(x)
            return found.movedim(-1, 1) if self.first else found

    model = Tagger()
    bundle = bundle_of("layers.0", "layers.2", 4)
    x, y = torch.randn(2, 5, 3), torch.randint(2, (2, 5))
    flat, _ = model_and_bundle()
    (plain,) = score(
        flat,
        [bundle_of("0", "2", 4)],
        method="taylor",
        calibration=[Batch(x.flatten(0, 1), y.flatten())],
    ).values()
    for model.first in (False, True):  # classes along the last axis, or the second
        found = score(model, [bundle], method="taylor", calibration=[Batch(x, y)])[bundle]
        torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_scoring_leaves_the_model_alone(method: str) -> None:
    model, found, batch = conv_and_bundle()
    before = copy.deepcopy(model.state_dict())
    score(model, found, method=method, calibration=[batch])
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    assert model.training


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"random"}))
@settings(max_examples=4, deadline=None)
@given(order=st.permutations(range(6)))
def test_scores_move_with_the_channels(method: str, order: list[int]) -> None:
    model, (bundle,), batch = conv_and_bundle()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        for tensor in (*moved[0].parameters(), *moved[1].parameters()):
            tensor.copy_(tensor[order])
        moved[3].weight.copy_(model[3].weight[:, order])
    before, after = (
        score(m, [bundle], method=method, calibration=[batch])[bundle] for m in (model, moved)
    )
    torch.testing.assert_close(after, before[order], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"random"}))
def test_equal_channels_have_equal_scores(method: str) -> None:
    model, (bundle,), batch = conv_and_bundle()
    with torch.no_grad():
        for tensor in (*model[0].parameters(), *model[1].parameters()):
            tensor[4] = tensor[1]
        model[3].weight[:, 4] = model[3].weight[:, 1]
    found = score(model, [bundle], method=method, calibration=[batch])[bundle]
    assert float(found[1]) == pytest.approx(float(found[4]), rel=1e-5)
    assert float(found[1]) != pytest.approx(float(found[0]), rel=1e-5)


@pytest.mark.parametrize("method", ["l1", "l2", "geometric_median"])
@pytest.mark.parametrize("normalize", sorted(set(NORMALIZERS) - {"none"}))
def test_the_scale_of_a_layer_does_not_matter_once_normalised(method: str, normalize: str) -> None:
    model, (bundle,) = model_and_bundle()
    before = score(model, [bundle], method=method, normalize=normalize)[bundle]
    with torch.no_grad():
        model[0].weight.mul_(100.0)
    after = score(model, [bundle], method=method, normalize=normalize)[bundle]
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-6)


def test_weights_that_are_not_finite_are_named() -> None:
    model, found = model_and_bundle()
    nn.init.constant_(model[0].weight, float("nan"))
    with pytest.raises(ModelError, match="the weights or gradients of '0' hold NaN or infinity"):
        score(model, found, method="l1")


@pytest.mark.parametrize("method", [m for m, needs in NEEDS.items() if needs.inputs])
def test_methods_without_their_batches_are_refused(method: str) -> None:
    model, found = model_and_bundle()
    with pytest.raises(DataError, match=f"importance: {method} needs calibration batches; give"):
        score(model, found, method=method)


@pytest.mark.parametrize("method", [m for m, needs in NEEDS.items() if needs.labels])
def test_methods_without_their_labels_are_refused(method: str) -> None:
    model, found = model_and_bundle()
    message = f"calibration batch 1 has no labels; importance: {method} needs"
    with pytest.raises(DataError, match=message):
        score(model, found, method=method, calibration=[BATCH, Batch(X, None)])
    for targets in (torch.tensor([0.5, 0.5]), torch.tensor([0, 1, 1])):
        with pytest.raises(
            DataError, match=r"do not fit \d answers of 2 classes; give class indices"
        ):
            score(model, found, method=method, calibration=[Batch(X, targets)])
