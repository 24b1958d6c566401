"""Weights of few different values: what is stored, and that every bit comes back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from modelzip.export import codebook
from modelzip.export.codebook import share_values
from modelzip.export.onnx import export_onnx
from modelzip.measure.size import file_size
from modelzip.runtime import session

Array = npt.NDArray[np.floating]


def few_valued(*shape: int, values: int, seed: int = 0) -> Array:
    """Float32 weights with exactly so many different values."""
    generator = np.random.default_rng(seed)
    table = generator.standard_normal(values).astype(np.float32)
    numbers = generator.integers(0, values, shape)
    numbers.flat[:values] = np.arange(values)
    found: Array = table[numbers]
    return found


def stored(*weights: Array) -> onnx.ModelProto:
    """A graph that returns each of `weights`, called w0, w1 and so on."""
    tensors = [numpy_helper.from_array(value, f"w{i}") for i, value in enumerate(weights)]
    nodes = [helper.make_node("Identity", [t.name], [f"{t.name}_out"]) for t in tensors]
    ends = [helper.make_tensor_value_info(f"{t.name}_out", t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(nodes, "weights", [], ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def unpacked(proto: onnx.ModelProto) -> list[Array]:
    onnx.checker.check_model(proto, full_check=True)
    found: list[Array] = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {})
    return found


def initializers(proto: onnx.ModelProto) -> set[str]:
    return {tensor.name for tensor in proto.graph.initializer}


@pytest.mark.parametrize("values", [2, 3, 4, 7, 16, 17, 33, 100, 256])
@pytest.mark.parametrize("shape", [(64, 40), (30, 10, 3, 3), (501, 7)])
def test_what_is_unpacked_is_what_was_stored(values: int, shape: tuple[int, ...]) -> None:
    weight = few_valued(*shape, values=values)
    proto = stored(weight)
    share_values(proto)
    assert "w0" not in initializers(proto)
    (found,) = unpacked(proto)
    assert found.tobytes() == weight.tobytes()


@pytest.mark.parametrize(
    ("values", "bits"), [(2, 1), (4, 2), (5, 3), (16, 4), (32, 5), (64, 6), (128, 7), (256, 8)]
)
def test_as_many_bits_as_the_values_need(values: int, bits: int) -> None:
    proto = stored(few_valued(64, 64, 3, 3, values=values))
    share_values(proto)
    expected = 64 * 64 * 9 * bits / 8 + 4 * values
    assert expected < len(proto.SerializeToString()) < expected + 600


def test_a_length_that_is_no_multiple_of_8_takes_half_or_whole_bytes() -> None:
    three, five = few_valued(81, 81, values=8), few_valued(81, 81, values=32)
    proto = stored(three, five)
    share_values(proto)
    kinds = {t.data_type: t.dims for t in proto.graph.initializer if len(t.dims) == 2}
    assert kinds == {TensorProto.INT4: [81, 81], TensorProto.UINT8: [81, 81]}


def test_zeros_of_both_signs_nan_and_infinity_come_back() -> None:
    weight = np.tile(np.array([[0.0, -0.0, np.nan, np.inf, -np.inf]], np.float32), (100, 8))
    proto = stored(weight)
    share_values(proto)
    assert "w0" not in initializers(proto)
    assert unpacked(proto)[0].tobytes() == weight.tobytes()


def test_half_precision_is_shared_too() -> None:
    weight = few_valued(64, 64, values=16).astype(np.float16)
    proto = stored(weight)
    share_values(proto)
    assert len(proto.SerializeToString()) < 64 * 64 / 2 + 600
    assert unpacked(proto)[0].tobytes() == weight.tobytes()


@pytest.mark.parametrize(
    "weight",
    [
        few_valued(64, 64, values=257),
        few_valued(8, 8, values=4),
        few_valued(4096, values=4),
        np.ones((64, 64), np.float32),
        few_valued(64, 64, values=4).astype(np.float64),
    ],
    ids=["many values", "small", "vector", "one value", "float64"],
)
def test_what_would_gain_little_stays(weight: Array) -> None:
    proto = stored(weight)
    before = proto.SerializeToString(deterministic=True)
    share_values(proto)
    assert proto.SerializeToString(deterministic=True) == before


def test_many_values_behind_the_first_weights_are_seen() -> None:
    assert codebook._LOOK < 100 * 64
    weight = few_valued(200, 64, values=8)
    weight[100:] = np.random.default_rng(1).standard_normal((100, 64))
    proto = stored(weight)
    share_values(proto)
    assert initializers(proto) == {"w0"}


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 256), st.integers(1, 40), st.integers(1, 200), st.integers(0, 99))
def test_any_shape_comes_back(values: int, rows: int, columns: int, seed: int) -> None:
    weight = few_valued(rows, columns + 256, values=values, seed=seed)
    proto = stored(weight, few_valued(70, 30, values=9))
    share_values(proto)
    assert unpacked(proto)[0].tobytes() == weight.tobytes()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 40),
    )  # fmt: skip
    return model.eval()


def shared(model: nn.Sequential, *, values: int) -> nn.Sequential:
    with torch.no_grad():
        for index in (0, 3, 7):
            weight = model[index].weight
            weight.copy_(torch.from_numpy(few_valued(*weight.shape, values=values) / 8))
    return model


def plain_export(model: nn.Module, path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(codebook, "_MOST", 0)
        return export_onnx(model, torch.zeros(1, 3, 8, 8), path)


def kernels(path: Path, folder: Path) -> list[str]:
    """The operators that are left once onnxruntime has loaded the file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file fits this machine alone
    onnxruntime.InferenceSession(str(path), options)
    return [node.op_type for node in onnx.load(folder / "optimized.onnx").graph.node]


@pytest.mark.parametrize("fallback", [False, True], ids=["direct", "exporter"])
@pytest.mark.parametrize("values", [16, 32])
def test_a_net_has_the_outputs_and_kernels_of_its_plain_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: int, fallback: bool
) -> None:
    model = shared(net(), values=values)
    if fallback:
        model.append(nn.Softplus())  # for which there is no rule
    plain = plain_export(model, tmp_path / "plain.onnx", monkeypatch)
    small = export_onnx(model, torch.zeros(1, 3, 8, 8), tmp_path / "small.onnx")
    assert (onnx.load(small).producer_name == "pytorch") == fallback
    assert small.stat().st_size < 0.5 * plain.stat().st_size
    x = torch.randn(5, 3, 8, 8)
    expected, found = (session.load(path).run(x)[0] for path in (plain, small))
    assert found.tobytes() == expected.tobytes()
    assert kernels(small, tmp_path) == kernels(plain, tmp_path)


def test_openvino_loads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed")
    x = torch.randn(5, 3, 8, 8)
    for values in (4, 16, 32, 256):
        model = shared(net(), values=min(values, 200))
        plain = plain_export(model, tmp_path / "plain.onnx", monkeypatch)
        small = export_onnx(model, x, tmp_path / "small.onnx")
        expected, found = (
            session.load(path, runtime="openvino").run(x)[0] for path in (plain, small)
        )
        assert found.tobytes() == expected.tobytes()


def test_the_size_of_a_file_counts_the_bits_that_are_stored(tmp_path: Path) -> None:
    model = shared(net(), values=16)
    found = file_size(export_onnx(model, torch.zeros(1, 3, 8, 8), tmp_path / "net.onnx"))
    layers = {layer.name: layer for layer in found.layers}
    assert [layers[name].bits for name in ("3", "7")] == [
        pytest.approx(bits, rel=0.01)
        for bits in ((1152 * 4 + 16 * 32) / 1168, (2560 * 4 + 40 * 32) / 2600)
    ]
    assert layers["3"].parameters == 1152 + 16
    assert not found.uncounted
    assert not any(layer.op == "Gather" for layer in found.layers)
