"""Four bits for integers that need no more."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from modelzip.export.narrow import narrow


def model(values: list[int], *readers: str) -> onnx.ModelProto:
    """A graph in which each of `readers` reads the int8 initializer q."""
    attributes = {"Cast": {"to": TensorProto.FLOAT}}
    nodes = [
        helper.make_node(op, ["q"], [f"y{i}"], **attributes.get(op, {}))
        for i, op in enumerate(readers)
    ]
    outputs = [
        helper.make_tensor_value_info(
            f"y{i}", TensorProto.FLOAT if op == "Cast" else TensorProto.INT8, [len(values)]
        )
        for i, op in enumerate(readers)
    ]
    q = numpy_helper.from_array(np.array(values, np.int8), "q")
    graph = helper.make_graph(nodes, "g", [], outputs, [q])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def kind(proto: onnx.ModelProto) -> int:
    return int(proto.graph.initializer[0].data_type)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.integers(-8, 7), min_size=1, max_size=9))
def test_values_are_the_same_in_half_the_bytes(values: list[int]) -> None:
    proto = model(values, "Cast")
    narrow(proto)
    (tensor,) = proto.graph.initializer
    assert (tensor.data_type, len(tensor.raw_data)) == (TensorProto.INT4, (len(values) + 1) // 2)
    onnx.checker.check_model(proto, full_check=True)
    served = onnxruntime.InferenceSession(proto.SerializeToString()).run(None, {})
    assert served[0].tolist() == values


@pytest.mark.parametrize(
    ("values", "readers"), [([8, 0], ["Cast"]), ([-9], ["Cast"]), ([1], ["Cast", "Neg"])]
)
def test_wider_values_and_other_readers_keep_eight_bits(
    values: list[int], readers: list[str]
) -> None:
    proto = model(values, *readers)
    narrow(proto)
    assert kind(proto) == TensorProto.INT8
