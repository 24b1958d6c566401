"""The index of an archive: what its tensors are and how they are stored, checked as a whole.

Nothing is decoded here, and no more memory taken than the index asks for with its own size.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from modelzip.archive.container import Reader
from modelzip.archive.header import is_text, parse_json
from modelzip.archive.layout import Piece, groups
from modelzip.archive.nodes import Node, read_node
from modelzip.archive.pack import INDEX, MAX_INDEX, SKELETON
from modelzip.archive.spans import ITEM_BITS, Span, byte_size, is_countable
from modelzip.errors import ArchiveError

KINDS = {"onnx": ".onnx", "safetensors": ".safetensors"}
_KEYS = {"kind", "skeleton", "gaps", "tensors", "pieces"}


class Stored(NamedTuple):
    """How a piece is stored; `crc32` is of its bytes, if these are many."""

    node: Node
    crc32: int | None


class Index(NamedTuple):
    """What is in an archive: `groups` and `stored` have a list for each blob, by piece.

    gaps: the bytes of the skeleton before each tensor. size: of the whole file that was packed.
    """

    kind: str
    skeleton: Node
    skeleton_size: int
    spans: list[Span]
    gaps: list[int]
    groups: list[list[Piece]]
    stored: list[list[Stored]]
    size: int


def read_index(reader: Reader, limit: int) -> Index:
    """The index of an archive of at most `limit` bytes. ArchiveError if it is not one."""
    data = _inflated(reader, limit)
    if not isinstance(data, dict) or not data.keys() >= _KEYS:
        raise ArchiveError(f"its index has no {', '.join(sorted(_KEYS))}")
    kind, gaps = data["kind"], data["gaps"]
    if not isinstance(kind, str) or kind not in KINDS:
        raise ArchiveError(f"it holds a file of unknown kind {str(kind)[:40]!r}")
    match data["skeleton"]:
        case [size, node]:
            skeleton_size, skeleton = _natural(size), read_node(node)
        case other:
            raise ArchiveError(f"its index has {str(other)[:40]!r} where a skeleton must be")
    spans = [_span(entry) for entry in _list(data["tensors"])]
    if len({span.name for span in spans}) < len(spans):
        raise ArchiveError("two of its tensors have the same name")
    if len(_list(gaps)) != len(spans) or sum(map(_natural, gaps)) > skeleton_size:
        raise ArchiveError(f"its index has no gap before each tensor in {skeleton_size} bytes")
    whole = skeleton_size + sum(span.size for span in spans)
    if whole > limit:
        raise ArchiveError(
            f"it asks for {str(whole)[:40]} bytes, over the limit of {limit}; give a higher limit"
        )
    found = list(groups(spans))
    stored = _stored(data["pieces"], found, spans)
    _compare(reader, {SKELETON: [Stored(skeleton, None)], **_by_blob(stored)})
    return Index(kind, skeleton, skeleton_size, spans, gaps, found, stored, whole)


def _inflated(reader: Reader, limit: int) -> Any:
    size, most = reader.spec.get("index"), min(MAX_INDEX, limit)
    if type(size) is not int or not 0 <= size <= most:
        raise ArchiveError(f"its index is said to have {str(size)[:40]} bytes, over {most}")
    engine = zlib.decompressobj()
    try:
        text = engine.decompress(reader.blob(INDEX), size + 1)
    except zlib.error as error:
        raise ArchiveError(f"its index cannot be inflated ({error})") from error
    if len(text) != size or not engine.eof or engine.unused_data:
        raise ArchiveError(f"its index does not have {size} bytes")
    return parse_json(text, "the index")


def _span(entry: Any) -> Span:
    match entry:
        case [str(name), str(dtype), list(shape)] if dtype in ITEM_BITS and is_text(name):
            pass
        case _:
            raise ArchiveError(f"its index lists {str(entry)[:60]!r}, which is no tensor")
    sides = tuple(_natural(side) for side in shape)
    if not is_countable(sides):
        raise ArchiveError(f"tensor {name[:100]!r} has too large a shape: {str(shape)[:60]}")
    return Span(name, dtype, sides, 0, byte_size(dtype, sides))


def _stored(
    data: Any, found: Sequence[Sequence[Piece]], spans: Sequence[Span]
) -> list[list[Stored]]:
    if [len(_list(group)) for group in _list(data)] != [len(group) for group in found]:
        raise ArchiveError("its index does not list what its tensors are in")
    stored: list[list[Stored]] = []
    for group, entries in zip(found, data, strict=True):
        try:
            stored.append([])
            for entry in entries:
                stored[-1].append(_piece(entry))
        except ArchiveError as error:
            name = spans[group[len(stored[-1])].tensor].name
            raise ArchiveError(f"tensor {name[:100]!r}: {error}") from error
    return stored


def _piece(entry: Any) -> Stored:
    match entry:
        case [node]:
            return Stored(read_node(node), None)
        case [node, int(crc32)]:
            return Stored(read_node(node), crc32)
    raise ArchiveError(f"{str(entry)[:60]!r} is not how a piece is stored")


def _by_blob(stored: Sequence[list[Stored]]) -> dict[str, list[Stored]]:
    return {str(number): group for number, group in enumerate(stored)}


def _compare(reader: Reader, needed: dict[str, list[Stored]]) -> None:
    """ArchiveError unless the archive has these blobs alone, each of the size of its nodes."""
    for name, pieces in needed.items():
        total, blob = sum(piece.node.total for piece in pieces), reader.blobs.get(name)
        if blob is None:
            raise ArchiveError(f"there is no blob {name!r} of {total} bytes")
        if blob.size != total:
            raise ArchiveError(
                f"blob {name!r} at byte {blob.offset} has {blob.size} bytes, and what is in it "
                f"{total}"
            )
    spare = reader.blobs.keys() - needed.keys() - {INDEX}
    if spare:
        raise ArchiveError(f"blob {min(spare)!r} belongs to nothing")


def _list(data: Any) -> list[Any]:
    if not isinstance(data, list):
        raise ArchiveError(f"its index has {str(data)[:40]!r} where a list must be")
    return data


def _natural(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise ArchiveError(f"its index has {str(value)[:40]!r} where a size must be")
    return value
