"""Static entropy coding of bytes by many coders side by side, which numpy runs as one.

For large tensors and planes: about a hundred million integers a second without any other package,
three times as many with numba, for 3 bytes a lane, one lane for every 1024 to 2047 integers.

The bytes are a table (see table.py) without escapes, with frequencies f that sum to 2**14 and sums
c up to each; then the states of the lanes, 32 bits each; then words of 16 bits, all little-endian.
No integers are no bytes. The number of lanes L is the largest power of two up to size / 1024, from
1 to 8192. Lane j has the integers j, j + L, j + 2 * L, ... An integer is the entry s with
c[s] <= x mod 2**14 < c[s] + f[s], where x is the state of the lane, and then x becomes
f[s] * (x >> 14) + x mod 2**14 - c[s], and if that is under 2**16, 2**16 * x plus the next word.
Lanes take words in their order; all have an integer before one has the next. In the end all
states are 2**16 and no words are left.

Interleaved asymmetric numeral systems: Giesen 2014, https://arxiv.org/abs/1402.3392.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from modelzip.archive.integers.encoded import Encoded
from modelzip.archive.integers.table import Table, make_table, read_table
from modelzip.errors import ArchiveError

BITS = 14
START = 1 << 16
PER_LANE = 1024
MOST_LANES = 8192
FEW_LANES = 16
GROUP = 1 << 18
LONG = 1 << 22  # integers, from which on importing numba pays
WORD = np.uint32(16)
_NONE = np.zeros(256, np.int64)
States = NDArray[np.uint32]


def encode(values: NDArray[Any]) -> Encoded:
    """Integers of one byte, int8 or uint8, as bytes.

    >>> encoded = encode(np.array([3, -1, 3, 3], np.int8))
    >>> decode(encoded.data, encoded.params, (2, 2), np.int8).tolist()
    [[3, -1], [3, 3]]
    """
    if values.dtype not in (np.int8, np.uint8):
        raise ArchiveError(f"lanes codes integers of one byte, got {values.dtype}")
    flat = np.ravel(values)
    if not flat.size:
        return Encoded({}, b"")
    low = int(flat.min())
    symbols = flat.view(np.uint8) - np.uint8(low % 256)  # modulo 256, where none is beyond 255
    table, _ = make_table(_count(symbols), low)
    states, words = _encode(symbols, table)
    parts = [table.write(), states.astype("<u4").tobytes(), words.astype("<u2").tobytes()]
    return Encoded({}, b"".join(parts))


def decode(
    data: bytes | memoryview,
    params: Mapping[str, Any],
    shape: Sequence[int],
    dtype: DTypeLike,
) -> NDArray[Any]:
    """The integers that were encoded. ArchiveError if they cannot be had from `data`."""
    if params:
        raise ArchiveError(f"lanes has no parameters, got {', '.join(sorted(params))[:100]}")
    size, view = math.prod(shape), memoryview(data).cast("B")
    if not size or not len(view):
        if size or len(view):
            raise ArchiveError(f"lanes: {len(view)} bytes cannot be {size} integers")
        return np.empty(shape, dtype)
    try:
        table, at = read_table(view)
        kinds = _kinds(table, np.dtype(dtype))
        end = at + 4 * _count_lanes(size)
        if end > len(view) or (len(view) - end) % 2:
            raise ArchiveError(f"{len(view)} bytes do not end where a word does")
        states = np.frombuffer(view[at:end], "<u4").astype(np.uint32)
        words = np.frombuffer(view[end:], "<u2").astype(np.uint32)
        return _decode(states, words, table, kinds, size).reshape(shape)
    except ArchiveError as error:
        raise ArchiveError(f"lanes: {error}") from error


def _count(symbols: NDArray[np.uint8]) -> NDArray[np.int64]:
    """How often each is there, up to the largest; in parts, as numpy makes 8 bytes of each."""
    parts = range(0, symbols.size, GROUP)
    count = sum((np.bincount(symbols[at : at + GROUP], minlength=256) for at in parts), _NONE)
    return count[: int(symbols.max()) + 1]


def _encode(symbols: NDArray[np.uint8], table: Table) -> tuple[States, NDArray[np.uint16]]:
    frequencies, starts = _slots(table)
    count = _count_lanes(symbols.size)
    states = np.full(count, START, np.uint32)
    words = [np.empty(0, np.uint16)]
    for at in reversed(range(0, symbols.size, count)):
        row = symbols[at : at + count]
        lanes, often = states[: row.size], frequencies[row]
        full = np.flatnonzero((lanes >> np.uint32(32 - BITS)) >= often)
        words.append(lanes[full].astype(np.uint16))
        lanes[full] >>= WORD
        quotient = lanes // often
        lanes += quotient * (np.uint32(1 << BITS) - often) + starts[row]
    return states, np.concatenate(words[::-1])


def _decode(
    states: States, words: States, table: Table, kinds: NDArray[Any], size: int
) -> NDArray[Any]:
    frequencies, starts = _slots(table)
    entry = np.repeat(np.arange(len(frequencies)), frequencies)
    inside = np.arange(1 << BITS, dtype=np.uint32) - starts[entry]
    steps = frequencies[entry] << WORD | inside  # both of a slot, in one look
    kinds = kinds[entry]
    if len(states) < FEW_LANES:
        return kinds[_slots_of_few(states.tolist(), words.tolist(), steps.tolist(), size)]
    out = np.empty(size, kinds.dtype)
    if size >= LONG and words.size and importlib.util.find_spec("numba") is not None:
        from modelzip.archive.integers import lane_kernel  # imports numba

        used = int(lane_kernel.take(states, words, steps, kinds, out))
    else:
        used = _take(states, words, steps, kinds, out)
    _check_end(used, words.size, not (states != START).any(), size)
    return out


def _take(
    states: States, words: States, steps: States, kinds: NDArray[Any], out: NDArray[Any]
) -> int:
    """What lane_kernel.py does, by numpy."""
    slots = np.empty(min(out.size, max(GROUP, len(states))), np.uint16)
    used = 0
    for first in range(0, out.size, len(slots)):  # a multiple of the lanes, or everything
        part = slots[: out.size - first]
        for at in range(0, part.size, len(states)):
            row = part[at : at + len(states)]
            used = _advance(states[: row.size], row, steps, words, used)
        out[first : first + part.size] = kinds[part]
    return used


def _slots_of_few(
    lanes: list[int], words: list[int], steps: list[int], size: int
) -> NDArray[np.uint16]:
    """The slot of each integer, one after another: for few lanes numpy would take far longer."""
    slots, count, used = [], len(lanes), 0
    words += [0] * size  # as many as there may be needed
    for at in range(size):
        state = lanes[at % count]
        slot = state & (1 << BITS) - 1
        slots.append(slot)
        step = steps[slot]
        state = (step >> 16) * (state >> BITS) + (step & START - 1)
        if state < START:
            state = state << 16 | words[used]
            used += 1
        lanes[at % count] = state
    _check_end(used, len(words) - size, all(state == START for state in lanes), size)
    return np.array(slots, np.uint16)


def _check_end(used: int, words: int, whole: bool, size: int) -> None:
    if used > words:
        raise ArchiveError(f"more than its {words} words are needed")
    if used < words or not whole:
        raise ArchiveError(f"data is left after {size} integers, or was wrong")


def _advance(
    lanes: States, slots: NDArray[np.uint16], steps: States, words: States, used: int
) -> int:
    """Take an integer from each lane, of which only the slot is noted; the words used by then."""
    np.bitwise_and(lanes, np.uint32((1 << BITS) - 1), out=slots, casting="unsafe")
    step = steps[slots]
    np.right_shift(lanes, np.uint32(BITS), out=lanes)
    lanes *= step >> WORD
    lanes += step & np.uint32(START - 1)
    empty = np.flatnonzero(lanes < START)
    taken = words[used : used + empty.size]
    if taken.size < empty.size:
        raise ArchiveError(f"more than its {words.size} words are needed")
    lanes[empty] = lanes[empty] << WORD | taken
    return used + empty.size


def _slots(table: Table) -> tuple[States, States]:
    """How many of the 2**14 slots each entry has, and the first of them."""
    frequencies = table.frequencies(BITS).astype(np.uint32)
    return frequencies, np.cumsum(frequencies, dtype=np.uint32) - frequencies


def _kinds(table: Table, dtype: np.dtype[Any]) -> NDArray[Any]:
    """The integer of each entry."""
    if dtype not in (np.int8, np.uint8):
        raise ArchiveError(f"only integers of one byte are coded so, not {dtype}")
    bounds, last = np.iinfo(dtype), table.low + table.size - 1
    if table.mark or table.width or table.low < bounds.min or last > bounds.max:
        raise ArchiveError(f"its table of {table.low} to {last} is not one of {dtype}")
    return np.arange(table.low, last + 1).astype(dtype)


def _count_lanes(size: int) -> int:
    return min(1 << max(size // PER_LANE, 1).bit_length() - 1, MOST_LANES)
