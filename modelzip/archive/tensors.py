"""Tensors by name as the safetensors file that would hold them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelzip.archive.container import METADATA
from modelzip.archive.header import is_text
from modelzip.archive.spans import Span, span
from modelzip.errors import ArchiveError

_TYPES = {
    torch.float64: ("F64", "float64"), torch.float32: ("F32", "float32"),
    torch.float16: ("F16", "float16"), torch.bfloat16: ("BF16", "bfloat16"),
    torch.int64: ("I64", "int64"), torch.int32: ("I32", "int32"), torch.int16: ("I16", "int16"),
    torch.int8: ("I8", "int8"), torch.uint8: ("U8", "uint8"), torch.bool: ("BOOL", "bool"),
    torch.uint16: ("U16", "uint16"), torch.uint32: ("U32", "uint32"),
    torch.uint64: ("U64", "uint64"), torch.float8_e4m3fn: ("F8_E4M3", None),
    torch.float8_e5m2: ("F8_E5M2", None),
}  # fmt: skip
_KEPT = 1 << 25  # bytes of a file that have been read and may stay in memory
TORCH_TYPES = {name: kind for kind, (_, name) in _TYPES.items() if name is not None}


class InMemory:
    """Tensors in the parts that `split` makes of a safetensors file of them.

    >>> parts = InMemory({"w": torch.zeros(2)})
    >>> parts.lengths, parts.tensors[0].name, len(parts.skeleton()) % 8
    ([(64, 8)], 'w', 0)
    """

    kind = "safetensors"

    def __init__(self, tensors: Mapping[str, Any]) -> None:
        self._tensors: dict[str, Tensor] = {}
        header: dict[str, Any] = {}
        spans, end = [], 0
        for name, value in tensors.items():
            tensor = torch.as_tensor(value).detach() if _is_array(value) else None
            if not isinstance(name, str) or tensor is None or tensor.layout != torch.strided:
                raise ArchiveError(f"cannot pack {name!r}: a {type(value).__name__} is no tensor")
            if name == METADATA or not is_text(name):
                raise ArchiveError(f"cannot pack {name!r}: safetensors has no such name; rename it")
            if tensor.dtype not in _TYPES:
                raise ArchiveError(f"cannot pack {name!r}: safetensors has no type {tensor.dtype}")
            code, dtype = _TYPES[tensor.dtype]
            size = tensor.numel() * tensor.element_size()
            shape = list(tensor.shape)
            header[name] = {"dtype": code, "shape": shape, "data_offsets": [end, end + size]}
            spans.append(span(name, dtype, shape, offset=end, size=size))
            self._tensors[name] = tensor
            end += size
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        self._skeleton = len(text).to_bytes(8, "little") + text
        start = len(self._skeleton)
        self.tensors = tuple(
            Span(s.name, s.dtype, s.shape, s.offset + start, s.size) for s in spans
        )
        gaps = [start, *[0] * (len(spans) - 1)]
        self.lengths = [(gap, s.size) for gap, s in zip(gaps, spans, strict=False)]

    def skeleton(self) -> bytes:
        """The header."""
        return self._skeleton

    def data(self, tensor: Span) -> memoryview:
        """The bytes of one of the tensors."""
        values = torch.as_tensor(self._tensors[tensor.name]).detach().cpu().contiguous().reshape(-1)
        found: memoryview = values.view(torch.uint8).numpy().data
        return found

    def close(self) -> None:
        """There is nothing to close."""

    def __enter__(self) -> InMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Saved(InMemory):
    """A state_dict that torch.save wrote; of its tensors, few are in memory at a time.

    ArchiveError if the file holds anything else, or what torch does not load without running code.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(_load_saved(path))
        self._path, self._read = path, 0
        self._lock = Lock()

    def data(self, tensor: Span) -> memoryview:
        """The bytes of one of the tensors."""
        with self._lock:
            self._read += tensor.size
            if self._read > _KEPT:  # a new mapping: the pages that the old one read are let go
                self._tensors, self._read = _load_saved(self._path), tensor.size
        return super().data(tensor)


def _load_saved(path: Path) -> dict[str, Any]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ArchiveError(
            f"cannot pack {path}: torch.load(weights_only=True) refuses it ({reason}); save the "
            "state_dict alone, with torch.save or safetensors"
        ) from error
    if not isinstance(found, Mapping):
        raise ArchiveError(
            f"cannot pack {path}: it holds a {type(found).__name__}, not a state_dict"
        )
    return dict(found)


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))
