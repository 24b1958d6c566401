"""The tensors of a safetensors file, found in its header."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from modelzip.archive.container import KEY, METADATA
from modelzip.archive.header import read_header
from modelzip.archive.spans import MAX_DIMS, Span, span
from modelzip.errors import ArchiveError

DTYPES = {  # what is not here (F4, F6_E2M3, ...) is bytes without a shape
    **dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ", "F8_E8M0"), "uint8"),
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "F16": "float16",
    "BF16": "bfloat16",
    "U32": "uint32",
    "I32": "int32",
    "F32": "float32",
    "U64": "uint64",
    "I64": "int64",
    "F64": "float64",
    "C64": "complex64",
}


def find_tensors(view: memoryview) -> Iterator[Span]:
    """The tensors of a safetensors file, in the order of their bytes. ArchiveError if damaged."""
    header, start = read_header(view)
    metadata = header.get(METADATA)
    if isinstance(metadata, dict) and KEY in metadata:
        raise ArchiveError("it is an archive already")
    found = [
        _tensor(name, entry, start, len(view)) for name, entry in header.items() if name != METADATA
    ]
    found.sort(key=lambda tensor: (tensor.offset, tensor.size))
    end = start
    for tensor in found:
        if tensor.offset < end:
            raise ArchiveError(f"tensor {tensor.name!r} overlaps another at byte {tensor.offset}")
        end = tensor.offset + tensor.size
        yield tensor


def _tensor(name: str, entry: Any, start: int, size: int) -> Span:
    match entry:
        case {"dtype": str(dtype), "shape": list(shape), "data_offsets": [int(first), int(end)]}:
            if len(shape) > MAX_DIMS or any(type(n) is not int or n < 0 for n in shape):
                raise ArchiveError(f"tensor {name[:100]!r} has no shape of sizes from 0")
            if not 0 <= first <= end <= size - start:
                raise ArchiveError(
                    f"tensor {name[:100]!r} claims bytes {str(first)[:20]} to {str(end)[:20]} of "
                    f"data that has {size - start}"
                )
        case _:
            raise ArchiveError(f"tensor {name[:100]!r} lacks a dtype, a shape or two offsets")
    return span(name, DTYPES.get(dtype), shape, offset=start + first, size=end - first)
