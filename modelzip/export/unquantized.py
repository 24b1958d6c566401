"""Layers left in float among integers stay in float.

Between a DequantizeLinear and a QuantizeLinear, onnxruntime rounds the weights of a float
convolution or product to int8 by itself, with one scale for the whole tensor, and runs it in
integers. It does not where something other than a clamp comes before the QuantizeLinear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

_LAYERS = {"Conv", "ConvTranspose", "Gemm"}
_FOLDED = {"Add", "BatchNormalization", "Mul"}  # into the layer, with constants alone
# a QuantizeLinear is moved before these
_PASSED = {"Clip", "Flatten", "MaxPool", "Relu", "Reshape", "Slice", "Squeeze", "Transpose"}
_PASSED |= {"Unsqueeze"}


def keep_unquantized(proto: onnx.ModelProto) -> None:
    """Put a LeakyRelu with alpha 1, which changes nothing, behind float layers before integers.

    Runtimes fuse it into the layer, so that it takes no time.
    """
    import onnx
    from onnx import TensorProto, helper

    graph = proto.graph
    float_stored = {t.name for t in graph.initializer if t.data_type == TensorProto.FLOAT}
    stored = {t.name for t in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in dict.fromkeys(node.input):
            users.setdefault(name, []).append(node)

    def only_user(node: onnx.NodeProto) -> onnx.NodeProto | None:
        found = users.get(node.output[0], [])
        return found[0] if len(found) == 1 else None

    behind: dict[str, str] = {}  # the last value of each such layer, and its new name
    for node in graph.node:
        if node.op_type not in _LAYERS or not float_stored & set(node.input[1:]):
            continue
        last, user = node, only_user(node)
        while user is not None and user.op_type in _FOLDED and _constant_but_one(user, stored):
            last, user = user, only_user(user)
        while user is not None and user.op_type in _PASSED:
            user = only_user(user)
        if user is not None and user.op_type == "QuantizeLinear":
            behind[last.output[0]] = f"{last.output[0]}_float"
    if not behind:
        return
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        copy = onnx.NodeProto()  # those of the graph go with it
        copy.CopyFrom(node)
        for index, name in enumerate(copy.input):
            copy.input[index] = behind.get(name, name)
        nodes.append(copy)
        for value in set(copy.output) & set(behind):
            nodes.append(helper.make_node("LeakyRelu", [value], [behind[value]], alpha=1.0))
    del graph.node[:]
    graph.node.extend(nodes)


def _constant_but_one(node: onnx.NodeProto, stored: set[str]) -> bool:
    return sum(name not in stored for name in node.input if name) == 1
