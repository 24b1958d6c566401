"""Where quantizers end up, by the node whose value they round."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from modelzip.core.graph import trace
from modelzip.quantization.placement import place


def placed(model, *, everywhere=True, layers=None):
    """Names of the quantizers with their form, and the traced graph."""
    kinds = (nn.Conv1d, nn.Conv2d, nn.Linear)
    names = layers or [n for n, m in model.named_modules() if isinstance(m, kinds)]
    graph = trace(model.eval())
    found = place(graph, names, bits=8, method="fixed", everywhere=everywhere)
    return {name: quantizer.form for name, quantizer in found}, graph


def quantized_values(graph):
    """The node each quantizer call rounds, and the quantizer it uses."""
    prefix = "activation_quantizers."
    return [
        (str(n.args[0]), n.target.removeprefix(prefix))
        for n in graph.graph.nodes
        if n.op == "call_module" and n.target.startswith(prefix)
    ]


class Net(nn.Module):
    """Layers a, b and c with a forward given as a function."""

    def __init__(self, forward, *, kind=lambda: nn.Conv2d(4, 4, 1), **more):
        super().__init__()
        self.a, self.b, self.c = kind(), kind(), kind()
        self.head = nn.Linear(4, 2)
        for name, module in more.items():
            self.add_module(name, module)
        self.body = forward

    def forward(self, x):
        return self.body(self, x)


def between(step):
    """Two convolutions with `step`, a function or a module, between them."""
    more = {"step": step} if isinstance(step, nn.Module) else {}
    return Net(lambda m, x: m.b((m.step if more else step)(m.a(x))), **more)


def linear():
    return nn.Linear(4, 4)


def test_layer_input_and_convolution_output_are_quantized_but_not_the_models_output():
    assert placed(Net(lambda m, x: m.b(m.a(x))))[0] == {"x_in": "any", "a": "any"}


def test_convolution_is_quantized_after_its_batch_norm_and_relu():
    model = Net(lambda m, x: m.b(F.relu(m.norm(m.a(x)))), norm=nn.BatchNorm2d(4))
    found, graph = placed(model)
    assert found == {"x_in": "any", "a": "relu"}
    assert quantized_values(graph) == [("x", "x_in"), ("relu", "a")]


@pytest.mark.parametrize(
    "clamp",
    [
        F.relu6,
        nn.ReLU6(),
        nn.Hardtanh(0, 6),
        lambda x: F.hardtanh(x, 0.0, 6.0),
        lambda x: torch.clamp(x, 0, 6),
        lambda x: x.clamp(min=0, max=6),
    ],
)
def test_clamps_at_0_and_6_are_relu6(clamp):
    assert placed(between(clamp))[0] == {"x_in": "any", "a": "relu6"}


@pytest.mark.parametrize("clamp", [lambda x: x.clamp(0, 5), nn.Hardtanh(), F.gelu])
def test_other_activations_run_in_float_between_quantizers(clamp):
    found, _ = placed(between(clamp))
    assert list(found) == ["x_in", "a", *(n for n in found if n.endswith("_in") and n != "x_in")]
    assert len(found) == 3
    assert set(found.values()) == {"any"}


def test_batch_norm_without_running_statistics_is_not_fused():
    norm = nn.BatchNorm2d(4, track_running_stats=False)
    _, graph = placed(Net(lambda m, x: m.b(m.norm(m.a(x))), norm=norm))
    assert [value for value, _ in quantized_values(graph)] == ["x", "a", "norm"]


def test_batch_norm_of_another_width_than_the_linear_layer_is_not_fused():
    model = Net(lambda m, x: m.b(m.norm(m.a(x))), kind=linear, norm=nn.BatchNorm1d(7))
    assert [value for value, _ in quantized_values(placed(model)[1])] == ["x", "norm"]


def test_linear_output_is_quantized_only_for_something_integer():
    model = Net(lambda m, x: m.c(F.gelu(m.b(F.dropout(F.relu(m.a(x)))))), kind=linear)
    assert placed(model)[0] == {"x_in": "any", "a": "relu", "gelu_in": "any"}


def test_linear_output_stays_float_for_an_addition_to_a_float_value():
    model = Net(lambda m, x: m.c(x + m.b(F.gelu(m.a(x)))), kind=linear)
    assert "b" not in placed(model)[0]


def test_linear_output_is_quantized_for_an_addition_to_a_later_integer_value():
    model = Net(lambda m, x: m.c(m.a(x) + F.relu(m.b(x))), kind=linear)
    assert placed(model)[0] == {"x_in": "any", "a": "any", "b": "relu", "add": "any"}


def test_addition_is_quantized_after_its_relu():
    found, graph = placed(Net(lambda m, x: m.c((m.a(x) + m.b(x)).relu())))
    assert found == {"x_in": "any", "a": "any", "b": "any", "add": "relu"}
    assert ("relu", "add") in quantized_values(graph)


@pytest.mark.parametrize(
    "add",
    [
        lambda m, x: x + 1,
        lambda m, x: torch.add(x, x, alpha=2),
        lambda m, x: x + torch.tanh(x),
        lambda m, x: x * torch.tanh(x),
        lambda m, x: 2 * x,
    ],
)
def test_what_is_no_operation_of_two_integer_values_stays_float(add):
    found, _ = placed(Net(lambda m, x: m.b(add(m, m.a(x)))))
    assert "add" not in found
    assert "mul" not in found


@pytest.mark.parametrize(
    "step",
    [
        F.silu,
        nn.SiLU(),
        F.hardswish,
        nn.Hardswish(inplace=True),
        nn.LeakyReLU(0.2),
        lambda x: F.leaky_relu(x, 0.2),
    ],
)
def test_curves_between_layers_are_quantized(step):
    found, graph = placed(between(step))
    assert list(found.values()) == ["any"] * 3
    assert [value for value, _ in quantized_values(graph)][:2] == ["x", "a"]


@pytest.mark.parametrize(
    "gate", [torch.sigmoid, nn.Sigmoid(), lambda x: x.sigmoid(), F.hardsigmoid, nn.Hardsigmoid()]
)
def test_a_gate_is_quantized_from_0_to_1_in_8_bits(gate):
    net = Net(lambda m, x: m.c(m.a(x) * m.gate(m.b(x))))
    net.gate = gate
    found, _ = placed(net)
    assert sorted(found.values()) == ["any", "any", "any", "any", "unit"]
    assert list(found)[-1] == "mul"
    place_low = place(trace(net), ["a", "b", "c"], bits=4, method="fixed", everywhere=True)
    assert {q.form: q.bits for _, q in place_low} == {"any": 4, "unit": 8}


def test_a_curve_that_feeds_an_average_pool_and_a_layer_is_quantized():
    model = Net(lambda m, x: m.head(F.silu(m.a(x)).mean((2, 3))))
    assert list(placed(model)[0]) == ["x_in", "a", "silu", "mean"]


@pytest.mark.parametrize(
    "end",
    [
        lambda m, x: torch.sigmoid(m.a(x)),
        lambda m, x: F.silu(m.a(x)).mean((2, 3)),
        lambda m, x: F.silu(m.a(x)) + 1,
        lambda m, x: m.a(x) * m.b(x),
        lambda m, x: torch.tanh(m.a(x) * m.b(x)),
    ],
)
def test_curves_and_products_that_feed_nothing_integer_stay_float(end):
    found, _ = placed(Net(end))
    assert not {"sigmoid", "silu", "mul", "mean"} & set(found)


def test_addition_that_is_the_output_stays_float():
    assert "add" not in placed(Net(lambda m, x: m.a(x) + m.b(x)))[0]


def test_value_that_is_used_and_returned_is_quantized_once():
    found, graph = placed(Net(lambda m, x: [m.b(y := m.a(x)), y]))
    assert found == {"x_in": "any", "a": "any"}
    output = next(n for n in graph.graph.nodes if n.op == "output")
    assert [str(n) for n in output.all_input_nodes] == ["b", "activation_quantizers_a"]


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(1),
        nn.AvgPool2d(2),
        nn.AvgPool2d(2, ceil_mode=True),
        lambda x: F.avg_pool2d(x, 3, padding=1, ceil_mode=True),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: F.avg_pool2d(x, x.size(3)),
        lambda x: x.mean([2, 3], keepdim=True),
        lambda x: torch.mean(x, dim=(-1, -2), keepdim=True),
    ],
)
def test_average_pools_are_quantized(pool):
    found, _ = placed(between(pool))
    assert len(found) == 3
    assert not any(name.endswith("_in") for name in found if name != "x_in")


@pytest.mark.parametrize(
    "pool",
    [
        nn.AdaptiveAvgPool2d(2),
        lambda x: F.avg_pool2d(x, 2, divisor_override=3),
        lambda x: x.mean((1, 2), keepdim=True),
        lambda x: x.mean((2, 3), keepdim=True, dtype=torch.float32),
    ],
)
def test_pools_without_an_integer_form_stay_float(pool):
    found, _ = placed(between(pool))
    assert any(name.endswith("_in") for name in found if name != "x_in")


@pytest.mark.parametrize(
    "move",
    [
        lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)),
        lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
        lambda x: F.max_pool2d(x, 2),
        lambda x: F.interpolate(x, scale_factor=2),
        lambda x: torch.chunk(x, 2, 1)[1],
        lambda x: F.pixel_shuffle(x, 2),
        nn.Upsample(scale_factor=2),
        nn.MaxPool2d(2),
        nn.Dropout(),
    ],
)
def test_a_value_that_was_moved_about_is_quantized_again_on_its_own_grid(move):
    found, graph = placed(between(move))
    assert found == {"x_in": "any", "a": "any"}
    assert [grid for _, grid in quantized_values(graph)] == ["x_in", "a", "a"]


@pytest.mark.parametrize(
    "change",
    [
        lambda x: F.pad(x, (1, 1), value=1.0),
        lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
        nn.Upsample(scale_factor=2, mode="bilinear"),
    ],
)
def test_a_value_that_was_changed_gets_a_grid_of_its_own(change):
    found, _ = placed(between(change))
    assert len(found) == 3


def test_concatenation_of_integer_values_is_quantized():
    model = Net(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 2)))
    assert placed(model)[0] == {"x_in": "any", "a": "any", "b": "any", "cat": "any"}


def test_linear_inputs_alone_are_quantized_where_not_everywhere():
    found, _ = placed(Net(lambda m, x: m.b(F.relu(m.a(x))), kind=linear), everywhere=False)
    assert found == {"x_in": "any", "relu_in": "relu"}


def test_only_the_chosen_layers_are_quantized():
    assert placed(Net(lambda m, x: m.c(m.b(m.a(x)))), layers=["b"])[0] == {
        "a_in": "any",
        "b": "any",
    }


def test_quantizers_never_share_a_name():
    # that of the input x would be called like that of the layer x_in
    model = Net(lambda m, x: m.c(m.x_in(x)), x_in=nn.Conv2d(4, 4, 1))
    found, graph = placed(model)
    assert len(found) == 2
    assert len({grid for _, grid in quantized_values(graph)}) == 2
