"""What a model holds and how much it computes, counted in the file that is deployed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from modelzip.core.running import call, evaluating, frozen


@dataclass(frozen=True, kw_only=True)
class LayerSize:
    """One operator of a file that holds weights or multiplies: its share of `FileSize`.

    `weight` is the name of its first stored tensor, most often the module's own name for it.
    """

    name: str
    op: str
    weight: str
    parameters: int
    nonzero: int
    bits: float
    macs: int


@dataclass(frozen=True, kw_only=True)
class FileSize:
    """The size of an ONNX file and of what is in it.

    Attributes:
        size_bytes: the file, and its external data where there are any.
        parameters: elements of its weights and biases; scales, zero points and the constants of
            shape arithmetic are not counted.
        nonzero: those that are not zero, or not at their zero point.
        bits: mean bits that a parameter is stored in.
        macs: multiply-accumulates of convolutions and matrix products, for one sample.
        uncounted: operators whose macs and packed weights are not counted above: their kind is
            unknown to modelzip, or their shape does not follow from the file.
        layers: the same, operator by operator, in the file's order.
    """

    size_bytes: int
    parameters: int
    nonzero: int
    bits: float
    macs: int
    uncounted: tuple[str, ...]
    layers: tuple[LayerSize, ...]


@dataclass(frozen=True, kw_only=True)
class ModuleSize:
    """What a module holds and computes; `macs` are for one call on the example inputs."""

    parameters: int
    nonzero: int
    macs: int


def file_size(path: str | Path, *, example_inputs: Any = None) -> FileSize:
    """Count what is in the ONNX file `path`.

    Args:
        path: the file.
        example_inputs: one batch, in arrays or tensors, where more than the batch is dynamic.

    Raises:
        ExportError: the file cannot be read, as `modelzip.runtime.onnx_file.read` says.
    """
    from modelzip.measure.onnx_count import count

    layers, uncounted = count(Path(path), example_inputs=example_inputs)
    parameters = sum(layer.parameters for layer in layers)
    bits = sum(layer.bits * layer.parameters for layer in layers)
    return FileSize(
        size_bytes=size_bytes(path),
        parameters=parameters,
        nonzero=sum(layer.nonzero for layer in layers),
        bits=bits / parameters if parameters else 0.0,
        macs=sum(layer.macs for layer in layers),
        uncounted=uncounted,
        layers=layers,
    )


def size_bytes(path: str | Path) -> int:
    """Bytes of an ONNX file, and of the external data it reads, each file once."""
    from modelzip.runtime import onnx_file

    path = Path(path)
    beside = onnx_file.external_files(onnx_file.read(path))
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


def module_size(module: nn.Module, example_inputs: Any) -> ModuleSize:
    """Count the parameters of `module`, a shared one once, and the macs of a call on the inputs.

    What runs in custom kernels is not counted; `file_size` counts those of quantized layers.

    >>> module_size(nn.Linear(4, 2), torch.ones(1, 4))
    ModuleSize(parameters=10, nonzero=..., macs=8)
    """
    counter = FlopCounterMode(display=False)
    with evaluating(module), frozen(module), counter:
        call(module, example_inputs)
    parameters = list(module.parameters())
    return ModuleSize(
        parameters=sum(p.numel() for p in parameters),
        nonzero=sum(int(torch.count_nonzero(p)) for p in parameters),
        macs=counter.get_total_flops() // 2,
    )
