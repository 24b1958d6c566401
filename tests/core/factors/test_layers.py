import pytest
import torch
from torch import nn

from modelzip.core.base import Batch
from modelzip.core.factors.geometry import KINDS, observe, rank_limits
from modelzip.core.factors.layers import (
    build,
    factorize,
    replaced,
    unreplaceable,
    whole_reason,
    whole_reasons,
)
from modelzip.core.factors.moments import input_moments

LAYERS = [
    (nn.Linear(12, 8), (5, 12), (3,)),
    (nn.Conv2d(6, 8, 1, stride=2, padding=1), (2, 6, 7, 7), (3,)),
    (nn.Conv2d(6, 8, 3, stride=2, padding=1), (2, 6, 7, 7), (3, 4)),
    (nn.Conv2d(6, 8, (3, 1), padding=(2, 0), dilation=2), (2, 6, 7, 7), (3, 8)),
    (nn.Conv2d(6, 8, 3, padding="same", bias=False), (2, 6, 7, 7), (6, 4)),
    (nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"), (2, 6, 7, 7), (3, 4)),
    (nn.Conv1d(6, 8, 5, padding=2), (2, 6, 9), (3, 4)),
    (nn.Conv3d(6, 8, 3, padding=1), (2, 6, 4, 4, 4), (3, 4)),
]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def of_low_rank(layer, ranks):
    """The layer with random weights that have exactly those ranks."""
    outputs, inputs, *kernel = layer.weight.shape
    rank_in, rank_out = ranks if len(ranks) == 2 else (ranks[0], ranks[0])
    middle = random(rank_out, rank_in, *kernel)
    left, right = random(outputs, rank_out, seed=1), random(rank_in, inputs, seed=2)
    layer.weight.copy_(torch.einsum("po,oj...,ji->pi...", left, middle, right))
    return layer


@pytest.mark.parametrize(("layer", "shape", "ranks"), LAYERS, ids=lambda v: str(v)[:60])
@pytest.mark.parametrize("whiten", [True, False])
def test_a_layer_of_low_rank_has_the_same_outputs_as_its_factors(layer, shape, ranks, whiten):
    of_low_rank(layer, ranks)
    x = random(*shape, seed=3) + 0.5
    moments = input_moments(nn.Sequential(layer), {"0": layer}, [Batch(x, None)])["0"]
    factored, kept = factorize(layer, ranks, moments if whiten else None)
    assert kept == pytest.approx(1.0)
    outputs = layer(x).detach()
    assert torch.allclose(factored(x), outputs, atol=1e-4 * float(outputs.abs().max()))
    assert [part.bias is not None for part in factored[:-1]] == [False] * (len(factored) - 1)
    assert (factored[-1].bias is None) == (layer.bias is None)


@pytest.mark.parametrize(("layer", "shape", "ranks"), LAYERS, ids=lambda v: str(v)[:60])
def test_geometry_counts_what_the_factors_have_and_do(layer, shape, ranks):
    x = random(*shape)
    model = nn.Sequential(layer)
    geometry = observe(model, {"0": layer}, x)["0"]
    factored = build(layer, ranks)
    assert geometry.limits == rank_limits(layer)
    assert geometry.weights(()) == layer.weight.numel()
    assert geometry.weights(ranks) == sum(part.weight.numel() for part in factored)
    parts = {str(i): part for i, part in enumerate(factored)}
    each = observe(factored, parts, x)
    assert geometry.macs(ranks) == sum(each[i].macs(()) for i in parts)
    assert geometry.macs(()) == layer.weight.numel() * geometry.positions_out


def test_the_bias_takes_up_what_factors_lose_of_the_mean():
    torch.manual_seed(0)
    layer, x = nn.Linear(12, 8), random(200, 12) + 5
    moments = input_moments(nn.Sequential(layer), {"0": layer}, [Batch(x, None)])["0"]
    factored, _ = factorize(layer, (2,), moments)
    assert torch.allclose(factored(x).mean(0), layer(x).mean(0), atol=1e-4)
    assert not torch.allclose(
        factorize(layer, (2,), None)[0](x).mean(0), layer(x).mean(0), atol=0.1
    )


def test_factors_have_the_type_mode_and_need_of_gradients_of_their_layer():
    layer = nn.Conv2d(4, 4, 3, dtype=torch.float64).requires_grad_(False).eval()
    state = torch.get_rng_state()
    factored = build(layer, (2, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert not factored.training
    assert {p.dtype for p in factored.parameters()} == {torch.float64}
    assert not any(p.requires_grad for p in factored.parameters())


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


def hooked():
    layer = nn.Linear(4, 4)
    layer.register_forward_hook(lambda *_: None)
    return layer


def normed():
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(nn.Linear(4, 4))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: nn.Conv2d(4, 4, 3, groups=2), "a convolution of 2 groups is small already"),
        (lambda: nn.ConvTranspose2d(4, 4, 3), "a transposed convolution"),
        (lambda: Scaled(4, 4), "Scaled computes in a way of its own"),
        (normed, "its weight is computed, not stored"),
        (hooked, "it has hooks, which its factors would lack"),
        (lambda: nn.Conv2d(4, 4, 3), None),
        (lambda: nn.Linear(4, 4), None),
    ],
)
def test_what_has_to_stay_whole_says_why(make, reason):
    assert whole_reason(make()) == reason


def test_factors_are_not_factored_again():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    replaced(model, {"0": build(model[0], (2,))})
    layers = {n: m for n, m in model.named_modules() if isinstance(m, KINDS)}
    assert whole_reasons(model, layers) == {
        "0.0": "a factor of an earlier low_rank",
        "0.1": "a factor of an earlier low_rank",
    }


class ReadsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x)) + self.second.weight.sum()


def test_a_layer_whose_weight_the_model_reads_itself_is_named():
    model, x = ReadsWeight().eval(), torch.ones(1, 4)
    before = model(x)
    found = unreplaceable(model, {"first": model.first, "second": model.second}, x)
    assert list(found) == ["second"]
    assert found["second"].startswith(
        "the model does not run with factors in its place: AttributeError: 'Factored' object"
    )
    assert torch.equal(model(x), before)


def test_a_shared_layer_is_replaced_wherever_it_stands():
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    replaced(model, {"0": build(shared, (2,))})
    assert model[0] is model[2]
    assert observe(model, {"0.0": model[0][0]}, torch.ones(3, 8))["0.0"].positions_out == 6
