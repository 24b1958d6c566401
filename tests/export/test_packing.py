"""Weights in the bits they have, unpacked by runtimes when they load the file."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import modelzip as mz
from modelzip.export import packing
from modelzip.export.onnx import export_onnx
from modelzip.export.packing import pack
from modelzip.measure.size import file_size
from modelzip.runtime import session

SHAPES = {"a.weight": (5, 3, 3, 3), "b.weight": (7, 4, 1, 1), "c.weight": (1, 1), "d": (3,)}
WIDTHS = range(2, 9)


def integers(shape, bits, *, seed=0):
    """Symmetric integers of so many bits, the largest among them."""
    top = 2 ** (bits - 1) - 1
    found = np.random.default_rng(seed).integers(-top, top + 1, shape).astype(np.int8)
    found.flat[0], found.flat[-1] = -top, top
    return found


def stored(weights):
    """A graph that returns each of `weights`, which it stores as int8."""
    nodes = [helper.make_node("Identity", [name], [f"{name}_out"]) for name in weights]
    ends = [
        helper.make_tensor_value_info(f"{name}_out", TensorProto.INT8, value.shape)
        for name, value in weights.items()
    ]
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "weights", [], ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def unpacked(proto):
    onnx.checker.check_model(proto, full_check=True)
    found = onnxruntime.InferenceSession(proto.SerializeToString())
    values = found.run(None, {})
    return dict(
        zip((o.name.removesuffix("_out") for o in found.get_outputs()), values, strict=True)
    )


@pytest.mark.parametrize("together", [10**6, 1])
@pytest.mark.parametrize("step", ["most", "one"])
@pytest.mark.parametrize("bits", WIDTHS)
def test_what_is_unpacked_is_what_was_packed(monkeypatch, bits, step, together):
    monkeypatch.setattr(packing, "_TOGETHER", together)
    scale = 2 ** max(7 - bits, 0) if step == "most" else 1
    weights = {name: integers(shape, bits) * scale for name, shape in SHAPES.items()}
    proto = stored(weights)
    pack(proto, dict.fromkeys(SHAPES, bits))
    for name, value in unpacked(proto).items():
        assert value.dtype == np.int8
        np.testing.assert_array_equal(value, weights[name])
    left = {t.name for t in proto.graph.initializer} & set(SHAPES)
    assert left == (set(SHAPES) if bits == 8 else set())


@pytest.mark.parametrize("bits", WIDTHS)
def test_as_many_bytes_as_bits_say(bits):
    proto = stored({"w": integers((64, 64, 3, 3), bits)})
    pack(proto, {"w": bits})
    expected = 64 * 64 * 9 * bits / 8
    assert 0.79 * expected < len(proto.SerializeToString()) < expected + 900


def test_integers_that_do_not_fit_stay_as_they_are():
    weights = {"large": integers((40,), 5), "odd": integers((40,), 4) * 8 + 1}
    proto = stored(weights)
    before = proto.SerializeToString(deterministic=True)
    pack(proto, dict.fromkeys(weights, 4))
    assert proto.SerializeToString(deterministic=True) == before


def test_weights_of_several_widths_beside_those_nobody_named():
    weights = {f"w{bits}": integers((30, bits), bits) for bits in WIDTHS}
    proto = stored({**weights, "other": integers((9,), 3)})
    pack(proto, {f"w{bits}": bits for bits in WIDTHS})
    for name, value in unpacked(proto).items():
        np.testing.assert_array_equal(value, weights.get(name, integers((9,), 3)))
    assert {"w8", "other"} <= {t.name for t in proto.graph.initializer}


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("bits", range(2, 8))
def test_a_quantized_net_keeps_its_kernels_and_every_bit(tmp_path, bits):
    x = torch.randn(16, 3, 8, 8)
    passes = [mz.FakeQuantize(bits=bits, activation_bits=8)]
    small = mz.prepare(net(), passes, example_inputs=(x,), calibration=[x]).convert()
    path = export_onnx(small, x[:1], tmp_path / "net.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file fits this machine alone
    onnxruntime.InferenceSession(str(path), options)
    kernels = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kernels.count("QLinearConv") == 2
    assert kernels.count("QGemm") == 1
    assert not {"Gather", "Div", "Mod", "MatMul", "Split"} & set(kernels)
    with torch.no_grad():
        assert torch.equal(small(x), torch.from_numpy(session.load(path).run(x)[0]))


@pytest.mark.parametrize(("bits", "expected"), [(2, 1.6), (3, 32 / 11), (4, 4), (6, 6)])
def test_the_size_of_a_file_counts_the_bits_that_are_stored(tmp_path, bits, expected):
    x = torch.randn(16, 3, 8, 8)
    passes = [mz.FakeQuantize(bits=bits, activation_bits=8)]
    small = mz.prepare(net(), passes, example_inputs=(x,), calibration=[x]).convert()
    found = file_size(export_onnx(small, x[:1], tmp_path / "net.onnx"))
    assert [layer.name for layer in found.layers if layer.op in ("Conv", "Gemm")] == ["0", "3", "7"]
    weights, biases = 16 * 27 + 16 * 72 + 160, 42
    assert found.parameters == weights + biases
    assert found.bits * found.parameters == pytest.approx(
        weights * expected + biases * 32, rel=0.01
    )
    assert not found.uncounted


def test_what_torchs_exporter_writes_is_packed_too(tmp_path):
    x = torch.randn(16, 3, 8, 8)
    model = net().append(nn.Softplus())  # for which there is no rule
    passes = [mz.FakeQuantize(bits=3, activation_bits=8)]
    small = mz.prepare(model, passes, example_inputs=(x,), calibration=[x]).convert()
    path = export_onnx(small, x[:1], tmp_path / "net.onnx")
    written = onnx.load(path)
    assert written.producer_name == "pytorch"
    assert not [t for t in written.graph.initializer if t.name.endswith("weight")]
    with torch.no_grad():
        np.testing.assert_allclose(session.load(path).run(x)[0], small(x), rtol=1e-5, atol=1e-6)
