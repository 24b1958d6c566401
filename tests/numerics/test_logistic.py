"""The logistic function: close to the truth, and the runtime's own to the last bit."""

from __future__ import annotations

import onnxruntime
import torch
from onnx import TensorProto, helper

from modelzip.numerics.logistic import logistic


def test_it_is_the_logistic_function() -> None:
    x = torch.linspace(-30, 30, 10_001)
    truth = 1 / (1 + torch.exp(-x.double()))
    assert float((logistic(x) - truth).abs().max()) < 2e-7


def test_it_is_the_runtimes() -> None:
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["n"]) for n in "xy"]
    node = helper.make_node("Sigmoid", ["x"], ["y"])
    graph = helper.make_graph([node], "sigmoid", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    x = torch.empty(100_000).uniform_(-20, 20, generator=torch.Generator().manual_seed(0))
    (theirs,) = session.run(None, {"x": x.numpy()})
    # one in 100,000 differs by an ulp: a float64 product and sum is rounded twice, not once
    assert float((logistic(x) == torch.from_numpy(theirs)).float().mean()) > 0.9999
