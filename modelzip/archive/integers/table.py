"""How often each integer occurs, as a table in a few bits a symbol.

A table has these bytes, where varint is a LEB128 number of at most 64 bits and zigzag maps
0, -1, 1, -2, ... to 0, 1, 2, 3, ...:

- flags: bits 0 and 1 are s, bits 2 and 3 are k, bit 4 says that some entries are absent, bits 5
  and 6 are the bytes of an escaped value: 0 (there are none), 1, 2, or 3 for 4 of them. Bit 7 is
  for whoever uses the table.
- varint zigzag(low), varint size (at most 65,536), and if values escape, varint of how many do.
- `size` entries, for the integers from low on, and one more for all that escape, if any does.
  Each is an exponential Golomb code of order k: v + 2**k in binary, after as many 0 bits as that
  has digits beyond k + 1. Bits fill bytes from the highest down; 0 bits fill the last one.
  A rank r >= 0 means 2**(-r / 2**s) times the count of the commonest, and v is zigzag(r - r') for
  r' the rank before (0 at first); if entries are absent, v is 0 for those and 1 more for others.

Ranks become frequencies that sum to 2**b, b = 24 or what the user of the table says, with integers
alone: rank r has d = r * 2**(3 - s) and weight w = ROOTS[-d mod 8] >> ceil(d / 8), absent entries
have 0, W is the sum, n the number of entries, and a frequency is 1 + w * (2**b - n) // W; the first
of the largest gets what is left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip.archive.protobuf import varint
from modelzip.errors import ArchiveError

Ints = NDArray[np.int64]
TOTAL_BITS = 24
MAX_SIZE = 1 << 16
MAX_RANK = 511
ABSENT = -1
LONGEST = 40  # bits of an entry that is valid, at most
ROOTS = np.array(  # 2**(30 + i / 8), rounded
    [
        *(1073741824, 1170923762, 1276901417, 1392470869),
        *(1518500250, 1655936265, 1805811301, 1969251188),
    ]
)
WIDTHS = (0, 1, 2, 4)
TAILS = (1 << 40, 4096, 512, 64)  # a tail of one in so many may escape
ORDERS = range(4)


@dataclass(frozen=True)
class Table:
    """The ranks of the integers from `low` on, and of what escapes, if `width` is not 0.

    step: ranks per factor of two are 2**step. width: bytes of an escaped value. mark: bit 7.
    """

    low: int
    ranks: Ints
    step: int
    width: int
    escapes: int
    mark: bool = False

    @property
    def size(self) -> int:
        """How many integers have an entry: `low` to `low + size - 1`."""
        return len(self.ranks) - (self.width > 0)

    def frequencies(self, bits: int = TOTAL_BITS) -> Ints:
        """Of each entry, at least 1 of 2**bits in all."""
        below = self.ranks << (3 - self.step)
        weights = ROOTS[-below & 7] >> np.minimum((below + 7) >> 3, 63)
        weights[self.ranks == ABSENT] = 0
        spread = (1 << bits) - len(weights)
        found: Ints = 1 + weights * spread // weights.sum()
        found[found.argmax()] += (1 << bits) - found.sum()
        return found

    def write(self) -> bytes:
        """The bytes of the table."""
        values = _entries(self.ranks)
        order = min(ORDERS, key=lambda order: int(_code_lengths(values, order).sum()))
        holes = bool((self.ranks == ABSENT).any())
        flags = self.step | order << 2 | holes << 4 | WIDTHS.index(self.width) << 5 | self.mark << 7
        head = bytes([flags]) + _varint(_zigzag(self.low)) + _varint(self.size)
        if self.width:
            head += _varint(self.escapes)
        codes = (f"{value + (1 << order):b}" for value in values.tolist())
        bits = "".join("0" * (len(code) - 1 - order) + code for code in codes)
        bits += "0" * (-len(bits) % 8)
        return head + int(bits or "0", 2).to_bytes(len(bits) // 8, "big")


def read_table(view: memoryview) -> tuple[Table, int]:
    """The table at the start of `view`, and the byte after it. ArchiveError if damaged."""
    flags, low, size, escapes, at = _head(view)
    width = WIDTHS[flags >> 5 & 3]
    entries = size + (width > 0)
    bits = np.unpackbits(np.frombuffer(view[at:], np.uint8, min(len(view) - at, 5 * entries)))
    text = (bits + ord("0")).tobytes().decode()
    values, end = _golomb(text, entries, flags >> 2 & 3)
    ranks = _ranks(values, bool(flags & 16))
    return Table(low, ranks, flags & 3, width, escapes, bool(flags >> 7)), at + (end + 7) // 8


def make_table(counts: Ints, low: int, others: int = 0, *, width: int = 0) -> tuple[Table, float]:
    """The table that makes integers and itself shortest, and how many bits they take.

    counts: of the integers from `low` on. others: how many more there are, all of which escape.
    width: bytes of an escaped value; 0 if none may escape.
    """
    best, least = None, float("inf")
    for start, stop in _cores(counts, TAILS if width else TAILS[:1]):
        core, escapes = counts[start:stop], others + int(counts[:start].sum() + counts[stop:].sum())
        known = np.append(core, escapes) if escapes else core
        for step in range(4):
            ranks = _to_ranks(known, step)
            table = Table(low + start, ranks, step, width if escapes else 0, escapes)
            cost = _cost(table, known)
            if cost < least:
                best, least = table, cost
    if best is None:
        raise ArchiveError("a table needs at least one integer, got none")
    return best, least


def _cores(counts: Ints, tails: tuple[int, ...]) -> list[tuple[int, int]]:
    """Ranges of entries, from all that occur to fewer and fewer of the rare ones at both ends."""
    below, total = np.cumsum(counts), int(counts.sum())
    found = []
    for rare in tails if total else ():
        start = int(np.searchsorted(below, total // rare, side="right"))
        stop = int(np.searchsorted(below, total - total // rare)) + 1
        if (start, stop) not in found:
            found.append((start, stop))
    return found or [(0, 0)]


def _to_ranks(counts: Ints, step: int) -> Ints:
    logs = np.rint(np.log2(np.maximum(counts, 1)) * (1 << step)).astype(np.int64)
    return np.where(counts > 0, logs.max() - logs, ABSENT)


def _cost(table: Table, counts: Ints) -> float:
    """Bits that `counts` integers take by `table`, it and escaped values among them."""
    values = _entries(table.ranks)
    bits = min(int(_code_lengths(values, order).sum()) for order in ORDERS)
    coded = float(counts @ (TOTAL_BITS - np.log2(table.frequencies())))
    return bits + coded + 8 * table.width * table.escapes


def _entries(ranks: Ints) -> Ints:
    """The number that is written for each rank."""
    present = ranks[ranks != ABSENT]
    steps = np.diff(present, prepend=0)
    codes: Ints = np.where(steps < 0, -2 * steps - 1, 2 * steps)
    if len(present) == len(ranks):
        return codes
    values = np.zeros_like(ranks)
    values[ranks != ABSENT] = codes + 1
    return values


def _ranks(values: Ints, holes: bool) -> Ints:
    present = values > 0 if holes else np.ones(len(values), bool)
    codes = values[present] - holes
    found = np.cumsum(np.where(codes & 1, -(codes + 1) // 2, codes // 2))
    if not len(found):
        raise ArchiveError("all entries of its table are absent")
    if found.min() != 0 or found.max() > MAX_RANK:
        raise ArchiveError(f"the ranks of its table are not from 0 to at most {MAX_RANK}")
    ranks = np.full(len(values), ABSENT)
    ranks[present] = found
    return ranks


def _code_lengths(values: Ints, order: int) -> Ints:
    digits: Ints = np.frexp(values + (1 << order))[1].astype(np.int64)
    return 2 * digits - 1 - order


def _golomb(text: str, count: int, order: int) -> tuple[Ints, int]:
    """`count` numbers from a text of 0 and 1, and where they end."""
    found, at = [], 0
    for _ in range(count):
        first = text.find("1", at)
        end = 2 * first - at + order + 1
        if first < 0 or end > len(text) or end - at > LONGEST:
            raise ArchiveError("its table is cut short or damaged")
        found.append(int(text[first:end], 2) - (1 << order))
        at = end
    return np.array(found, np.int64), at


def _head(view: memoryview) -> tuple[int, int, int, int, int]:
    """Flags, low, size, the number of escapes, and where the entries start."""
    if not len(view):
        raise ArchiveError("its table is missing")
    numbers = _numbers(view)
    low, size = next(numbers)[0], next(numbers)[0]
    escapes, at = next(numbers)
    return view[0], low, size, escapes, at


def _numbers(view: memoryview) -> Iterator[tuple[int, int]]:
    code, at = varint(view, 1, len(view))
    yield (-(code + 1) // 2 if code & 1 else code // 2), at
    size, at = varint(view, at, len(view))
    if size > MAX_SIZE:
        raise ArchiveError(f"its table has {size} entries, and at most {MAX_SIZE} are read")
    yield size, at
    yield varint(view, at, len(view)) if view[0] >> 5 & 3 else (0, at)


def _zigzag(number: int) -> int:
    return 2 * number if number >= 0 else -2 * number - 1


def _varint(number: Any) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])
