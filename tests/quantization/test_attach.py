"""Bits of single layers."""

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import SelectionError, SettingError
from modelzip.quantization.attach import bits_of, check_layer_bits

X = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 4)
    )


def layers():
    return {n: m for n, m in net().named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def attached_bits(**settings):
    """Bits of the weights and of the activations of `net`, by name."""
    model = mz.prepare(net(), [mz.FakeQuantize(**settings)], example_inputs=X).model
    weights = {n: model.get_submodule(n).parametrizations.weight[0].bits for n in layers()}
    quantizers = model.get_submodule("activation_quantizers").named_children()
    return weights, {name: quantizer.bits for name, quantizer in quantizers}


def test_first_pattern_that_names_a_layer_gives_its_bits():
    assert bits_of(layers(), 4, {"0": 8, "type:Conv2d": 3, "*": 6}) == {"0": 8, "2": 3, "5": 6}
    assert bits_of(layers(), 4, None) == {"0": 4, "2": 4, "5": 4}


def test_weights_have_their_layers_bits_and_its_input_at_least_as_many():
    weights, activations = attached_bits(bits=4, layer_bits={"0": 8, "type:Linear": 3})
    assert weights == {"0": 8, "2": 4, "5": 3}
    assert activations == {"input_1_in": 8, "_0": 4, "_2": 4}


def test_converted_layers_have_their_own_bits():
    zipped = mz.prepare(
        net(), [mz.FakeQuantize(bits=2, layer_bits={"2": 5})], example_inputs=X, calibration=[X]
    )
    small = zipped.convert()
    found = {row.name: row.bits for row in zipped.reports[0].layers}
    assert found == {"0": 2.0, "2": 5.0, "5": 2.0}
    assert small.get_submodule("0").weight.unique().numel() == 3
    assert 7 < small.get_submodule("2").weight.unique().numel() <= 31


def test_a_checkpoint_keeps_the_bits_of_layers(tmp_path):
    settings = {"bits": 4, "layer_bits": {"type:Linear": 8}}
    zipped = mz.prepare(net(), [mz.FakeQuantize(**settings)], example_inputs=X)
    zipped.save(tmp_path / "model.safetensors")
    again = mz.load_prepared(net, tmp_path / "model.safetensors")
    assert again.attached[0].pass_ == mz.FakeQuantize(**settings)
    with torch.no_grad():
        assert torch.equal(again.convert()(X), zipped.convert()(X))


def test_settings_with_bits_of_layers_are_hashable_and_a_copy():
    given = {"0": 8}
    first, second = mz.FakeQuantize(layer_bits=given), mz.FakeQuantize(layer_bits={"0": 8})
    given["0"] = 2
    assert first == second
    assert hash(first) == hash(second)
    assert mz.FakeQuantize(layer_bits={}) == mz.FakeQuantize()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([8], r"layer_bits must map layer names to bits, got \[8\]"),
        ({0: 8}, r"layer_bits must map layer names to bits, got \{0: 8\}"),
        ({"fc": 9}, r"layer_bits\['fc'\] must be an integer from 2 to 8, got 9"),
        ({"fc": "8"}, r"layer_bits\['fc'\] must be an integer from 2 to 8, got '8'"),
    ],
)
def test_refuses_what_are_no_bits_of_layers(given, message):
    with pytest.raises(SettingError, match=message):
        check_layer_bits(given)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("type:Liner", "'type:Liner' matches none of the 3 layers to quantize; did you mean"),
        ("9", "'9' matches none of the 3 layers to quantize; there are: 0, 2, 5, type:Conv2d"),
    ],
)
def test_refuses_a_pattern_that_names_no_layer(pattern, message):
    with pytest.raises(SelectionError, match=message):
        mz.prepare(net(), [mz.FakeQuantize(layer_bits={pattern: 8})], example_inputs=X)
