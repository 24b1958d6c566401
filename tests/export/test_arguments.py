"""Inputs of every shape: positional, keyword, nested, of one batch size or of any."""

import onnx
import pytest
import torch
from torch import nn

from modelzip.errors import SettingError
from modelzip.export.onnx import export_onnx
from modelzip.runtime import session


class Signature(nn.Module):
    def forward(self, ids, mask=None, *, scale):
        return ids * 2 + (0 if mask is None else mask), scale - ids


class Several(nn.Module):
    def forward(self, *values):
        return sum((i + 1) * v for i, v in enumerate(values))


class Nested(nn.Module):
    def forward(self, x, options):
        return {"sum": x + options["u"], "rest": (options["u"] - options["v"], [x * 2])}


def names(path):
    graph = onnx.load(path).graph
    return [i.name for i in graph.input], [o.name for o in graph.output]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("arguments")


def test_attention_does_not_bake_in_a_batch_of_one(folder, compare):
    class Attending(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0]

    model = Attending().eval()
    path = export_onnx(model, torch.randn(1, 5, 8), folder / "attention.onnx")
    compare(model, path, (torch.randn(3, 5, 8),))


def test_keyword_inputs_in_any_order_and_with_none(folder, compare):
    a, b, c = torch.randn(3, 2, 4)
    path = export_onnx(Signature(), {"scale": c, "mask": b, "ids": a}, folder / "keywords.onnx")
    compare(Signature(), path, {"ids": b, "mask": c, "scale": a})
    assert names(path)[0] == ["ids", "mask", "scale"]
    path = export_onnx(Signature(), {"scale": c, "mask": None, "ids": a}, folder / "none.onnx")
    compare(Signature(), path, {"ids": b, "scale": a})


def test_any_number_of_positional_inputs(folder, compare):
    inputs = tuple(torch.randn(3, 2, 4))
    path = export_onnx(Several(), inputs, folder / "several.onnx")
    compare(Several(), path, inputs)
    assert names(path) == (["input_0", "input_1", "input_2"], ["output"])


def test_a_dict_as_the_last_argument_and_nested_outputs(folder, compare):
    x, u, v = torch.randn(3, 2, 4)
    path = export_onnx(Nested(), (x, {"v": v, "u": u}), folder / "nested.onnx")
    compare(Nested(), path, (x, {"v": v, "u": u}), feeds={"input_0": x, "u": u, "v": v})
    assert names(path) == (["input_0", "v", "u"], ["output_0", "output_1", "output_2"])


def test_inputs_of_one_name_are_told_apart_by_their_path(folder, compare):
    x, u = torch.randn(2, 2, 4)

    class Same(nn.Module):
        def forward(self, x, other):
            return x - other["x"]

    path = export_onnx(Same(), {"x": x, "other": {"x": u}}, folder / "same.onnx")
    compare(Same(), path, {"x": x, "other": {"x": u}}, feeds={"x": x, "other_x": u})


def test_a_model_that_returns_its_input_and_one_value_twice(folder, compare):
    class Through(nn.Module):
        def forward(self, x):
            return x, (y := x * 2), y

    model = Through()
    path = export_onnx(model, torch.randn(2, 3), folder / "through.onnx")
    compare(model, path, (torch.randn(4, 3),))


def test_buffers_named_like_the_exporters_own(folder, compare):
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("val_0", torch.full((3,), 2.0))
            self.register_buffer("output", torch.full((3,), 5.0))
            self.x = nn.Parameter(torch.full((3,), -3.0))
            self.linear = nn.Linear(3, 3)

        def forward(self, x):
            return self.linear(x * self.x + self.val_0 * 7) * self.output

    model = Named()
    path = export_onnx(model, {"x": torch.randn(2, 3)}, folder / "named.onnx")
    compare(model, path, {"x": torch.randn(4, 3)})
    stored = {t.name for t in onnx.load(path).graph.initializer}
    assert {"linear.weight", "linear.bias", "model.x", "model.output"} <= stored


def test_arguments_that_are_no_tensors_are_constants(folder):
    class Scaled(nn.Module):
        def forward(self, factor, x):
            return x * factor

    path = export_onnx(Scaled(), (3.0, torch.randn(2, 4)), folder / "constant.onnx")
    assert names(path) == (["input"], ["output"])
    assert session.load(path).run(torch.ones(1, 4))[0].tolist() == [[3.0] * 4]


def test_any_number_of_keyword_inputs(folder, compare):
    class Keywords(nn.Module):
        def forward(self, **values):
            return values["a"] - values["b"]

    a, b = torch.randn(2, 2, 4)
    path = export_onnx(Keywords(), {"b": b, "a": a}, folder / "keywords.onnx")
    compare(Keywords(), path, {"a": a, "b": b})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ((torch.zeros(1, 4), torch.zeros(1, 4)), "do not fit Linear.forward: too many positional"),
        ({"x": torch.zeros(1, 4)}, "do not fit Linear.forward: missing a required argument"),
    ],
)
def test_refuses_inputs_that_do_not_fit(tmp_path, inputs, message):
    with pytest.raises(SettingError, match=message):
        export_onnx(nn.Linear(4, 2), inputs, tmp_path / "model.onnx")
