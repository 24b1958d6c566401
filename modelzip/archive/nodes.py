"""How an array is stored: a codec, or arrays that it is made of, each stored in turn.

A node is a JSON list: [codec, size] with `size` bytes of data, or [codec, size, params]; or, for
what is made of others, [form, [nodes], params]. Data come in the order in which nodes end. Forms:

- planes: the bytes of floats, the lowest first, as floats.py has them; a node for each.
- palette: the table, then the integers, as palette.py has them; `params` are the table's length and
  the integers' type.
- grid: the steps, then the integers, as grid.py has them; `params` are the number of steps, the
  integers' type, the axis and whether there are zeros below 0.
- zero_runs, bitmap, csr: streams as sparse.py has them; `params` are the length and type of each.
- nibbles: integers of 4 bits, as nibbles.py has them; `params` are "int4" or "uint4", and a shape.
  Never inside of another form.
- words: integers as digits of words, as words.py has them; `params` are base, length and planes.
  Never inside of another form.
- pieces: parts of the array's first axis in order; `params` are how many rows each has.

Forms are nested at most 6 deep, and none of the sparse ones is inside another: else a few bytes
could ask for work without end.

The codec "context" carries what it learnt from array to array within a blob; "static", "lanes"
and "context" code integers, all others bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.archive import codecs, nibbles
from modelzip.archive.floats import WIDTHS, from_planes
from modelzip.archive.grid import Grid, from_grid
from modelzip.archive.integers import lanes, static
from modelzip.archive.integers.sparse import FORMS
from modelzip.archive.palette import MOST, Palette, from_palette
from modelzip.archive.spans import byte_size, is_countable
from modelzip.archive.words import PACKINGS, to_words
from modelzip.errors import ArchiveError

Array = NDArray[Any]
INTEGERS = ("static", "lanes", "context")
INTEGER_TYPES = ("int8", "uint8", "int16", "uint16", "int32", "uint32")
MAX_DEPTH = 6
_OUTERMOST = ("nibbles", "words")  # what they hold is larger than they are
_MOST = 1 << 48  # bytes of data


class Node(NamedTuple):
    """A codec with the bytes of its data, or a form with its parts."""

    codec: str
    size: int = 0
    params: Any = None
    parts: tuple[Node, ...] = ()

    def to_json(self) -> list[Any]:
        """As the index of an archive has it."""
        body: Any = [part.to_json() for part in self.parts] if self.parts else self.size
        return [self.codec, body] if self.params is None else [self.codec, body, self.params]

    @property
    def total(self) -> int:
        """Bytes of data with those of all parts."""
        return self.size + sum(part.total for part in self.parts)

    def __str__(self) -> str:
        inner = ", ".join(dict.fromkeys(str(part) for part in self.parts))
        return f"{self.codec}({inner})" if self.parts else self.codec


def read_node(data: Any, depth: int = 0, *, sparse: bool = False) -> Node:
    """The node of a JSON list from an archive. ArchiveError if it is none.

    >>> str(read_node(["palette", [["store", 12], ["static", 40]], [3, "int8"]]))
    'palette(store, static)'
    """
    match data:
        case [str(form), list(parts), *params] if len(params) <= 1 and parts:
            if form not in _READERS:
                raise ArchiveError(f"an array is made of parts in no such form: {form[:40]!r}")
            if depth == MAX_DEPTH or (sparse and form in FORMS) or (depth and form in _OUTERMOST):
                raise ArchiveError(f"{form} is inside of too many forms")
            inside = sparse or form in FORMS
            inner = tuple(read_node(part, depth + 1, sparse=inside) for part in parts)
            return Node(form, 0, params[0] if params else None, inner)
        case [str(codec), int(size), *params] if (
            len(params) <= 1 and type(size) is int and 0 <= size <= _MOST
        ):
            if codec not in INTEGERS and codec not in codecs.NAMES:
                raise ArchiveError(f"there is no codec {codec[:40]!r}")
            return Node(codec, size, params[0] if params else None)
    raise ArchiveError(f"{str(data)[:60]!r} does not say how an array is stored")


def empty(dtype: str, shape: Sequence[int]) -> Array:
    """An array to decode into; floats as their bits, unsigned."""
    return np.empty(tuple(shape), numpy_type(dtype))


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The type that arrays of `dtype` have while they are coded: floats are unsigned integers."""
    if dtype in INTEGER_TYPES:
        return np.dtype(f"<{np.dtype(dtype).str[1:]}")
    width = WIDTHS.get(dtype)
    if width is None:
        raise ArchiveError(f"{dtype!r} is no type that is coded as integers or floats")
    return np.dtype(f"<u{width}")


class Decoding:
    """Decodes the nodes of one blob, in their order; `at` is how far it has come."""

    def __init__(self, data: memoryview) -> None:
        self._data, self.at = data, 0
        self._context: Any = None

    def bytes(self, node: Node, size: int) -> bytes | memoryview:
        """`size` bytes. ArchiveError if the node has other ones."""
        if node.parts or node.codec in INTEGERS:
            raise ArchiveError(f"{node} does not store bytes")
        return codecs.codec(node.codec).decode(self._take(node.size), size)

    def array(self, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
        """An array of integers, or of the bits of floats."""
        kind = numpy_type(dtype)
        if node.codec in INTEGERS and not node.parts:
            if dtype not in INTEGER_TYPES:
                raise ArchiveError(f"{node.codec} stores integers, and these are {dtype}")
            return self._integers(node, shape, kind)
        if node.parts:
            return _READERS[node.codec](self, node, dtype, shape)
        data = self.bytes(node, math.prod(shape) * kind.itemsize)
        return np.frombuffer(data, kind).reshape(shape)

    def _integers(self, node: Node, shape: tuple[int, ...], kind: np.dtype[Any]) -> Array:
        params = {} if node.params is None else node.params
        if not isinstance(params, dict):
            raise ArchiveError(f"{node.codec} has parameters by name, not {str(params)[:40]}")
        data = self._take(node.size)
        if node.codec == "static":
            return static.decode(data, params, shape, kind)
        if node.codec == "lanes":
            return lanes.decode(data, params, shape, kind)
        if self._context is None:
            from modelzip.archive.integers.context import Decoder

            self._context = Decoder()
        found: Array = self._context.decode(data, params, shape, kind)
        return found

    def _take(self, size: int) -> memoryview:
        data = self._data[self.at : self.at + size]
        if len(data) < size:
            raise ArchiveError(f"{size} bytes are needed at {self.at}, and {len(data)} are there")
        self.at += size
        return data


def _planes(decoding: Decoding, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
    size = math.prod(shape)
    if dtype not in WIDTHS or len(node.parts) != WIDTHS[dtype]:
        raise ArchiveError(f"{dtype} has no {len(node.parts)} planes")
    planes = [decoding.array(part, "uint8", (size,)) for part in node.parts]
    return from_planes([np.ascontiguousarray(p).data for p in planes], dtype).reshape(shape)


def _palette(decoding: Decoding, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
    match node:
        case Node(params=[int(length), str(kind)], parts=(table, integers)) if (
            _is_count(length, MOST) and kind in ("int8", "int16") and dtype in WIDTHS
        ):
            entries = decoding.array(table, dtype, (length,))
            return from_palette(Palette(entries, decoding.array(integers, kind, shape)))
    raise ArchiveError(f"{str(node.to_json())[:80]} is no palette")


def _grid(decoding: Decoding, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
    match node:
        case Node(params=[int(length), str(kind), axis, bool(below)], parts=(steps, integers)) if (
            _is_count(length, max([1, *shape])) and kind in ("int8", "int16") and dtype in _GRIDS
        ):
            found = decoding.array(steps, dtype, (length,)).view(_GRIDS[dtype])
            grid = Grid(found, decoding.array(integers, kind, shape), axis, below)
            return from_grid(grid).view(numpy_type(dtype))
    raise ArchiveError(f"{str(node.to_json())[:80]} is no grid")


def _is_count(value: Any, most: int, least: int = 1) -> bool:
    return type(value) is int and least <= value <= most  # True is no 1


def _sparse(decoding: Decoding, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
    _, back, kind = FORMS[node.codec]
    most = math.prod(shape) + 1
    streams = []
    params = node.params if isinstance(node.params, list) else []
    if len(params) != len(node.parts) or len(params) != len(kind._fields):
        raise ArchiveError(f"{str(node.to_json())[:80]} is not {node.codec}")
    for part, described in zip(node.parts, params, strict=True):
        match described:
            case [int(length), str(type_)] if _is_count(length, most, 0) and type_ in _STREAMS:
                streams.append(decoding.array(part, type_, (length,)))
            case _:
                raise ArchiveError(f"{str(described)[:40]} describes no stream of {node.codec}")
    if streams[-1].dtype != numpy_type(dtype):
        raise ArchiveError(f"{node.codec} has values of {streams[-1].dtype}, not {dtype}")
    found: Array = back(kind(*streams), shape)
    return found


def _pieces(decoding: Decoding, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
    rows = node.params if isinstance(node.params, list) else []
    whole = all(type(each) is int and each > 0 for each in rows)
    if not whole or not shape or sum(rows) != shape[0] or len(rows) != len(node.parts):
        raise ArchiveError(f"{str(rows)[:60]} are not the rows of an array {list(shape)}")
    out, at = empty(dtype, shape), 0
    for part, count in zip(node.parts, rows, strict=True):
        out[at : at + count] = decoding.array(part, dtype, (count, *shape[1:]))
        at += count
    return out


def _nibbles(decoding: Decoding, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
    match node:
        case Node(params=[str(kind), list(sides)], parts=(part,)) if (
            dtype == "uint8"
            and kind in nibbles.TYPES
            and all(type(side) is int and side >= 0 for side in sides)
            and is_countable(sides)
            and shape == (byte_size(kind, sides),)
        ):
            return nibbles.to_bytes(decoding.array(part, nibbles.TYPES[kind].name, tuple(sides)))
    raise ArchiveError(f"{str(node.to_json())[:80]} are no nibbles of {dtype} {list(shape)[:4]}")


def _words(decoding: Decoding, node: Node, dtype: str, shape: tuple[int, ...]) -> Array:
    packing = PACKINGS.get((dtype, shape[1:]))
    if packing is None or node.params != list(packing) or len(node.parts) != 1:
        raise ArchiveError(f"{str(node.to_json())[:80]} are no words of {dtype} {list(shape)[:4]}")
    integers = decoding.array(node.parts[0], "int8", (shape[0], packing.length))
    return to_words(integers, packing, dtype, shape)


_GRIDS = {"float32": "<f4", "float64": "<f8"}
_STREAMS = INTEGER_TYPES
_READERS: dict[str, Callable[[Decoding, Node, str, tuple[int, ...]], Array]] = {
    "planes": _planes,
    "palette": _palette,
    "grid": _grid,
    "nibbles": _nibbles,
    "pieces": _pieces,
    "words": _words,
    **dict.fromkeys(FORMS, _sparse),
}
