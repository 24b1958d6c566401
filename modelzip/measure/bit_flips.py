"""Faults in memory: a file with random bits of its weights flipped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from modelzip.core import checks
from modelzip.errors import ExportError
from modelzip.runtime import onnx_file

_SETTINGS = {"Clip", "Pad", "Resize", "Upsample"}  # what these read is no weight


def flip_bits(source: str | Path, target: str | Path, *, rate: float, seed: int) -> int:
    """Write `source` to `target` with each bit of its weights flipped with chance `rate`.

    Weights are what the file stores in tensors of one dimension or more: kernels, biases and
    scales, but not zero points, shapes and indices. A float file has four times the bits of one in
    8-bit integers, and so four times the faults.

    Returns:
        how many bits were flipped.

    Raises:
        SettingError: `rate` is not in (0, 1].
        ExportError: `source` cannot be read, or stores no weights.
    """
    checks.fraction("rate", rate, zero=False, one=True)
    model = onnx_file.read(source, weights=True)
    random = np.random.default_rng(seed)
    found = _weights(model.graph)
    if not found:
        raise ExportError(f"{source} stores no weights in which to flip bits")
    flipped = 0
    for tensor in found:
        if not tensor.raw_data:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
        data = np.frombuffer(tensor.raw_data, np.uint8).copy()
        bits = 8 * data.size
        places = random.choice(bits, size=random.binomial(bits, rate), replace=False)
        np.bitwise_xor.at(data, places >> 3, np.left_shift(1, places & 7).astype(np.uint8))
        tensor.raw_data = data.tobytes()
        flipped += len(places)
    onnx.save(model, str(target))
    return flipped


def _weights(graph: onnx.GraphProto) -> list[onnx.TensorProto]:
    read = {name for node in graph.node if node.op_type in _SETTINGS for name in node.input}
    return [t for t in graph.initializer if t.name not in read and _is_weight(t)]


def _is_weight(tensor: onnx.TensorProto) -> bool:
    if not tensor.dims or tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.BOOL):
        return False
    zero_points = len(tensor.dims) == 1 and onnx.TensorProto.DataType.Name(
        tensor.data_type
    ).startswith(("INT", "UINT"))
    # weights of every kernel have zero points of zero, which runtimes insist on
    return not zero_points or bool(numpy_helper.to_array(tensor).any())
