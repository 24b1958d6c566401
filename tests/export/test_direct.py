"""Graphs written operator by operator: every rule, and what is left to torch's exporter."""

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.export import direct, rules
from modelzip.export.onnx import export_onnx
from modelzip.export.operations import unary
from modelzip.export.verify import verify
from modelzip.export.writer import NoRuleError, sizes
from modelzip.runtime import session


class Run(nn.Module):
    """A model whose forward is a function of one input, or of two."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Pair(Run):
    def forward(self, a, b):
        return self.function(a, b)


class Token(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 4, 1, 1))

    def forward(self, x):
        return x + self.token


class Tail(nn.Module):
    """Lengths of the batch in a reshape, values that are moved about, one returned twice."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        tokens = self.norm(tokens).reshape(x.shape[0], -1, 2, 2)
        a, b = tokens.chunk(2, dim=1)
        return a * 2, (b, x), b


def write(model, *inputs, **settings):
    settings = {"opset": 21, "dynamic_batch": True, **settings}
    return direct.write(model.eval(), inputs, {}, **settings)


def checked(model, *inputs, folder, **settings):
    """The graph of `model`, which onnxruntime ran to the same outputs."""
    torch.manual_seed(0)
    found = write(model, *inputs, **settings)
    onnx.checker.check_model(found.proto, full_check=True)
    path = folder / "model.onnx"
    path.write_bytes(found.proto.SerializeToString())
    verify(session.load(path), found)
    return found


IMAGE = (3, 4, 8, 8)

FUNCTIONS = {
    "relu": F.relu,
    "relu_method": lambda x: x.relu(),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -0.5, 0.25),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "clamp": lambda x: x.clamp(-0.5, 0.5),
    "clamp_below": lambda x: torch.clamp(x, max=0.25),
    "sigmoid": torch.sigmoid,
    "tanh": lambda x: x.tanh(),
    "hardsigmoid": F.hardsigmoid,
    "hardswish": F.hardswish,
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "softmax": lambda x: x.softmax(1),
    "softmax_last": lambda x: F.softmax(x, dim=-1),
    "numbers": lambda x: ((1 - x * 2) / 3 + 0.5).sub(1),
    "mean": lambda x: x.mean((2, 3), keepdim=True),
    "mean_one": lambda x: torch.mean(x, 1),
    "matmul": lambda x: x @ x.transpose(-1, -2),
    "max_pool": lambda x: F.max_pool2d(x, 3, 2, 1),
    "average_pool": lambda x: F.avg_pool2d(x, 3, 2, 1, False, False),
    "adaptive_one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (4, 2)),
    "flatten": lambda x: torch.flatten(x, 1),
    "view": lambda x: x.view(x.shape[0], 2, -1),
    "view_size": lambda x: x.view(x.size(0) * 2, -1),
    "squeeze": lambda x: x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1).unsqueeze(1),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "permute_list": lambda x: torch.permute(x, [0, -1, 1, 2]),
    "cat": lambda x: torch.cat([x, x * 2], dim=1),
    "cat_last": lambda x: torch.cat((x, x), -1),
    "split": lambda x: torch.split(x, 3, dim=1),
    "split_sizes": lambda x: x.split([1, 3], 1)[1],
    "chunk": lambda x: x.chunk(3, 1),
    "slices": lambda x: x[:, 1:, ::2, -3:-1],
    "indices": lambda x: x[:, -1, ..., 2],
    "new_dimension": lambda x: x[:, None, 0],
    "pad": lambda x: F.pad(x, (1, 2, 0, 3)),
    "pad_channels": lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 1.5),
    "upsample": lambda x: F.interpolate(x, scale_factor=2),
    "upsample_size": lambda x: F.interpolate(x, size=(8, 24)),
    "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
    "dropout": lambda x: F.dropout(x, 0.5, training=False),
    "in_place": lambda x: (x * 2).add_(x).relu_(),
}
MODULES = {
    "conv": nn.Conv2d(4, 6, 3, 2, 1, groups=2),
    "conv_same": nn.Conv2d(4, 3, (3, 2), padding="same", dilation=2, bias=False),
    "conv_valid": nn.Conv2d(4, 3, 2, padding="valid"),
    "batch_norm": nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3)),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(256, 5)),
    "linear_no_bias": nn.Sequential(nn.Flatten(), nn.Linear(256, 5, bias=False)),
    "linear_of_many": nn.Linear(8, 3),
    "linear_of_many_no_bias": nn.Linear(8, 3, bias=False),
    "layer_norm": nn.LayerNorm((8, 8), bias=False),
    "activations": nn.Sequential(
        nn.ReLU6(), nn.Hardtanh(-0.5, 3.0), nn.LeakyReLU(), nn.Hardswish(), nn.SiLU(), nn.GELU(),
        nn.Tanh(), nn.Hardsigmoid(), nn.Sigmoid(), nn.Softmax(1),
    ),
    "pools": nn.Sequential(
        nn.MaxPool2d(2, 1, dilation=2), nn.AvgPool2d(2, 1, 1), nn.AdaptiveAvgPool2d((1, 1))
    ),
    "ceil": nn.MaxPool2d(3, 2, ceil_mode=True),
    "moves": nn.Sequential(
        nn.ZeroPad2d((1, 1, 2, 0)), nn.Upsample(scale_factor=2), nn.PixelShuffle(2), nn.Dropout(),
        nn.Identity(), nn.Flatten(), nn.Unflatten(1, (5, 320)),
    ),
    "parameter": Token(),
    "tail": Tail(),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_and_methods(tmp_path, name):
    checked(Run(FUNCTIONS[name]), torch.randn(IMAGE), folder=tmp_path)


@pytest.mark.parametrize("name", MODULES)
def test_modules(tmp_path, name):
    checked(MODULES[name], torch.randn(IMAGE), folder=tmp_path)


def test_signals_and_two_inputs_by_keyword(tmp_path):
    model = nn.Sequential(
        nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), nn.MaxPool1d(2), nn.AvgPool1d(2),
        nn.AdaptiveAvgPool1d(1),
    )  # fmt: skip
    checked(model, torch.randn(2, 4, 20), folder=tmp_path)
    pair = Pair(lambda a, b: a * b + torch.bmm(a, b))
    inputs = {"b": torch.randn(2, 3, 3), "a": torch.randn(2, 3, 3)}
    path = export_onnx(pair, inputs, tmp_path / "pair.onnx")
    assert onnx.load(path).producer_name == ""
    result = session.load(path).run(inputs)[0]
    np.testing.assert_allclose(result, pair(**inputs), rtol=1e-5)


def test_a_fixed_batch_may_be_reshaped_away(tmp_path):
    model = Run(lambda x: x.reshape(6, -1)[1:4])
    found = checked(model, torch.randn(3, 4, 2), folder=tmp_path, dynamic_batch=False)
    assert [d.dim_value for d in found.proto.graph.output[0].type.tensor_type.shape.dim] == [3, 4]


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    ).eval()  # fmt: skip


@pytest.fixture(scope="module")
def int8_graph(tmp_path_factory):
    x = torch.randn(8, 3, 8, 8)
    model = mz.prepare(small(), [mz.Int8()], calibration=[x]).convert()
    return onnx.load(export_onnx(model, x[:1], tmp_path_factory.mktemp("d") / "m.onnx"))


def test_integer_models_are_written_directly_with_names_for_layers_alone(int8_graph):
    assert int8_graph.producer_name == ""  # torch's exporter says that it is "pytorch"
    graph = int8_graph.graph
    layers = [node.name for node in graph.node if node.name]
    assert layers == ["0", "5"]
    named = [o for node in graph.node for o in node.output if o.endswith("_quantized")]
    assert named[:2] == ["activation_quantizers.input_1_in_quantized", "0_quantized"]
    assert {"0.weight", "5.weight"} <= {t.name for t in graph.initializer}
    assert [i.name for i in graph.input] == ["input"]
    batch = graph.input[0].type.tensor_type.shape.dim[0]
    assert batch.dim_param == "batch"


def test_equal_constants_are_stored_once(int8_graph):
    stored = [(t.data_type, tuple(t.dims), t.raw_data) for t in int8_graph.graph.initializer]
    assert len(set(stored)) == len(stored)


def hooked():
    model = nn.Sequential(nn.ReLU())
    model[0].register_forward_hook(lambda *_: None)
    return torch.fx.symbolic_trace(model)


def similar(x):
    rows = x.flatten(1)
    return torch.matmul(rows, rows.transpose(0, 1))


def written_over(x):
    y = x * 2
    z = y.view(-1, 4)
    y.relu_()
    return z


REFUSED = {
    "unknown function": (Run(torch.erf), "there is no rule for .*erf"),
    "unknown method": (Run(lambda x: x.cumsum(1)), "there is no rule for cumsum"),
    "unknown module": (nn.Softplus(), "no rule for"),
    "unknown arguments": (Run(lambda x: torch.add(x, x, alpha=2)), "add: .*alpha"),
    "a branch": (Run(lambda x: x if x.sum() > 0 else -x), "fx cannot follow it"),
    "hooks": (hooked(), "0 has hooks"),
    "written over": (Run(written_over), "relu_ writes over mul, which is used again"),
    "other types": (Run(lambda x: x.double()), "a value is torch.float64"),
    "more than tensors": (Run(lambda x: (x * 2).max(1)), "a value is torch.int64"),
    "the batch in arithmetic": (Run(lambda x: x * x.shape[0]), "mul takes a object"),
    "part of the batch": (Run(lambda x: x[1:]), "getitem selects from the batch"),
    "pieces of the batch": (Run(lambda x: x.split(1)[0]), "as many results as there are"),
    "selection by values": (Run(lambda x: x[:, [0, 2]]), "selects by a immutable_list"),
    "a batch of one": (Run(lambda x: x.view(7, -1)), "it cannot be run on 2 samples: shape"),
    "dropout": (Run(lambda x: F.dropout(x, 0.5)), "dropout works in eval mode too"),
    "no dim": (Run(lambda x: F.softmax(x, 1, dtype=x.dtype)), "softmax has a dim of 1"),
    "mean of all": (Run(lambda x: x.mean()), "mean averages over the batch"),
    "mirrored": (
        Run(lambda x: F.pad(x, (1, 1, 0, 1), "reflect")),
        "pads .*, mode reflect",
    ),
    "bilinear": (nn.Upsample(scale_factor=2, mode="bilinear"), "interpolates by bilinear"),
    "divisor": (nn.AvgPool2d(2, divisor_override=3), "no pool that divides by 3"),
    "uneven": (nn.AdaptiveAvgPool2d(3), "divides .8, 8. by .3, 3."),
    "indices": (nn.MaxPool2d(2, return_indices=True), "a value is torch.int64"),
    "window": (nn.MaxPool2d((2, None)), "cannot be run"),
    "padding": (nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), "pads with circular"),
    "no weight": (nn.LayerNorm(8, elementwise_affine=False), "has no weight"),
    "no scale": (nn.BatchNorm2d(4, affine=False), "has no weight"),
    "no statistics": (nn.BatchNorm2d(4, track_running_stats=False), "mean of .* is not a float32"),
    "nested": (nn.LSTM(8, 2), "0 gives more than tensors"),
    "two batches": (Run(lambda x: similar(x).unsqueeze(1)), r"reshapes to .None, 1, None."),
    "no tensors": (Run(lambda x: (x, 3)), "returns more than tensors"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_left_to_the_exporter(name):
    model, message = REFUSED[name]
    if not isinstance(model, (Run, torch.fx.GraphModule)):
        model = nn.Sequential(model)
    x = torch.randn((2, 4, 8) if name == "nested" else (2, 4, 8, 8))
    with pytest.raises(NoRuleError, match=message):
        write(model, x)


def test_sizes_that_no_operator_has():
    assert sizes([2], 2, "stride") == [2, 2]
    with pytest.raises(NoRuleError, match=r"a stride of \(1, 2, 3\) for 2 dimensions"):
        sizes((1, 2, 3), 2, "stride")


def test_inputs_that_are_left_to_the_exporter():
    with pytest.raises(NoRuleError, match=r"x is not a float32 tensor"):
        write(Run(torch.relu), torch.ones(2, 3, dtype=torch.int64))
    with pytest.raises(NoRuleError, match=r"the graph takes \['a', 'b'\], not \['a'\]"):
        write(Pair(torch.add), torch.ones(2, 3))
    with pytest.raises(NoRuleError, match="there is no opset 99"):
        write(Run(F.relu), torch.ones(2, 3), opset=99)
    with pytest.raises(NoRuleError, match="the inputs are not of one batch"):
        write(Pair(torch.add), torch.ones(2, 3), torch.ones(1, 3))


@pytest.mark.parametrize("wrong", [unary("Neg"), unary("NoSuchOperator")])
def test_a_file_that_differs_is_written_by_the_exporter_instead(tmp_path, monkeypatch, wrong):
    monkeypatch.setitem(rules.FUNCTIONS, F.relu, wrong)
    path = export_onnx(Run(F.relu), torch.randn(2, 3), tmp_path / "m.onnx")
    assert onnx.load(path).producer_name == "pytorch"
    assert session.load(path).run(torch.tensor([[-1.0, 0.0, 2.0]]))[0].tolist() == [[0, 0, 2]]


def test_the_check_sees_other_values_shapes_and_files_that_fail(tmp_path):
    path = tmp_path / "m.onnx"
    right = write(Run(F.relu), torch.randn(2, 3))
    for other, message in [
        (write(Run(lambda x: x * 1.001), torch.randn(2, 3)), "gives other outputs"),
        (write(Run(lambda x: x.relu()[:, :2]), torch.randn(2, 3)), "gives other outputs"),
        (write(Run(F.relu), torch.randn(2, 4)), "the file does not run: "),
    ]:
        path.write_bytes(other.proto.SerializeToString())
        with pytest.raises(NoRuleError, match=message):
            verify(session.load(path), right)
