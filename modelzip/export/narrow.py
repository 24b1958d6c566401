"""Integers that fit into 4 bits are stored in 4 bits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import onnx


def narrow(proto: onnx.ModelProto) -> None:
    """Store int8 initializers as int4, in place, where all values fit and only Casts read them.

    Runtimes fold such a Cast once, when they load the file. INT4 packs two values to a byte, the
    first in the low half, https://onnx.ai/onnx/technical/int4.html.
    """
    import onnx

    readers: dict[str, set[str]] = {}
    for node in proto.graph.node:
        for name in node.input:
            readers.setdefault(name, set()).add(node.op_type)
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.INT8 or readers.get(tensor.name) != {"Cast"}:
            continue
        values = onnx.numpy_helper.to_array(tensor).ravel()
        if values.size and values.min() >= -8 and values.max() <= 7:
            halves = np.append(values, np.zeros(values.size % 2, np.int8)).view(np.uint8) & 0xF
            tensor.raw_data = (halves[0::2] | halves[1::2] << 4).tobytes()
            tensor.data_type = onnx.TensorProto.INT4
