import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import modelzip as mz
from modelzip.errors import DataError
from modelzip.measure.layers import compare_layers
from modelzip.zoo import encoder


class Net(nn.Module):
    """A residual block between two convolutions, and a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.inner = nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(x + self.inner(x))
        return self.fc(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))


def images(samples=8):
    return torch.randn(samples, 2, 6, 6, generator=torch.Generator().manual_seed(1))


def converted(passes, path, *, model=None, inputs=None):
    torch.manual_seed(0)
    inputs = images() if inputs is None else inputs
    prepared = mz.prepare(
        model or Net(), passes, example_inputs=(inputs,), calibration=[inputs], training_steps=1
    )
    module = prepared.convert()
    return module, mz.export_onnx(module, (inputs,), path)


@pytest.fixture(scope="module")
def int8(tmp_path_factory):
    return converted([mz.Int8()], tmp_path_factory.mktemp("layers") / "int8.onnx")


def tampered(path, name, change):
    """A copy of the file beside it, with the stored tensor `name` changed."""
    model = onnx.load(path)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))
    other = path.with_name("tampered.onnx")
    onnx.save(model, other)
    return other


def test_an_integer_model_and_its_file_are_identical_in_every_layer(int8):
    module, path = int8
    found = compare_layers(module, path, [images(5), images(3)])
    assert (found.n, found.agreement, found.observed) == (8, 1.0, 0.0)
    assert found.first is None
    assert found.uncovered == found.unmatched == ()
    rows = {row.name: row for row in found.layers}
    assert {"stem", "inner", "fc"} <= set(rows)
    assert [row.name for row in found.layers if "quantizers" not in row.name] == [
        "stem", "inner", "integer_operations.add", "integer_operations.adaptive_avg_pool2d", "fc",
    ]  # fmt: skip
    assert rows["stem"].values == rows["stem"].equal == 8 * 4 * 6 * 6
    assert rows["stem"].steps
    assert not rows["fc"].steps
    assert all(row.exact for row in found.layers)


def test_the_first_layer_that_differs_is_named(int8):
    module, path = int8
    other = tampered(path, "inner.weight", lambda weight: np.negative(weight, out=weight))
    found = compare_layers(module, other, [images()])
    assert found.first is not None
    assert found.first == found.faulty
    assert found.first.name == "inner"
    assert 0 < found.first.equal < found.first.values
    assert found.first.largest >= 1


def test_fewer_bits_are_seen_after_they_are_clipped(tmp_path):
    passes = [mz.FakeQuantize(bits=4, activation_bits=4)]
    module, path = converted(passes, tmp_path / "four.onnx")
    found = compare_layers(module, path, [images()])
    assert found.first is None
    assert len([row for row in found.layers if row.steps]) >= 5


def test_operators_without_an_exact_rule_are_named_with_their_gap(tmp_path):
    inputs = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(2))
    model = encoder(features=6, length=8, width=16, heads=2, layers=1)
    passes = [mz.Int8(mode="linear")]
    module, path = converted(passes, tmp_path / "encoder.onnx", model=model, inputs=inputs)
    found = compare_layers(module, path, [inputs])
    gaps = {row.op: row for row in found.uncovered}
    assert {"LayerNormalization", "Softmax"} <= set(gaps)
    assert gaps["LayerNormalization"].count == 3
    assert found.layers[0].exact
    assert not found.layers[-1].exact
    assert found.faulty is None
    assert found.agreement == 1.0


def test_floats_are_compared_where_layers_return_them(tmp_path):
    torch.manual_seed(0)
    model = Net().eval()
    path = mz.export_onnx(model, (images(),), tmp_path / "float.onnx")
    found = compare_layers(model, path, [images()])
    assert [row.name for row in found.layers] == ["stem", "inner", "fc"]
    assert all(row.largest < 1e-5 for row in found.layers)
    assert "Conv" in {row.op for row in found.uncovered}


def test_dynamic_layers_are_compared(tmp_path):
    inputs = torch.randn(4, 8, 6, generator=torch.Generator().manual_seed(2))
    model = encoder(features=6, length=8, width=16, heads=2, layers=1)
    passes = [mz.Int8(mode="dynamic")]
    module, path = converted(passes, tmp_path / "dynamic.onnx", model=model, inputs=inputs)
    found = compare_layers(module, path, [inputs])
    assert {"embed", "layers.0.up", "layers.0.down"} <= {row.name for row in found.layers}
    assert found.layers[0].name == "embed"
    assert found.layers[0].equal == found.layers[0].values


def test_no_batches_and_other_outputs_are_refused(int8):
    module, path = int8
    with pytest.raises(DataError, match="there are no samples to compare on"):
        compare_layers(module, path, [])
    with pytest.raises(DataError, match=r"the module's outputs have shapes .*, the file's"):
        compare_layers(nn.Flatten(), path, [images()])
