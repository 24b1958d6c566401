"""Filters: reversible changes of numbers after which a codec finds fewer bytes.

Each sees numbers as the unsigned integers of their bits, and counts in them without carry. A chunk
is [N, *shape]; an axis counts in `shape`, from 0, or from -1 at its end:

- ``delta:A``: each number less the one before it along axis A; the first stays. Two of them, along
  rows and columns, leave what the plane through three neighbours does not predict.
- ``green:A``: red and blue less green, of three colours along axis A.
- ``ycocg:A``: red, green and blue as luma and two differences, by lifting (YCoCg-R, Malvar and
  Sullivan 2003); the halves are of the differences as numbers with a sign.
- ``planes``: first the lowest bytes of all numbers, then the next, as [bytes, N, *shape].
- ``sparse``: which numbers are not 0, a bit each, the highest of a byte first; then those numbers.

``planes`` and ``sparse`` make bytes, so one of them can only be last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip.errors import ArchiveError, SettingError, did_you_mean

AUTO = "auto"
ALONG = ("delta", "green", "ycocg")
LAST = ("planes", "sparse")
Array = NDArray[Any]


def check(names: Sequence[str], shape: Sequence[int]) -> None:
    """SettingError unless these filters can be used on samples of `shape`.

    >>> check(["delta:3"], (3, 32, 32))
    Traceback (most recent call last):
    modelzip.errors.SettingError: filter 'delta:3' has no axis in samples of shape [3, 32, 32]
    """
    for place, name in enumerate(names):
        kind, _, axis = name.partition(":")
        if kind not in (*ALONG, *LAST):
            raise SettingError(f"there is no filter {kind!r}{did_you_mean(kind, ALONG + LAST)}")
        if kind in LAST and (axis or place < len(names) - 1):
            raise SettingError(f"filter {name!r} must be {kind!r} and the last, as it makes bytes")
        if kind in ALONG:
            _check_axis(name, kind, axis, shape)


def _check_axis(name: str, kind: str, axis: str, shape: Sequence[int]) -> None:
    if not axis.removeprefix("-").isdecimal() or not -len(shape) <= int(axis) < len(shape):
        raise SettingError(f"filter {name!r} has no axis in samples of shape {list(shape)}")
    if kind != "delta" and shape[int(axis)] != 3:
        raise SettingError(
            f"filter {name!r} needs three colours along its axis, of shape {list(shape)}"
        )


def candidates(shape: Sequence[int], itemsize: int) -> list[tuple[str, ...]]:
    """What "auto" tries on samples of `shape`.

    >>> candidates((5,), 1)
    [(), ('sparse',), ('delta:-1',)]
    """
    bare: list[tuple[str, ...]] = [()]
    if len(shape) == 1:
        bare.append(("delta:-1",))
    elif len(shape) > 1:
        colour = next((axis for axis in (0, -1) if len(shape) == 3 and shape[axis] == 3), None)
        rows, columns = (0, 1) if colour == -1 else (-2, -1)
        plane = (f"delta:{rows}", f"delta:{columns}")
        bare += [(plane[1],), plane]
        bare += [(f"green:{colour}", *plane)] if colour is not None else []
    if itemsize > 1:
        bare = [(*names, *last) for names in bare for last in ((), ("planes",))]
    return [bare[0], ("sparse",), *bare[1:]]


def apply(values: Array, names: Sequence[str]) -> bytes:
    """The bytes of [N, *shape] after the filters."""
    bits = np.array(values.view(_bits(values.dtype)), order="C")  # a copy that may be changed
    for name in names:
        kind, _, axis = name.partition(":")
        if kind == "planes":
            return bytes(np.moveaxis(_bytes(bits), -1, 0).tobytes())
        if kind == "sparse":
            return bytes(np.packbits(bits != 0).tobytes() + bits[bits != 0].tobytes())
        _FORWARD[kind](np.moveaxis(bits, _axis(axis), 0))
    return bytes(bits.tobytes())


def undo(data: bytes, names: Sequence[str], shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    """The values [N, *shape] whose filtered bytes are `data`. ArchiveError if they cannot be."""
    bits = _unfold(data, names[-1] if names else "", shape, _bits(dtype))
    for name in reversed(names):
        kind, _, axis = name.partition(":")
        if kind in ALONG:
            _BACKWARD[kind](np.moveaxis(bits, _axis(axis), 0))
    return bits.view(dtype)


def _unfold(data: bytes, last: str, shape: Sequence[int], dtype: np.dtype[Any]) -> Array:
    count = int(np.prod(shape, dtype=np.int64))
    if last == "sparse":
        head = (count + 7) // 8
        mask = np.unpackbits(np.frombuffer(data[:head], np.uint8))[:count].astype(bool)
        if len(mask) < count or len(data) - head != int(mask.sum()) * dtype.itemsize:
            raise ArchiveError("the numbers that are not 0 are not as many as their bits say")
        bits = np.zeros(count, dtype)
        bits[mask] = np.frombuffer(data, dtype, offset=head)
        return bits.reshape(shape)
    if len(data) != count * dtype.itemsize:
        raise ArchiveError(f"there are {len(data)} bytes, not {count * dtype.itemsize}")
    if last == "planes":
        planes = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, *shape)
        values = np.array(np.moveaxis(planes, 0, -1), order="C")  # a copy that may be changed
        return values.view(dtype).reshape(shape)
    return np.frombuffer(bytearray(data), dtype).reshape(shape)  # bytearray: to be changed


def _bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(f"<u{dtype.itemsize}")


def _bytes(bits: Array) -> Array:
    return bits[..., None].view(np.uint8)


def _axis(text: str) -> int:
    return int(text) + (int(text) >= 0)  # the first axis of a chunk is that of its samples


def _delta(rows: Array) -> None:
    rows[1:] = rows[1:] - rows[:-1]


def _sum(rows: Array) -> None:
    if not rows.size:  # accumulate takes no empty rows
        return
    if len(rows) > rows[0].size:
        np.add.accumulate(rows.copy(), axis=0, dtype=rows.dtype, out=rows)
        return
    for index in range(1, len(rows)):  # five times as fast as accumulate, whose sums are one by one
        rows[index] += rows[index - 1]


def _subtract_green(colours: Array) -> None:
    colours[0] -= colours[1]
    colours[2] -= colours[1]


def _add_green(colours: Array) -> None:
    colours[0] += colours[1]
    colours[2] += colours[1]


def _half(difference: Array) -> Array:
    signed = difference.view(f"<i{difference.itemsize}")
    return (signed >> 1).view(difference.dtype)


def _to_luma(colours: Array) -> None:
    red, green, blue = colours.copy()
    orange = red - blue
    middle = blue + _half(orange)
    greenness = green - middle
    colours[0], colours[1], colours[2] = middle + _half(greenness), orange, greenness


def _to_colours(luma: Array) -> None:
    bright, orange, greenness = luma.copy()
    middle = bright - _half(greenness)
    blue = middle - _half(orange)
    luma[0], luma[1], luma[2] = orange + blue, greenness + middle, blue


_FORWARD = {"delta": _delta, "green": _subtract_green, "ycocg": _to_luma}
_BACKWARD = {"delta": _sum, "green": _add_green, "ycocg": _to_colours}
