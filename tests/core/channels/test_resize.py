"""Slicing layers to the channels kept."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from modelzip.core.channels.resize import Slot, axes, parameter_count, resize, widths, zero_inputs

IMAGE, LINE, ROW, VOLUME = (2, 4, 5, 5), (2, 4, 5), (2, 4), (2, 4, 3, 3, 3)
LAYERS = [
    (lambda: nn.Conv1d(4, 6, 3), LINE, {"in": [0, 3], "out": [1, 2, 5]}),
    (lambda: nn.Conv2d(4, 6, 3, bias=False), IMAGE, {"in": [0, 3]}),
    (lambda: nn.Conv3d(4, 6, 1), VOLUME, {"out": [0]}),
    (lambda: nn.Conv2d(4, 8, 3, groups=2), IMAGE, {"in": [2, 3], "out": [4, 5, 6, 7]}),
    (lambda: nn.Conv2d(4, 4, 3, groups=4), IMAGE, {"in": [0, 2, 3], "out": [0, 2, 3]}),
    (lambda: nn.Conv1d(4, 8, 3, groups=2), LINE, {"in": [0, 1], "out": [0, 1, 2, 3]}),
    (lambda: nn.Conv3d(4, 4, 1, groups=4), VOLUME, {"in": [1, 3], "out": [1, 3]}),
    (lambda: nn.Conv2d(4, 8, 3, groups=4), IMAGE, {"in": [1], "out": [2, 3]}),
    (lambda: nn.ConvTranspose1d(4, 6, 3), LINE, {"in": [1, 2], "out": [0, 5]}),
    (lambda: nn.ConvTranspose1d(4, 8, 3, groups=4), LINE, {"in": [0, 3], "out": [0, 1, 6, 7]}),
    (lambda: nn.ConvTranspose3d(4, 6, 2, bias=False), VOLUME, {"out": [4]}),
    (lambda: nn.ConvTranspose2d(4, 6, 3), IMAGE, {"in": [0, 3], "out": [1, 2, 5]}),
    (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), IMAGE, {"in": [0, 1], "out": [0, 1, 2]}),
    (lambda: nn.Linear(4, 6), ROW, {"in": [0, 3], "out": [1, 2, 5]}),
    (lambda: nn.BatchNorm2d(4), IMAGE, {"out": [0, 3]}),
    (lambda: nn.BatchNorm2d(4, affine=False), IMAGE, {"out": [0, 3]}),
    (lambda: nn.BatchNorm1d(4), ROW, {"out": [1]}),
    (lambda: nn.BatchNorm3d(4, track_running_stats=False), VOLUME, {"out": [1, 2]}),
    (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE, {"out": [0, 3]}),
    (lambda: nn.InstanceNorm1d(4, track_running_stats=True), LINE, {"out": [0, 3]}),
    (lambda: nn.PReLU(4), LINE, {"out": [1, 2]}),
    (lambda: nn.PReLU(4), IMAGE, {"out": [0, 3]}),
]


@pytest.mark.parametrize(("make", "shape", "kept"), LAYERS)
def test_a_resized_layer_computes_the_kept_channels(
    make: Callable[[], nn.Module], shape: tuple[int, ...], kept: dict[str, list[int]]
) -> None:
    layer, x = make().eval(), torch.randn(shape)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
        for name, buffer in layer.named_buffers():
            if name.startswith("running"):
                buffer.uniform_(0.5, 1.5)
    inputs = kept.get("in", kept["out"] if "in" not in widths(layer) else list(range(4)))
    masked = torch.zeros_like(x)
    masked[:, inputs] = x[:, inputs]
    expected = layer(masked)
    expected = expected[:, kept["out"]] if "out" in kept else expected
    model = nn.Sequential(layer)
    resize(model, {Slot("0", side): index for side, index in kept.items()})
    torch.testing.assert_close(layer(x[:, inputs]), expected)
    counted = sum(p.numel() for p in layer.parameters())
    width = {**widths(make()), **{side: len(index) for side, index in kept.items()}}
    assert parameter_count(make(), width) == counted
    assert widths(layer) == width


def test_an_embedding_loses_columns() -> None:
    model = nn.Sequential(nn.Embedding(9, 4))
    expected = model(torch.arange(9))[:, [0, 3]]
    resize(model, {Slot("0", "out"): [0, 3]})
    torch.testing.assert_close(model(torch.arange(9)), expected)
    assert model[0].embedding_dim == 2


def test_resizing_keeps_what_is_frozen_and_shared() -> None:
    shared = nn.Linear(4, 4)
    shared.bias.requires_grad_(False)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    resize(model, {Slot("0", "out"): [0, 1], Slot("0", "in"): [0, 1]})
    assert model[2].weight.shape == (2, 2)
    assert not model[0].bias.requires_grad


def test_groups_that_go_are_counted() -> None:
    model = nn.Sequential(nn.Conv2d(8, 12, 1, groups=4))
    resize(model, {Slot("0", "in"): [0, 1, 6, 7], Slot("0", "out"): [0, 1, 2, 9, 10, 11]})
    assert (model[0].groups, model[0].in_channels, model[0].out_channels) == (2, 4, 6)


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.query = 4, nn.Linear(8, 8)


def test_attributes_follow_the_channels() -> None:
    model = nn.Sequential(Headed())
    resize(model, {Slot("0.query", "out"): [0, 1, 2, 3]}, {"0": {"heads": 2}})
    assert model[0].heads == 2
    assert model[0].query.out_features == 4


def test_parameters_of_attention_follow_its_heads() -> None:
    attention = nn.MultiheadAttention(8, 4, kdim=6, add_bias_kv=True)
    expected = 4 * (8 + 6 + 8) + 3 * 4 + 2 * 4  # weights, biases, and those of keys and values
    assert parameter_count(attention, {"out": 4}) == expected
    model = nn.Sequential(attention)
    resize(model, {Slot("0", "out"): [0, 1, 6, 7]})
    assert sum(p.numel() for p in attention.parameters(recurse=False)) == expected
    assert widths(attention) == {"out": 4}


def test_masking_zeroes_what_is_read_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    before = model[0].weight.clone()
    zero_inputs(model, {Slot("0", "out"): torch.tensor([1]), Slot("1", "in"): torch.tensor([1])})
    assert torch.equal(model[0].weight, before)
    assert model[1].weight[:, 1].tolist() == [0.0, 0.0]


def test_unsupported_layers_have_no_sides() -> None:
    for layer in (nn.LayerNorm(4), nn.PReLU(), nn.LSTM(4, 4), nn.ReLU()):
        assert not axes(layer)
        assert not widths(layer)
