"""Packing a model's file, or its tensors, into an archive."""

from __future__ import annotations

import json
import os
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from modelzip.archive import choose, nibbles
from modelzip.archive.choose import AUTO, Coded, Encoding
from modelzip.archive.container import Writer
from modelzip.archive.layout import Piece, groups, piece_shape
from modelzip.archive.nodes import numpy_type
from modelzip.archive.progress import Advance, advancing
from modelzip.archive.segments import split
from modelzip.archive.spans import Span
from modelzip.archive.tensors import InMemory, Saved
from modelzip.errors import ArchiveError, OutputError

INDEX, SKELETON = "index", "skeleton"
MAX_INDEX = 1 << 26  # bytes: a million tensors
_SUMMED = 1 << 12  # bytes of a piece that has a checksum of its own
_ZIP = b"PK\x03\x04"  # how files of torch.save begin


class Parts(Protocol):
    """A file as tensors and a skeleton, as `split` has them."""

    kind: str
    tensors: tuple[Span, ...]
    lengths: list[tuple[int, int]]

    def skeleton(self) -> bytes: ...
    def data(self, tensor: Span) -> memoryview: ...
    def close(self) -> None: ...


@dataclass(frozen=True)
class Packed:
    """What packing did: bytes of the source and of the archive."""

    path: Path
    before: int
    after: int

    @property
    def ratio(self) -> float:
        """The archive's bytes as a fraction of the source's."""
        return self.after / self.before


def pack(
    source: str | Path | Mapping[str, Any],
    path: str | Path,
    *,
    codec: str = AUTO,
    threads: int | None = None,
    progress: bool = False,
) -> Packed:
    """Store a model as small as its bytes allow; `unpack` gives the same bytes back.

    Args:
        source: an ONNX or safetensors file (a checkpoint too), a state_dict that torch.save wrote,
            or tensors by name. The last two come back as a safetensors file.
        path: of the archive, by custom "model.mzip"; what is there stays until it is whole.
        codec: for each tensor the smallest there is, "auto", or one by name.
        threads: that encode at once; by default one for each core.
        progress: show a bar where it takes more than a second.

    Raises:
        ArchiveError: the source is not such a file, or damaged.
        SettingError: there is no codec of that name.
        MissingExtraError: the codec needs a package that is not installed.
        OutputError: the archive cannot be written.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     packed = pack({"w": torch.zeros(10_000)}, f"{folder}/w.mzip")
    >>> packed.before > 40_000, packed.after < 1000
    (True, True)
    """
    choose.check(codec)
    refuse_same(source, path)
    parts = _parts(source)
    try:
        skeleton = parts.skeleton()
        before = len(skeleton) + sum(span.size for span in parts.tensors)
        with Writer(path) as writer, advancing("packing", before, shown=progress) as advance:
            pieces = _write_groups(writer, parts, codec, threads or os.cpu_count() or 1, advance)
            coded = Encoding(codec).bytes(skeleton)
            writer.add(SKELETON, b"".join(coded.data))
            index = {
                "kind": parts.kind,
                "skeleton": [len(skeleton), coded.node.to_json()],
                "gaps": [gap for gap, _ in parts.lengths],
                "tensors": [[s.name, s.dtype, list(s.shape)] for s in parts.tensors],
                "pieces": pieces,
            }
            text = json.dumps(index, separators=(",", ":")).encode()
            if len(text) > MAX_INDEX:
                raise ArchiveError(
                    f"cannot pack {len(parts.tensors)} tensors: their index has {len(text)} bytes, "
                    f"and at most {MAX_INDEX} are read"
                )
            writer.add(INDEX, zlib.compress(text, 9))
            writer.finish({"index": len(text)})
    finally:
        parts.close()
    return Packed(Path(path), before, Path(path).stat().st_size)


def refuse_same(source: str | Path | Mapping[str, Any], path: str | Path) -> None:
    """OutputError where `path` is the file that is read: it would be gone before it is whole."""
    if isinstance(source, Mapping) or not (Path(source).exists() and Path(path).exists()):
        return
    if Path(source).samefile(path):
        raise OutputError(f"cannot write {path}: it is the file that is read; give another name")


def _parts(source: str | Path | Mapping[str, Any]) -> Parts:
    if isinstance(source, Mapping):
        return InMemory(source)
    path = Path(source)
    if path.is_file():
        with path.open("rb") as file:
            if file.read(len(_ZIP)) == _ZIP:
                return Saved(path)
    return split(path)


def _write_groups(
    writer: Writer, parts: Parts, codec: str, threads: int, advance: Advance
) -> list[list[Any]]:
    """Write each group as a blob by its number; for each a list of its pieces' nodes.

    A piece is [node], or [node, CRC-32 of its bytes] if these are many.
    """
    described: list[list[Any]] = []
    waiting: deque[tuple[Sequence[Piece], Future[list[tuple[Coded, int]]]]] = deque()

    def finish() -> None:
        group, future = waiting.popleft()
        found = future.result()
        writer.add(str(len(described)), b"".join(d for coded, _ in found for d in coded.data))
        described.append(
            [
                [coded.node.to_json(), *([crc] if piece.size >= _SUMMED else [])]
                for piece, (coded, crc) in zip(group, found, strict=True)
            ]
        )
        advance(sum(piece.size for piece in group))

    with ThreadPoolExecutor(threads) as pool:
        for group in groups(parts.tensors):
            while len(waiting) >= threads:
                finish()
            waiting.append((group, pool.submit(_encode, parts, group, codec)))
        while waiting:
            finish()
    return described


def _encode(parts: Parts, group: Sequence[Piece], codec: str) -> list[tuple[Coded, int]]:
    """Each piece of a group encoded, and the CRC-32 of its bytes."""
    given, sums = [], []
    for piece in group:
        span = parts.tensors[piece.tensor]
        dtype, shape = piece_shape(span, piece)
        row = piece.size // piece.rows if piece.rows else 0
        data = parts.data(span)[piece.first * row : piece.first * row + piece.size]
        array = np.frombuffer(data, numpy_type(dtype)).reshape(shape)
        if span.dtype in nibbles.TYPES and piece.size == span.size:
            halves = nibbles.from_bytes(array, span.dtype, span.shape)
            if np.array_equal(nibbles.to_bytes(halves), array):
                array, dtype = halves, span.dtype
        given.append((array, dtype))
        sums.append(zlib.crc32(data))
    return list(zip(Encoding(codec).arrays(given), sums, strict=True))
