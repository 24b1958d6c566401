"""Opening an archive: one tensor, the whole file again, or a check of everything."""

from __future__ import annotations

import math
import os
import zlib
from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelzip.archive import nibbles
from modelzip.archive.aside import written_aside
from modelzip.archive.container import Reader
from modelzip.archive.index import KINDS, Stored, read_index
from modelzip.archive.layout import Piece, bytes_of, piece_shape
from modelzip.archive.nodes import Decoding
from modelzip.archive.pack import SKELETON, refuse_same
from modelzip.archive.progress import advancing
from modelzip.archive.segments import join
from modelzip.archive.spans import Span
from modelzip.archive.tensors import TORCH_TYPES
from modelzip.archive.unbundle import is_bundle, unbundle
from modelzip.errors import ArchiveError

LIMIT = 1 << 38  # bytes that an archive may ask for

Decoded = tuple[Piece, NDArray[np.uint8]]


@dataclass(frozen=True)
class Entry:
    """A tensor in an archive: how it is stored, and in how many bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    codec: str
    before: int
    after: int

    @property
    def bits(self) -> float:
        """Bits stored for each value."""
        return 8 * self.after / max(1, math.prod(self.shape))

    @property
    def ratio(self) -> float:
        """Stored bytes as a fraction of the tensor's."""
        return self.after / max(1, self.before)


class Archive(Mapping[str, Tensor]):
    """An archive's tensors by name, each decoded when it is asked for; int4 as int8.

    Reading one reads its blob, of about 4 MB, or 16 MB of a large tensor. Tensors of less than 64
    bytes are not listed.

    >>> import tempfile
    >>> from modelzip.archive.pack import pack
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = pack({"w": torch.arange(40.0)}, f"{folder}/w.mzip")
    ...     with Archive(f"{folder}/w.mzip") as archive:
    ...         print(list(archive), archive["w"][:3], archive.entries[0].before)
    ['w'] tensor([0., 1., 2.]) 160
    """

    def __init__(self, path: str | Path, *, limit: int = LIMIT) -> None:
        self._reader = Reader(path)
        self._path = str(path)
        try:
            index = read_index(self._reader, limit)
        except ArchiveError as error:
            self._reader.close()
            raise ArchiveError(f"{path}: {error}") from error
        self.kind, self.size = index.kind, index.size
        self._skeleton, self._skeleton_size = index.skeleton, index.skeleton_size
        self._spans, self._gaps = index.spans, index.gaps
        self._names = {span.name: number for number, span in enumerate(self._spans)}
        self._groups, self._nodes = index.groups, index.stored
        self._open: tuple[int, Iterator[Decoded]] | None = None
        self._at = 0

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._tensor(self._spans[self._names[name]], self.read(name))

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def read(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, uint8. ArchiveError if they are not those that were packed."""
        number = self._names[name]
        found = [
            index
            for index, group in enumerate(self._groups)
            if group[0].tensor <= number <= group[-1].tensor
        ]
        one = len(found) == 1
        decoded = self._from_one(found[0], number) if one else self._in_parallel(found)
        size = self._spans[number].size
        try:
            out = np.empty(size, np.uint8)
        except MemoryError as error:
            raise ArchiveError(
                f"{self._path}: there is no memory for the {size} bytes of tensor {name!r}"
            ) from error
        at = 0
        for piece, data in decoded:
            if piece.tensor == number:
                out[at : at + piece.size] = data
                at += piece.size
        return out

    @property
    def entries(self) -> list[Entry]:
        """What there is and how it is stored, in order."""
        after = [0] * len(self._spans)
        codecs: list[list[str]] = [[] for _ in self._spans]
        for group, nodes in zip(self._groups, self._nodes, strict=True):
            for piece, entry in zip(group, nodes, strict=True):
                after[piece.tensor] += entry.node.total
                codecs[piece.tensor].append(str(entry.node))
        return [
            Entry(s.name, s.dtype, s.shape, " ".join(dict.fromkeys(c)), s.size, total)
            for s, c, total in zip(self._spans, codecs, after, strict=True)
        ]

    def skeleton(self) -> bytes | memoryview:
        """All of the file that is in no tensor."""
        decoding = Decoding(self._reader.blob(SKELETON))
        try:
            found = decoding.bytes(self._skeleton, self._skeleton_size)
        except (ArchiveError, MemoryError) as error:
            reason = str(error) or f"there is no memory for {self._skeleton_size} bytes"
            raise ArchiveError(f"{self._path}: what is in no tensor: {reason}") from error
        return found

    def write(self, path: str | Path, *, progress: bool = False) -> None:
        """Write the file that was packed, whole or not at all. OutputError if it cannot be."""
        path = Path(path)
        refuse_same(self._path, path)
        lengths = [(gap, s.size) for gap, s in zip(self._gaps, self._spans, strict=True)]
        with (
            written_aside(path) as file,
            advancing("unpacking", self.size, shown=progress) as advance,
        ):

            def data() -> Iterator[memoryview]:
                for piece, found in self._in_parallel(range(len(self._groups))):
                    yield found.data
                    advance(piece.size)

            join(self.skeleton(), lengths, data(), file)

    def test(self) -> None:
        """Decode everything. ArchiveError for the first thing that is not what was packed."""
        self.skeleton()
        for _ in self._in_parallel(range(len(self._groups))):
            pass

    def _from_one(self, group: int, number: int) -> Iterator[Decoded]:
        """The pieces of one group to the last of tensor `number`, from where it was left."""
        first = bisect_left(self._groups[group], number, key=lambda piece: piece.tensor)
        if self._open is None or self._open[0] != group or self._at > first:
            self._open, self._at = (group, self._decoded(group)), 0
        while self._at < len(self._groups[group]):
            if self._groups[group][self._at].tensor > number:
                break
            self._at += 1
            yield self._next(self._open[1])

    def _next(self, decoded: Iterator[Decoded]) -> Decoded:
        """The next piece of the open group; after an error it is open no more."""
        try:
            return next(decoded)
        except ArchiveError:
            self._open = None
            raise

    def _in_parallel(self, wanted: Sequence[int]) -> Iterator[Decoded]:
        """The pieces of the groups in `wanted`, in order; one group is decoded on each core."""
        cores = min(len(wanted), os.cpu_count() or 1)
        waiting: deque[Future[list[Decoded]]] = deque()
        with ThreadPoolExecutor(max(1, cores)) as pool:
            for group in wanted:
                waiting.append(pool.submit(list, self._decoded(group)))
                if len(waiting) > cores:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()

    def _decoded(self, group: int) -> Iterator[Decoded]:
        """The pieces of one group, each with its bytes."""
        start = self._reader.blobs[str(group)].offset
        names = [self._spans[self._groups[group][end].tensor].name for end in (0, -1)]
        try:
            decoding = Decoding(self._reader.blob(str(group)))
        except ArchiveError as error:
            held = " to ".join(repr(name) for name in dict.fromkeys(names))
            raise ArchiveError(f"{error}; tensor {held} is in it") from error
        for piece, entry in zip(self._groups[group], self._nodes[group], strict=True):
            span = self._spans[piece.tensor]
            try:
                yield piece, _checked(decoding, span, piece, entry)
            except ArchiveError as error:
                raise ArchiveError(
                    f"{self._path}: tensor {span.name!r}, to byte {start + decoding.at}: {error}"
                ) from error

    def _tensor(self, span: Span, data: NDArray[np.uint8]) -> Tensor:
        if span.dtype in nibbles.TYPES:
            return torch.from_numpy(nibbles.from_bytes(data, span.dtype, span.shape))
        kind = TORCH_TYPES.get(span.dtype, torch.uint8)
        return torch.from_numpy(data).view(kind).reshape(span.shape)

    def close(self) -> None:
        """Let the file go."""
        self._open = None
        self._reader.close()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_archive(path: str | Path, *, limit: int = LIMIT) -> Archive:
    """The archive at `path`; ArchiveError if it is damaged, or asks for over `limit` bytes."""
    return Archive(path, limit=limit)


def unpack(
    path: str | Path, out: str | Path, *, limit: int = LIMIT, progress: bool = False
) -> Path:
    """Write the file that was packed to `out`, to the byte; or the files of a bundle.

    Which of the two it is, its content says.

    Args:
        out: a file, or a folder, in which it is named as the archive. Of a bundle, the folder
            for its files, made if it is not there; nothing in it is overwritten.
        limit: bytes that it may have, or they.
        progress: show a bar where an archive takes more than a second.

    Raises:
        ArchiveError: the archive is damaged, or asks for more than `limit`.
        OutputError: the file cannot be written.
    """
    if is_bundle(path):
        return unbundle(path, out, limit=limit)
    with open_archive(path, limit=limit) as archive:
        target = Path(out)
        if target.is_dir():
            target = target / (Path(path).stem + KINDS[archive.kind])
        archive.write(target, progress=progress)
    return target


def _checked(decoding: Decoding, span: Span, piece: Piece, entry: Stored) -> NDArray[np.uint8]:
    dtype, shape = piece_shape(span, piece)
    if bytes_of(dtype, shape) != piece.size:
        raise ArchiveError(f"{dtype} {list(shape)} does not have {piece.size} bytes")
    array = np.ascontiguousarray(decoding.array(entry.node, dtype, shape))
    data = array.reshape(-1).view(np.uint8)
    found = zlib.crc32(data.data) if entry.crc32 is not None else None
    if found != entry.crc32:
        raise ArchiveError(f"its bytes have CRC-32 {found}, and {entry.crc32} were packed")
    return data
