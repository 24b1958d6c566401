"""Floats of few distinct values as a table of these and small integers.

The table has every pattern of bits that occurs, in the order of the values (negative NaNs first,
-0.0 before 0.0, positive NaNs last). An integer is an entry's place after the negative ones: 0 is
0.0, or the least positive value where 0.0 is missing; -1 is the one below. So weights that were
clustered, pruned or rounded become integers that are small where weights are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.archive.floats import Bits
from modelzip.errors import ArchiveError

MOST = 4096
SAMPLE = 1 << 14
CHUNK = 1 << 18
WORTH = 0.75  # of the size: floats can be stored in about so much anyway


class Palette(NamedTuple):
    """`table` holds patterns of bits, in the order of values; `integers` say which, in a row."""

    table: Bits
    integers: NDArray[Any]


def find_palette(bits: Bits) -> Palette | None:
    """The palette of patterns of bits, or None if they have too many values to gain by one.

    >>> weights = np.float32([0.5, 0, -0.25, 0.5] * 9)
    >>> palette = find_palette(weights.view("u4"))
    >>> palette.table.view("f4").tolist(), palette.integers[:4].tolist()
    ([-0.25, 0.0, 0.5], [1, 0, -1, 1])
    """
    flat = bits.reshape(-1)
    table = _distinct(flat)
    if table is None or not is_smaller(flat, table.nbytes, len(table)):
        return None
    order = np.argsort(_sort_keys(table))
    place = np.empty(len(table), np.int16)
    place[order] = np.arange(len(table)) - _count_negative(table)
    if place.min() >= -128 and place.max() <= 127:
        place = place.astype(np.int8)
    return Palette(table[order], _look_up(flat, table, place))


def from_palette(palette: Palette) -> Bits:
    """The patterns of bits again. ArchiveError if there is no such palette."""
    table, integers = palette
    keys = _sort_keys(table)
    if not 0 < len(table) <= MOST or (keys[1:] <= keys[:-1]).any():
        raise ArchiveError(f"a palette has 1 to {MOST} values in order; this has {len(table)}")
    negative = _count_negative(table)
    if not integers.size:
        return table[:0].reshape(integers.shape)
    low, high = int(integers.min()), int(integers.max())
    if not -negative <= low <= high < len(table) - negative:
        raise ArchiveError(
            f"its integers are {low} to {high}; the palette has -{negative} to "
            f"{len(table) - negative - 1}"
        )
    bits: Bits = np.roll(table, -negative)[integers]  # an integer below 0 counts from the end
    return bits


def is_smaller(values: NDArray[Any], table_bytes: int, distinct: int) -> bool:
    """Whether a table and integers of so many kinds are worth their while, before any coding."""
    bits = max(distinct - 1, 1).bit_length()
    return table_bytes + values.size * bits / 8 < WORTH * values.nbytes


def _look_up(flat: Bits, table: Bits, place: NDArray[Any]) -> NDArray[Any]:
    """For each pattern, the `place` that goes with it in the table."""
    if table.itemsize == 2:
        places = np.zeros(1 << 16, place.dtype)
        places[table] = place
        return places[flat]
    found = np.empty(flat.size, place.dtype)
    for at in range(0, flat.size, CHUNK):
        found[at : at + CHUNK] = place[np.searchsorted(table, flat[at : at + CHUNK])]
    return found


def _distinct(flat: Bits) -> Bits | None:
    """The distinct patterns as unsigned integers in order, if there are 1 to MOST."""
    if flat.itemsize == 2:
        seen = np.zeros(1 << 16, bool)
        seen[flat] = True
        table = np.flatnonzero(seen).astype(flat.dtype)
        return table if 0 < len(table) <= MOST else None
    table = np.unique(flat[:: max(1, flat.size // SAMPLE)])
    if not 0 < len(table) <= MOST:
        return None
    for at in range(0, flat.size, CHUNK):
        part = flat[at : at + CHUNK]
        nearest = table[np.minimum(np.searchsorted(table, part), len(table) - 1)]
        table = np.union1d(table, part[nearest != part])
        if len(table) > MOST:
            return None
    return table


def _sort_keys(table: Bits) -> Bits:
    """Unsigned integers in the order of the floats whose patterns are given."""
    sign = table.dtype.type(1 << (8 * table.itemsize - 1))
    keys: Bits = np.where(table & sign, ~table, table | sign)
    return keys


def _count_negative(table: Bits) -> int:
    return int((table >> (8 * table.itemsize - 1)).sum())
