"""Loading a model into a runtime: `load(source, runtime=..., device=..., threads=...)`."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from modelzip.core import checks
from modelzip.errors import ExportError, SettingError
from modelzip.runtime.inputs import Array, InputSpec
from modelzip.runtime.operators import UnsupportedError

FILE_RUNTIMES = ("onnxruntime", "openvino")
MODULE_RUNTIMES = ("torch", "torch.compile")
RUNTIMES = (*FILE_RUNTIMES, *MODULE_RUNTIMES)
DEVICES = ("cpu", "cuda")
PRECISIONS = ("float32", "float16", "bfloat16")


class Session(Protocol):
    """A model ready to serve. It runs on host arrays and returns host arrays."""

    @property
    def inputs(self) -> tuple[InputSpec, ...]:
        """What the model takes, in order."""
        ...

    def run(self, inputs: Any, /) -> list[Array]:
        """Every output for one batch: an array or tensor, a tuple of them, or a dict by name.

        DataError where `inputs` do not fit; ExportError where the runtime fails on them.
        """
        ...

    def bind(self, inputs: Any, /) -> Callable[[], object]:
        """A function for timing: each call runs the model once, to completion.

        Inputs are checked and put on the device beforehand, and outputs are left there.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Serving:
    """One way to serve a model: a runtime, what it is asked to compute floats in, a device.

    >>> print(Serving(runtime="openvino", precision="bfloat16"))
    openvino on cpu in bfloat16
    """

    runtime: str = "onnxruntime"
    precision: str = "float32"
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.runtime} on {self.device} in {self.precision}"


@dataclass(frozen=True, kw_only=True)
class Availability:
    """Whether this machine has a runtime on a device: `missing` is "" or one line why not."""

    runtime: str
    device: str
    missing: str = ""


def load(
    source: str | Path | nn.Module,
    *,
    runtime: str = "onnxruntime",
    device: str = "cpu",
    threads: int = 1,
    precision: str = "float32",
    example_inputs: Any = None,
) -> Session:
    """A session for an ONNX file (`FILE_RUNTIMES`) or a module (`MODULE_RUNTIMES`).

    Args:
        source: the file, or the module, which is copied.
        runtime: one of `RUNTIMES`.
        device: "cpu" or "cuda".
        threads: CPU threads that one operator may use.
        precision: what a module, or the float operators of a file in OpenVINO, compute in;
            onnxruntime computes in the types that the file holds. Inputs and outputs stay float32.
        example_inputs: one batch, which a module needs, as it does not say what it takes.

    Raises:
        SettingError: a setting there is not, or one that does not fit the source.
        ExportError: the runtime, device or precision is not here, or the runtime cannot load the
            source; where it lacks an operator, the error says whether another one has it.

    >>> net = nn.Linear(4, 2)
    >>> session = load(net, runtime="torch", example_inputs=torch.ones(1, 4))
    >>> session.run(torch.ones(3, 4))[0].shape
    (3, 2)
    """
    checks.choice("precision", precision, PRECISIONS)
    checks.integer("threads", threads, low=1)
    if why := missing(runtime, device, precision=precision):
        raise ExportError(why)
    if runtime in FILE_RUNTIMES:
        if isinstance(source, nn.Module):
            raise SettingError(f"{runtime} runs files; export the module and give the path")
        if precision not in precisions(runtime):
            raise SettingError(
                f"precision={precision!r} is not for {runtime}, which computes in the types that "
                "the file holds"
            )
        return _load_file(
            Path(source), runtime, device=device, threads=threads, precision=precision
        )
    from modelzip.runtime.torch_session import TorchSession

    if not isinstance(source, nn.Module):
        raise SettingError(
            f"{runtime} runs modules, not files; use {' or '.join(FILE_RUNTIMES)} for {source}"
        )
    if example_inputs is None:
        raise SettingError(
            f"{runtime} needs example_inputs=...: a module does not say what it takes"
        )
    return TorchSession(
        source,
        example_inputs,
        device=device,
        threads=threads,
        precision=precision,
        compiled=runtime == "torch.compile",
    )


def precisions(runtime: str) -> tuple[str, ...]:
    """What `runtime` can be asked to compute floats in; onnxruntime does as the file says.

    >>> precisions("onnxruntime")
    ('float32',)
    """
    return ("float32",) if runtime == "onnxruntime" else PRECISIONS


def missing(runtime: str, device: str, *, precision: str = "float32") -> str:
    """One line why `runtime` cannot compute in `precision` on `device` here, or "" if it can.

    >>> missing("torch", "cpu")
    ''
    """
    checks.choice("runtime", runtime, RUNTIMES)
    checks.choice("device", device, DEVICES)
    if runtime == "onnxruntime":
        from modelzip.runtime.ort_session import missing_provider

        return missing_provider(device)
    if runtime == "openvino":
        return _missing_openvino(device, precision)
    if device == "cuda" and not torch.cuda.is_available():
        return f"{runtime} on cuda: torch {torch.__version__} sees no CUDA device"
    if runtime == "torch.compile" and device == "cpu" and not _compiler():
        return "torch.compile on cpu: there is no C++ compiler; install g++ or set CXX"
    return ""


def available() -> tuple[Availability, ...]:
    """Every runtime on every device, and why those that are missing are.

    >>> [a.missing for a in available() if (a.runtime, a.device) == ("onnxruntime", "cpu")]
    ['']
    """
    return tuple(
        Availability(runtime=runtime, device=device, missing=missing(runtime, device))
        for runtime in RUNTIMES
        for device in DEVICES
    )


def _load_file(path: Path, runtime: str, **settings: Any) -> Session:
    try:
        return _open(path, runtime, **settings)
    except UnsupportedError as error:
        raise ExportError(f"{error}; {_elsewhere(path, runtime)}") from error


def _open(
    path: Path, runtime: str, *, device: str = "cpu", threads: int = 1, precision: str = "float32"
) -> Session:
    if runtime == "openvino":
        from modelzip.runtime.openvino_session import OpenVinoSession

        return OpenVinoSession(path, threads=threads, precision=precision)
    from modelzip.runtime.ort_session import OrtSession

    return OrtSession(path, device=device, threads=threads)


def _elsewhere(path: Path, refused: str) -> str:
    """What to do with a file that the runtime `refused` cannot run."""
    (other,) = (name for name in FILE_RUNTIMES if name != refused)
    if why := missing(other, "cpu"):
        return f"the other runtime is not here to try ({why})"
    try:
        _open(path, other)
    except ExportError:
        return "no runtime here can; build that layer from standard ONNX operators"
    return f"{other} can"


def _missing_openvino(device: str, precision: str) -> str:
    if device == "cuda":
        return "openvino on cuda: it runs on the CPU; use onnxruntime or torch there"
    if importlib.util.find_spec("openvino") is None:
        return "openvino on cpu: OpenVINO is not installed; pip install 'modelzip[openvino]'"
    from modelzip.runtime.openvino_session import missing_precision

    return missing_precision(precision)


def _compiler() -> str | None:
    names = [os.environ.get("CXX", ""), "g++", "clang++", "c++"]
    return next((found for name in names if name and (found := shutil.which(name))), None)
