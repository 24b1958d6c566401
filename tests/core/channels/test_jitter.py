"""Other values where equal ones could hide a channel."""

from __future__ import annotations

import torch
from torch import nn

from modelzip.core.channels.jitter import perturbed, perturbed_inputs


def test_a_fresh_norm_gets_other_values_all_over() -> None:
    norm = nn.BatchNorm2d(8)
    found = perturbed(norm)
    assert found.keys() == {id(t) for t in norm.state_dict(keep_vars=True).values() if t.dim()}
    assert isinstance(found[id(norm.weight)], nn.Parameter)
    assert all(len(set(t.tolist())) == 8 for t in found.values())
    assert bool((found[id(norm.running_var)] >= 1).all())
    assert norm.weight.tolist() == [1.0] * 8


def test_weights_that_differ_are_left_as_they_are() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Embedding(9, 4))
    assert perturbed(model) == {}


def test_values_next_to_zero_come_out_of_it() -> None:
    scale = nn.Parameter(1e-6 * torch.randn(32, generator=torch.Generator().manual_seed(0)))
    module = nn.ParameterList([scale])
    assert float(perturbed(module)[id(scale)].detach().abs().mean()) > 0.01


def test_noise_is_a_tenth_and_the_same_each_time() -> None:
    layer = nn.Linear(64, 64)
    nn.init.constant_(layer.weight, 5.0)
    first, second = perturbed(layer)[id(layer.weight)], perturbed(layer)[id(layer.weight)]
    assert torch.equal(first, second)
    assert 0.4 < float((first - 5.0).detach().std()) < 0.6
    frozen = nn.Linear(4, 4).requires_grad_(False)
    nn.init.ones_(frozen.weight)
    assert not perturbed(frozen)[id(frozen.weight)].requires_grad


def test_inputs_keep_their_kinds() -> None:
    tokens, x = torch.arange(3), torch.ones(2, 2)
    given = perturbed_inputs({"tokens": tokens, "x": (x, torch.ones(0), None)})
    assert given["tokens"] is tokens
    assert not torch.equal(given["x"][0], x)
    assert given["x"][1].shape == (0,)
    assert given["x"][2] is None
