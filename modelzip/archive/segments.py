"""A model's file as its tensors and a skeleton, which is every other byte, and back again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from modelzip.archive import onnx_segments, safetensors_segments
from modelzip.archive.header import has_header
from modelzip.archive.mapped import Mapped
from modelzip.archive.spans import Span
from modelzip.errors import ArchiveError

SMALLEST = 64
FINDERS: dict[str, Callable[[memoryview], Iterator[Span]]] = {
    "onnx": onnx_segments.find_tensors,
    "safetensors": safetensors_segments.find_tensors,
}
PICKLES = (b"PK\x03\x04", b"\x80")  # what torch.save writes: a ZIP, or long ago a bare pickle


class Segments:
    """A file in parts, memory-mapped.

    kind: "onnx" or "safetensors" (modelzip's checkpoints too).
    tensors: in the order of their bytes, by names that differ.
    lengths: for each tensor, the bytes of the skeleton before it (after the last), and its own.
    """

    def __init__(self, file: Mapped, kind: str, tensors: Iterable[Span]) -> None:
        self._file = file
        self.kind = kind
        self.tensors = _named_apart(tensors)
        self.lengths: list[tuple[int, int]] = []
        end = 0
        for tensor in self.tensors:
            self.lengths.append((tensor.offset - end, tensor.size))
            end = tensor.offset + tensor.size

    def skeleton(self) -> bytes:
        """Every byte that is in no tensor, in the file's order."""
        parts = []
        end = 0
        for tensor in self.tensors:
            parts.append(self._file.view[end : tensor.offset])
            end = tensor.offset + tensor.size
        return b"".join([*parts, self._file.view[end:]])

    def data(self, tensor: Span) -> memoryview:
        """The bytes of one of the tensors, read-only and not in memory until they are used."""
        self._file.release_pages()
        return self._file.view[tensor.offset : tensor.offset + tensor.size]

    def close(self) -> None:
        """Let the file go; bytes still in use stay valid."""
        self._file.close()

    def __enter__(self) -> Segments:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def split(path: str | Path, *, smallest: int = SMALLEST) -> Segments:
    """The parts of an ONNX or safetensors file; what has under `smallest` bytes stays skeleton.

    ArchiveError if it is neither, or damaged, or keeps tensors in other files.
    """
    file = Mapped(path)
    try:
        kind, tensors = _find(file.path, file.view, smallest)
        return Segments(file, kind, tensors)
    except ArchiveError:
        file.close()
        raise


def join(
    skeleton: bytes | memoryview,
    lengths: Sequence[Any],
    data: Iterable[bytes | memoryview],
    out: IO[bytes],
) -> None:
    """Write the file that was split to `out`, from its skeleton and the `data` of its tensors.

    A tensor's data may come in several parts. ArchiveError if all this does not fit each other;
    `lengths` may come from anywhere.

    >>> import io
    >>> join(b"()[]", [(1, 2), (2, 1)], [b"a", b"b", b"c"], out := io.BytesIO())
    >>> out.getvalue()
    b'(ab)[c]'
    """
    rest = memoryview(skeleton).cast("B")
    pairs = [_pair(index, entry) for index, entry in enumerate(lengths)]
    if sum(gap for gap, _ in pairs) > len(rest):
        raise ArchiveError(f"the skeleton has {len(rest)} bytes, and its lengths ask for more")
    given = iter(data)
    for index, (gap, size) in enumerate(pairs):
        out.write(rest[:gap])
        rest = rest[gap:]
        while size > 0:
            part = next(given, None)
            if part is None:
                raise ArchiveError(f"tensor {index} of {len(pairs)} lacks {size} bytes")
            size -= memoryview(part).nbytes
            if size < 0:
                raise ArchiveError(f"tensor {index} has {-size} bytes too many")
            out.write(part)
    left = sum(memoryview(part).nbytes for part in given)
    if left:
        raise ArchiveError(f"there are {left} bytes more than the {len(pairs)} tensors need")
    out.write(rest)


def _find(path: Path, view: memoryview, smallest: int) -> tuple[str, list[Span]]:
    """A file's kind and tensors; ArchiveError says what is wrong and what can be packed."""
    kind = "safetensors" if has_header(view) else "onnx"
    if kind == "onnx" and bytes(view[:4]).startswith(PICKLES):
        raise ArchiveError(
            f"cannot pack {path}: it looks like torch.save's, whose pickles may run code; save the "
            "state_dict with safetensors.torch.save_file"
        )
    found = FINDERS[kind](view)
    try:
        return kind, [tensor for tensor in found if tensor.size >= smallest]
    except ArchiveError as error:
        raise ArchiveError(
            f"cannot pack {path} as {kind} (ONNX models, safetensors files and modelzip's "
            f"checkpoints can be): {error}"
        ) from error


def _named_apart(tensors: Iterable[Span]) -> tuple[Span, ...]:
    """The same tensors, where a name that was there before gets a number.

    >>> _named_apart([Span("w", "int8", (1,), 0, 1), Span("w", "int8", (1,), 1, 1)])[1].name
    'w#2'
    """
    made: dict[str, Span] = {}
    count: Counter[str] = Counter()
    for tensor in tensors:
        name = tensor.name
        while name in made:
            count[tensor.name] += 1
            name = f"{tensor.name}#{count[tensor.name] + 1}"
        made[name] = replace(tensor, name=name)
    return tuple(made.values())


def _pair(index: int, entry: Any) -> tuple[int, int]:
    match entry:
        case [gap, size] if type(gap) is type(size) is int and min(gap, size) >= 0:
            return gap, size
    raise ArchiveError(f"lengths[{index}] is not two sizes from 0, of a gap and of a tensor")
