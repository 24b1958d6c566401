"""OpenVINO sessions on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import openvino

from modelzip.errors import ExportError
from modelzip.runtime import onnx_file
from modelzip.runtime.inputs import Array, InputSpec, match
from modelzip.runtime.operators import one_line, refusal

_HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_CAPABILITIES = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
_DTYPES = {
    "f16": "float16",
    "f32": "float32",
    "f64": "float64",
    "boolean": "bool",
    **{f"i{n}": f"int{n}" for n in (8, 16, 32, 64)},
    **{f"u{n}": f"uint{n}" for n in (8, 16, 32, 64)},
}


class OpenVinoSession:
    """One file in OpenVINO: one stream of `threads` threads, float operators in `precision`.

    Integer operators compute in integers at any precision.
    """

    def __init__(self, path: Path, *, threads: int = 1, precision: str = "float32") -> None:
        onnx_file.check(path)
        self.path = path
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # left alone it takes bfloat16 wherever the processor has it
            "INFERENCE_PRECISION_HINT": _HINTS[precision],
            # and rounds the activations that meet integer weights to integers
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
            "ENABLE_CPU_PINNING": False,  # two sessions would share a core beside a free one
        }
        try:
            model = openvino.Core().compile_model(str(path), "CPU", options)
            described = [
                (port.any_name, port.get_element_type().get_type_name(), port.partial_shape)
                for port in model.inputs
            ]
            self._request = model.create_infer_request()
        except Exception as error:  # a RuntimeError mostly, whatever is wrong
            raise refusal(path, "openvino", error) from error
        self.inputs = tuple(_spec(path, *one) for one in described)

    def run(self, inputs: Any, /) -> list[Array]:
        """Every output, in the file's order."""
        feeds, request = match(self.inputs, inputs), self._request
        try:
            # infer(), on one thread, returns empty outputs where start_async() reports an error
            request.start_async(feeds, share_inputs=True)
            request.wait()
        except Exception as error:  # as above
            raise ExportError(
                f"{self.path}: openvino failed while running it: {one_line(error)}"
            ) from error
        return [tensor.data.copy() for tensor in request.output_tensors]

    def bind(self, inputs: Any, /) -> Callable[[], object]:
        """A function that runs the file once on `inputs`."""
        self.run(inputs)  # fails here rather than while timed
        feeds, request = match(self.inputs, inputs), self._request
        return lambda: request.infer(feeds, share_inputs=True, share_outputs=True)


def missing_precision(precision: str) -> str:
    """One line why OpenVINO cannot compute in `precision` on this processor, or ""."""
    if _CAPABILITIES[precision] in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return ""
    return f"openvino on cpu in {precision}: this processor has no instructions for it"


def _spec(path: Path, name: str, kind: str, shape: openvino.PartialShape) -> InputSpec:
    if kind not in _DTYPES:
        raise ExportError(f"{path}: input {name} is of {kind}, which modelzip cannot feed")
    lengths = tuple(None if n.is_dynamic else n.get_length() for n in shape)
    return InputSpec(name=name, dtype=_DTYPES[kind], shape=lengths)
