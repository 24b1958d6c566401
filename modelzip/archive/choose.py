"""Which codec stores an array in the fewest bytes, by trying them."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.archive import codecs, nibbles
from modelzip.archive.floats import WIDTHS, to_planes
from modelzip.archive.grid import find_grid
from modelzip.archive.integers import lanes, static
from modelzip.archive.integers.forms import MOST_AXES
from modelzip.archive.integers.sparse import FORMS
from modelzip.archive.nodes import INTEGER_TYPES, INTEGERS, Node
from modelzip.archive.palette import find_palette
from modelzip.archive.words import find_packing, from_words
from modelzip.errors import MissingExtraError, SettingError, did_you_mean

Array = NDArray[Any]
AUTO = "auto"
_QUICK = ("deflate", "zstd")  # tried on every array of bytes
_THOROUGH = ("lzma", "bzip2")  # and these on those that are not long
_LONG = 1 << 20  # bytes
_LANES = 1 << 19  # integers of a byte that lanes are for
_SAMPLE = 1 << 16  # bytes of a long array that are tried first
_HOPELESS = 0.99  # of the sample's bytes: what does not shrink by this is stored
_REPEATS = 0.97  # of what lanes take, for a dictionary to be tried
_TINY = 64  # bytes: no form is worth its description
_LOST = 1.05  # of an array's bytes, to have the context coder learn from it
_LIMIT = 127


class Coded(NamedTuple):
    """A node, and the data of it and its parts in order."""

    node: Node
    data: tuple[bytes, ...]

    @property
    def size(self) -> int:
        """Bytes of the data, and about those that the index takes for it."""
        return self.node.total + len(json.dumps(self.node.to_json(), separators=(",", ":"))) // 2


class _Choice(NamedTuple):
    """The best way without the context coder, and the integers that it could code instead."""

    coded: Coded
    integers: Array | None = None
    around: Callable[[Coded], Coded] = lambda coded: coded  # what else there is of the array


def check(name: str) -> str:
    """The name of a codec, or "auto". SettingError if there is none of that name."""
    known = (AUTO, *INTEGERS, *codecs.NAMES)
    if name not in known:
        raise SettingError(f"there is no codec {name!r}{did_you_mean(name, known)}")
    return name


class Encoding:
    """Encodes the arrays of a blob, each by `codec` or by the best there is."""

    def __init__(self, codec: str = AUTO) -> None:
        self._codec = codec
        self._bytes_alone = codec in codecs.NAMES

    def arrays(self, given: Sequence[tuple[Array, str]]) -> list[Coded]:
        """Arrays of integers, or of the bits of floats, with the types they stand for."""
        if self._bytes_alone:
            return [_by_codec(_as_stored(array, dtype), self._codec) for array, dtype in given]
        choices = [self._choice(array, dtype) for array, dtype in given]
        found = [choice.coded for choice in choices]
        if self._codec in (AUTO, "context"):
            for index, coded in self._by_context(choices).items():
                found[index] = coded
        return found

    def bytes(self, data: bytes | memoryview) -> Coded:
        """Plain bytes."""
        array = np.frombuffer(data, np.uint8)
        return _by_codec(array, self._codec) if self._bytes_alone else _bytes(array, thorough=True)

    def _by_context(self, choices: Sequence[_Choice]) -> dict[int, Coded]:
        """By index, what the context coder makes of the arrays for which it is the best.

        It learns from array to array, so it is for all of them or for those where it loses little.
        """
        there = {i: c.integers for i, c in enumerate(choices) if c.integers is not None}
        asked = self._codec != AUTO
        if not asked and importlib.util.find_spec("numba") is None:
            return {}  # without it a million weights take minutes
        while there:
            coded = _contexts(there)
            found = {index: choices[index].around(each) for index, each in coded.items()}
            worse = [i for i, c in found.items() if c.size > _LOST * choices[i].coded.size + _TINY]
            if asked or not worse:
                alone = sum(choices[index].coded.size for index in found)
                return found if asked or sum(c.size for c in found.values()) < alone else {}
            there = {index: array for index, array in there.items() if index not in worse}
        return {}

    def _choice(self, array: Array, dtype: str) -> _Choice:
        if dtype in INTEGER_TYPES:
            found = [_Choice(self._integers(array), _narrow(array)), *self._in_words(array)]
            return min(found, key=lambda choice: choice.coded.size)
        if dtype in nibbles.TYPES:
            return self._halves(array, dtype)
        found = [_Choice(self._planes(array, dtype))]
        if array.nbytes > _TINY:
            found += self._of_few_values(array, dtype)
        return min(found, key=lambda choice: choice.coded.size)

    def _halves(self, array: Array, dtype: str) -> _Choice:
        """Integers of 4 bits: the bytes they are stored in, or one by one."""

        def around(coded: Coded) -> Coded:
            params = [dtype, list(array.shape)]
            return Coded(Node("nibbles", params=params, parts=(coded.node,)), coded.data)

        whole = [] if self._codec != AUTO else [_bytes(_as_stored(array, dtype), thorough=True)]
        found = min([*whole, around(self._integers(array))], key=lambda coded: coded.size)
        return _Choice(found, _narrow(array), around)

    def _in_words(self, array: Array) -> Iterator[_Choice]:
        """The integers in an array that has them as digits of words."""
        packing = find_packing(array)
        if packing is None or array.nbytes <= _TINY:
            return

        def around(coded: Coded) -> Coded:
            return Coded(Node("words", params=list(packing), parts=(coded.node,)), coded.data)

        integers = from_words(array, packing)
        yield _Choice(around(self._integers(integers)), _narrow(integers), around)

    def _integers(self, array: Array) -> Coded:
        found = _by_lanes(array) if self._codec == "lanes" else _by_static(array)
        if self._codec == AUTO or not found:
            found.append(_bytes(array, thorough=array.nbytes < _LONG))
        if self._codec == AUTO and 2 * np.count_nonzero(array) < array.size > _TINY:
            found += [self._sparse(array, form) for form in FORMS]
        return min(found, key=lambda coded: coded.size)

    def _sparse(self, array: Array, form: str) -> Coded:
        streams = FORMS[form][0](array)
        parts = [self._stream(stream) for stream in streams]
        described = [[len(stream), stream.dtype.name] for stream in streams]
        node = Node(form, params=described, parts=tuple(part.node for part in parts))
        return Coded(node, tuple(data for part in parts for data in part.data))

    def _stream(self, stream: Array) -> Coded:
        if stream.dtype.itemsize == 1 and stream.size >= _LANES:
            return self._long_stream(stream)
        found = [_bytes(stream, thorough=stream.nbytes < _LONG), *_by_static(stream)]
        return min(found, key=lambda coded: coded.size)

    def _long_stream(self, stream: Array) -> Coded:
        """By what decodes fast: in lanes, unless what repeats makes a dictionary pay."""
        sample = stream[:_SAMPLE]
        repeats = _bytes(sample, thorough=False)
        (coded,) = _by_lanes(stream)
        if repeats.size < _REPEATS * coded.size * len(sample) / stream.size:
            return min(coded, _bytes(stream, thorough=False), key=lambda each: each.size)
        return coded

    def _planes(self, array: Array, dtype: str) -> Coded:
        if array.nbytes <= _TINY or dtype not in WIDTHS:
            return _bytes(array, thorough=False)
        parts = [self._plane(plane) for plane in to_planes(array)]
        node = Node("planes", parts=tuple(part.node for part in parts))
        return Coded(node, tuple(data for part in parts for data in part.data))

    def _plane(self, plane: Array) -> Coded:
        sample = plane[:: max(1, plane.size // _SAMPLE)][:_SAMPLE]
        counts = np.bincount(sample, minlength=256)
        share = counts[counts > 0] / sample.size
        if sample.size > 1024 and -(share * np.log2(share)).sum() > 8 * _HOPELESS:
            return _by_codec(plane, "store")
        return self._stream(plane)

    def _of_few_values(self, array: Array, dtype: str) -> Iterator[_Choice]:
        """As integers beside a table or steps, where that is exact."""
        palette = find_palette(array)
        if palette is not None:
            integers = palette.integers.reshape(array.shape)
            params = [len(palette.table), integers.dtype.name]
            yield self._pair("palette", self._table(palette.table), integers, params)
        if dtype in ("float32", "float64"):
            grid = find_grid(array.view(array.dtype.str.replace("u", "f")))
            if grid is not None:
                steps = self._table(grid.steps.view(array.dtype))
                params = [len(grid.steps), grid.integers.dtype.name, grid.axis, grid.negative_zero]
                yield self._pair("grid", steps, grid.integers, params)

    def _table(self, bits: Array) -> Coded:
        dtype = next(name for name, width in WIDTHS.items() if width == bits.itemsize)
        return min((self._planes(bits, dtype), _bytes(bits, thorough=True)), key=lambda c: c.size)

    def _pair(self, form: str, table: Coded, integers: Array, params: list[Any]) -> _Choice:
        def around(coded: Coded) -> Coded:
            node = Node(form, params=params, parts=(table.node, coded.node))
            return Coded(node, (*table.data, *coded.data))

        return _Choice(around(self._integers(integers)), _narrow(integers), around)


def _as_stored(array: Array, dtype: str) -> Array:
    return nibbles.to_bytes(array) if dtype in nibbles.TYPES else array


def _narrow(array: Array) -> Array | None:
    """The array if it is one for the context coder."""
    narrow = array.dtype.itemsize <= 2 and array.size and array.ndim <= MOST_AXES
    return array if narrow else None


def _contexts(arrays: Mapping[int, Array]) -> dict[int, Coded]:
    """What the context coder makes of each, one after another."""
    from modelzip.archive.integers.context import Encoder

    # one limit for all, as what is learnt with one is of no use with another
    largest = max(abs(int(end)) for array in arrays.values() for end in (array.min(), array.max()))
    encoder = Encoder(min(max(largest, 1), _LIMIT))
    found = {}
    for index, array in arrays.items():
        params, data = encoder.encode(array)
        found[index] = Coded(Node("context", len(data), params or None), (data,))
    return found


def _by_lanes(array: Array) -> list[Coded]:
    if array.dtype.itemsize > 1:
        return []
    params, data = lanes.encode(array)
    return [Coded(Node("lanes", len(data), params or None), (data,))]


def _by_codec(array: Array, name: str) -> Coded:
    data = codecs.codec(name).encode(np.ascontiguousarray(array).data.cast("B"))
    return Coded(Node(name, len(data)), (data,))


def _by_static(array: Array) -> list[Coded]:
    try:
        params, data = static.encode(array)
    except MissingExtraError:
        return []
    return [Coded(Node("static", len(data), params or None), (data,))]


def _bytes(array: Array, *, thorough: bool) -> Coded:
    """The bytes of an array by the best of the codecs that are installed."""
    found = [_by_codec(array, "store")]
    for name in (*_QUICK, *(_THOROUGH if thorough else ())):
        try:
            found.append(_by_codec(array, name))
        except MissingExtraError:
            continue
    return min(found, key=lambda coded: coded.size)
