"""On which processors a file's integers are those that its module computes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto, numpy_helper

from modelzip.runtime import onnx_file

_INTEGER_INPUTS = {"QuantizeLinear", "DynamicQuantizeLinear"}
_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


@dataclass(frozen=True, kw_only=True)
class Promise:
    """What can be promised of a file's integer arithmetic on this machine.

    Attributes:
        text: the instruction sets for which its sums are the module's, in one sentence.
        kept: False where this processor is known to compute other sums.
    """

    text: str
    kept: bool


def integer_promise(path: Path, isa: Sequence[str]) -> Promise | None:
    """The promise for the file `path` on a processor with the instruction sets `isa`.

    None if the file has no integer kernels. Two products of unsigned and signed bytes are summed
    in 16 bits by x86 processors without VNNI, which saturates unless weights are in [-64, 63].
    ExportError for a file that cannot be read.
    """
    model = onnx_file.read(path, weights=True)
    if not any(node.op_type in _INTEGER_INPUTS for node in model.graph.node):
        return None
    wide = [  # weights of fewer bits are packed, as another type
        weight
        for weight in model.graph.initializer
        if weight.data_type == TensorProto.INT8 and len(weight.dims) > 1 and not _is_narrow(weight)
    ]
    if not {"avx2", *_VNNI} & set(isa):
        return Promise(
            text="integer sums are the module's on x86 processors; this one was never tried",
            kept=True,
        )
    if not wide:
        return Promise(
            text="integer sums are the module's on x86 processors with AVX2 or VNNI: weights are "
            "in [-64, 63]",
            kept=True,
        )
    here = [name for name in _VNNI if name in isa]
    if here:
        return Promise(
            text="integer sums are the module's on x86 processors with AVX512-VNNI or AVX-VNNI; "
            f"this one has {', '.join(here)}",
            kept=True,
        )
    return Promise(
        text=f"this processor has no VNNI, so sums with 8-bit weights saturate, as {wide[0].name} "
        "has them: answers and accuracy may differ from the module's; set portable: true in int8",
        kept=False,
    )


def _is_narrow(weight: onnx.TensorProto) -> bool:
    values = numpy_helper.to_array(weight)
    return bool(values.size == 0 or (values.min() >= -64 and values.max() <= 63))
