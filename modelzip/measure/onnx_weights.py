"""The tensors of an ONNX graph that are weights, however they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from modelzip.errors import ExportError

CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv", "FusedConv"}
PRODUCTS = {"Gemm", "QGemm", "MatMul", "MatMulInteger", "QLinearMatMul", "DynamicQuantizeMatMul"}
PRODUCTS |= {"MatMulIntegerToFloat"}

# operators of other domains that are known: com.microsoft, as onnxruntime writes them
KNOWN_FOREIGN = CONVOLUTIONS | PRODUCTS | {"DequantizeLinear", "QuantizeLinear", "QLinearAdd"}
KNOWN_FOREIGN |= {"QLinearAveragePool", "QLinearConcat", "QLinearGlobalAveragePool", "QLinearMul"}
KNOWN_FOREIGN |= {"QLinearLeakyRelu", "QLinearSigmoid", "QLinearSoftmax", "Gelu", "BiasGelu"}
KNOWN_FOREIGN |= {"FastGelu", "QuickGelu", "SkipLayerNormalization"}

# operators that take integers as they are: where each weight or bias is, and its zero point
_SLOTS: dict[str, dict[int, int | None]] = {
    "ConvInteger": {1: 3},
    "DynamicQuantizeMatMul": {1: 3, 4: None},
    "MatMulInteger": {1: 3},
    "MatMulIntegerToFloat": {1: 5, 6: None},
    "QGemm": {3: 5, 6: None},
    "QLinearConv": {3: 5, 8: None},
    "QLinearMatMul": {3: 5},
}
# operators between a stored tensor and the operator it is a weight of
_TRANSPARENT = {"Cast", "DequantizeLinear", "Identity", "QuantizeLinear", "Reshape", "Transpose"}
_NO_WEIGHTS = {"Clip", "Pad", "Resize", "Upsample"}  # their constants are settings


@dataclass(frozen=True)
class Stored:
    """A stored tensor that an operator reads, perhaps through others.

    Attributes:
        tensor: as it is in the file.
        zero_point: the name of its zero point, or "".
        axis: the axis of `tensor` that the zero point runs along.
        dequantized: whether it is stored as integers with a scale.
        moves: Transpose and Reshape operators on the way, the operator's own end last.
        position: among the inputs of the operator.
    """

    tensor: onnx.TensorProto
    zero_point: str = ""
    axis: int = 1
    dequantized: bool = False
    moves: tuple[onnx.NodeProto, ...] = ()
    position: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether its elements are integers."""
        return _is_integer(self.tensor)


def stored_tensors(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Initializers, and constants, by the name that operators know them by."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                tensor = onnx.TensorProto()
                tensor.CopyFrom(attribute.t)
                tensor.name = node.output[0]
                found[tensor.name] = tensor
    return found


def weights_of(
    node: onnx.NodeProto,
    stored: Mapping[str, onnx.TensorProto],
    makers: Mapping[str, onnx.NodeProto],
) -> Iterator[Stored]:
    """The stored tensors that are weights or biases of `node`."""
    if node.op_type in _TRANSPARENT or node.op_type in _NO_WEIGHTS:
        return
    slots = _SLOTS.get(node.op_type)
    for index, name in enumerate(node.input):
        if slots is not None and index not in slots:
            continue
        if slots is not None and name in stored:
            zero = slots[index]
            has_zero = zero is not None and zero < len(node.input)
            # per channel: the output channels, first in a convolution and last in a product
            first = node.op_type in CONVOLUTIONS or flag(node, "transB")
            axis = 0 if first else -1
            zero_point = node.input[zero] if has_zero and zero else ""
            yield Stored(stored[name], zero_point, axis, position=index)
            continue
        found = _trace(name, index, stored, makers)
        if found is None or not found.tensor.dims or not _is_weight(found):
            continue
        # integers that an unknown operator takes may hold several weights each
        unknown = is_foreign(node) and node.op_type not in KNOWN_FOREIGN
        if not (unknown and _is_integer(found.tensor)):
            yield found


def _trace(
    name: str,
    position: int,
    stored: Mapping[str, onnx.TensorProto],
    makers: Mapping[str, onnx.NodeProto],
) -> Stored | None:
    """The stored tensor that `name` is, but for its type, layout and scale."""
    zero_point, axis, dequantized = "", 1, False
    moves: list[onnx.NodeProto] = []
    while name not in stored:
        maker = makers.get(name)
        if maker is None or maker.op_type not in _TRANSPARENT:
            return None
        if maker.op_type == "DequantizeLinear":
            dequantized = True
            zero_point = maker.input[2] if len(maker.input) > 2 else ""
            axis = next((a.i for a in maker.attribute if a.name == "axis"), 1)
        elif maker.op_type in ("Transpose", "Reshape"):
            moves.insert(0, maker)
        name = maker.input[0]
    if not _is_integer(stored[name]):  # a float that is quantized as it is used
        zero_point, dequantized = "", False
    return Stored(stored[name], zero_point, axis, dequantized, tuple(moves), position)


def _is_integer(tensor: onnx.TensorProto) -> bool:
    name: str = onnx.TensorProto.DataType.Name(tensor.data_type)
    return name.startswith(("INT", "UINT", "BOOL"))


def _is_weight(found: Stored) -> bool:
    """Wide integers are shapes and indices, unless they are dequantized."""
    narrow = bits_of(found.tensor) <= 8 and found.tensor.data_type != onnx.TensorProto.BOOL
    return found.dequantized or narrow or not _is_integer(found.tensor)


def bits_of(tensor: onnx.TensorProto) -> int:
    """Bits that an element of `tensor` is stored in."""
    name = onnx.TensorProto.DataType.Name(tensor.data_type)
    digits = "".join(c for c in name.split("E")[0] if c.isdigit())  # FLOAT8E4M3FN, INT4
    if digits:
        return int(digits)
    return {"FLOAT": 32, "DOUBLE": 64}.get(name, 8)


def nonzero_elements(
    found: Stored, stored: Mapping[str, onnx.TensorProto], folder: Path
) -> npt.NDArray[np.bool_]:
    """Which elements of a tensor differ from zero, or from their zero point; in its own layout.

    ExportError where the tensor is damaged, or its zero point does not fit.
    """
    values = tensor_values(found.tensor, folder)
    if found.zero_point not in stored:
        return np.not_equal(values, 0)
    zero = tensor_values(stored[found.zero_point], folder)
    try:
        if zero.ndim == 1 and values.ndim > 1:
            along = [1] * values.ndim
            along[found.axis] = -1
            zero = zero.reshape(along)
        elif zero.ndim > 1:  # a block has a zero point each
            length = values.shape[found.axis]
            zero = np.repeat(zero, -(-length // zero.shape[found.axis]), found.axis)
            zero = np.take(zero, np.arange(length), found.axis)
        return np.broadcast_to(values != zero, values.shape)
    except (ValueError, IndexError, ZeroDivisionError) as error:
        raise ExportError(
            f"the zero point of tensor {found.tensor.name}, {list(zero.shape)}, does not fit its "
            f"shape {list(values.shape)}"
        ) from error


def tensor_values(tensor: onnx.TensorProto, folder: Path) -> npt.NDArray[np.float32]:
    """A stored tensor's values, from `folder` where they lie beside the file."""
    try:
        return numpy_helper.to_array(tensor, str(folder)).astype(np.float32)
    except (ValueError, TypeError) as error:
        raise ExportError(f"tensor {tensor.name} of the file is damaged: {error}") from error


def is_foreign(node: onnx.NodeProto) -> bool:
    """Whether the operator is not one of ONNX itself."""
    return node.domain not in ("", "ai.onnx")


def flag(node: onnx.NodeProto, name: str) -> bool:
    """Whether the integer attribute `name` of `node` is there and not 0."""
    return any(attribute.name == name and attribute.i for attribute in node.attribute)
