"""onnxruntime sessions on the CPU, and on CUDA where its provider is installed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime

from modelzip.errors import ExportError
from modelzip.runtime import onnx_file
from modelzip.runtime.inputs import Array, InputSpec, match
from modelzip.runtime.operators import one_line, refusal

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{n})": f"{sign}int{n}" for sign in ("", "u") for n in (8, 16, 32, 64)},
}


class OrtSession:
    """One file in onnxruntime: sequential execution, `threads` threads inside an operator."""

    def __init__(
        self, path: Path, *, device: str = "cpu", threads: int = 1, profile: Path | None = None
    ) -> None:
        onnx_file.check(path)
        self.path = path
        self._device = device
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 3  # what matters comes as an exception
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile)
        try:
            self.native = onnxruntime.InferenceSession(
                str(path), options, providers=[_PROVIDERS[device]]
            )
            # reading a name can fail too: it need not be UTF-8
            described = [(node.name, node.type, node.shape) for node in self.native.get_inputs()]
        except Exception as error:  # its errors have no common base but Exception
            raise refusal(path, "onnxruntime", error) from error
        if self.native.get_providers()[0] != _PROVIDERS[device]:  # it falls back without a word
            raise ExportError(
                f"{path}: onnxruntime could not start {_PROVIDERS[device]}; "
                "are the CUDA libraries that its release names installed?"
            )
        self.inputs = tuple(_spec(path, *one) for one in described)

    def run(self, inputs: Any, /) -> list[Array]:
        """Every output, in the file's order."""
        feeds = match(self.inputs, inputs)
        outputs: list[Array] = self._guarded(lambda: self.native.run(None, feeds))
        return outputs

    def bind(self, inputs: Any, /) -> Callable[[], object]:
        """A function that runs the file once on `inputs`, which are put on the device now."""
        feeds = match(self.inputs, inputs)
        native = self.native
        self._guarded(lambda: native.run(None, feeds))  # fails here rather than while timed
        if self._device == "cpu":
            return lambda: native.run(None, feeds)
        binding = native.io_binding()
        for name, array in feeds.items():
            value = onnxruntime.OrtValue.ortvalue_from_numpy(array, self._device, 0)
            binding.bind_ortvalue_input(name, value)
        for node in native.get_outputs():
            binding.bind_output(node.name, self._device)

        def run_once() -> None:
            native.run_with_iobinding(binding)
            binding.synchronize_outputs()

        return run_once

    def _guarded(self, function: Callable[[], Any]) -> Any:
        try:
            return function()
        except Exception as error:  # as above
            raise ExportError(
                f"{self.path}: onnxruntime failed while running it: {one_line(error)}"
            ) from error


def missing_provider(device: str) -> str:
    """One line why onnxruntime cannot use `device` here, or ""."""
    if _PROVIDERS[device] in onnxruntime.get_available_providers():
        return ""
    return (
        f"onnxruntime on {device}: onnxruntime {onnxruntime.__version__} as installed has no "
        f"{_PROVIDERS[device]}; pip install onnxruntime-gpu in its place"
    )


def _spec(path: Path, name: str, kind: str, lengths: list[int | str | None]) -> InputSpec:
    if kind not in _DTYPES:
        raise ExportError(f"{path}: input {name} is a {kind}, which modelzip cannot feed")
    shape = tuple(n if isinstance(n, int) and n >= 0 else None for n in lengths)
    return InputSpec(name=name, dtype=_DTYPES[kind], shape=shape)
