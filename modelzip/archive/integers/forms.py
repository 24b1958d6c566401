"""How the context coder sees a tensor: its axes, and its integers as few kinds and the rest."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.errors import ArchiveError

MODEL = 1
BUCKETS = {  # limit -> bits of a place in each bucket of magnitudes, which are 1 to limit in all
    7: (0, 0, 0, 0, 0, 0, 0),
    15: (0, 0, 0, 1, 1, 2, 2),
    31: (0, 1, 2, 2, 2, 3, 3),
    63: (0, 1, 2, 3, 4, 4, 4),
    127: (0, 1, 2, 3, 4, 5, 6),
}
LIMITS = tuple(BUCKETS)
MOST_TAPS = 64
MOST_AXES = 32
MOST_INTEGERS = 1 << 59  # of 8 bytes, that numpy counts, zeros aside
BLOCK = 1 << 18  # integers
SAMPLE = 1 << 15
WIDTHS = (1, 2, 4)  # bytes of an escape
INT32 = np.iinfo(np.int32)


class View(NamedTuple):
    """A tensor as rows of columns of taps, of which `width` are in a row of a kernel."""

    rows: int
    columns: int
    taps: int
    width: int

    def blocks(self) -> Iterator[slice]:
        """Rows in turn, so many that they are at most `BLOCK` integers if one is."""
        step = max(1, BLOCK // max(1, self.columns * self.taps))
        for start in range(0, self.rows, step):
            yield slice(start, min(start + step, self.rows))


def view_of(shape: Sequence[int]) -> View:
    """The view of a tensor of `shape`.

    >>> view_of((16, 3, 5, 3)), view_of((4, 3, 2000)), view_of((1, 10))
    (View(rows=16, columns=3, taps=15, width=3), View(rows=12, columns=2000, taps=1, width=1), \
View(rows=10, columns=1, taps=1, width=1))
    """
    if any(isinstance(size, bool) or not isinstance(size, int) or size < 0 for size in shape):
        raise ArchiveError(f"shape must be of integers from 0 on, got {tuple(shape)}")
    if len(shape) > MOST_AXES or math.prod(max(size, 1) for size in shape) > MOST_INTEGERS:
        raise ArchiveError(f"shape is too large: {str(tuple(shape))[:100]}")
    taps = math.prod(shape[2:])
    if len(shape) > 2 and taps <= MOST_TAPS:
        view = View(shape[0], shape[1], taps, shape[-1])
    else:
        view = View(math.prod(shape[:-1]), math.prod(shape[-1:]), 1, 1)
    if view.taps == 1 and view.rows == 1:
        return View(view.columns, 1, 1, 1)
    return view


class Form(NamedTuple):
    """How integers become few kinds: the parameters, as context.py defines them."""

    limit: int
    center: int = 0
    shift: int = 0
    escapes: int = 0
    width: int = 0

    @property
    def half(self) -> int:
        return 1 << self.shift >> 1

    def params(self) -> dict[str, Any]:
        """JSON values for `read_form`; those of 0 are left out."""
        return {"model": MODEL, **{key: value for key, value in self._asdict().items() if value}}


def read_form(params: Mapping[str, Any]) -> Form:
    """The form that `params` say. ArchiveError if there is none such."""
    bounds = {
        "model": (MODEL, MODEL),
        "limit": (LIMITS[0], LIMITS[-1]),
        "center": (0, (1 << 16) - 1),
        "shift": (0, 25),
        "escapes": (0, INT32.max),
        "width": (0, WIDTHS[-1]),
    }
    for name, value in params.items():
        if name not in bounds:
            raise ArchiveError(f"there is no parameter {str(name)[:100]!r}")
        low, high = bounds[name]
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ArchiveError(f"{name} must be from {low} to {high}, got {str(value)[:100]}")
    if "model" not in params:
        raise ArchiveError("the parameter 'model' is missing")
    form = Form(**{"limit": 0, **{name: params[name] for name in params if name != "model"}})
    if form.limit not in LIMITS:
        raise ArchiveError(f"limit must be one of {LIMITS}, got {form.limit}")
    if form.width not in WIDTHS[: 3 * bool(form.escapes)] + (0,) * (not form.escapes):
        raise ArchiveError(f"{form.escapes} escapes cannot be of {form.width} bytes")
    return form


def choose_form(values: NDArray[Any], limit: int | None) -> Form:
    """The form for `values`, still without escapes. ArchiveError if they are not of 32 bits."""
    if values.dtype.kind not in "iu":
        raise ArchiveError(f"context codes integers, got {values.dtype}")
    if not values.size:
        return Form(LIMITS[0])
    low, high = int(values.min()), int(values.max())
    if low < INT32.min or high > INT32.max:
        raise ArchiveError(f"context codes integers of 32 bits with a sign, got {low} to {high}")
    flat = values.reshape(-1)
    sample = flat[:: -(-flat.size // SAMPLE)].astype(np.int64)
    center = int(np.sort(sample)[sample.size // 2]) if values.dtype.str[1:] in ("u1", "u2") else 0
    most = max(high - center, center - low)
    shift = _choose_shift(sample - center, most)
    greatest = (most + (1 << shift >> 1)) >> shift
    wanted = greatest if limit is None else limit
    return Form(next((n for n in LIMITS if n >= wanted), LIMITS[-1]), center, shift)


def _choose_shift(sample: NDArray[np.int64], most: int) -> int:
    """How many lowest bits to keep apart: the fewest bits a value, by the sample's entropy."""
    best, best_bits = 0, math.inf
    for shift in range(max(1, most.bit_length() - LIMITS[-1].bit_length() + 1)):
        coarse = abs((sample + (1 << shift >> 1)) >> shift)
        escapes = np.count_nonzero(coarse > LIMITS[-1]) / sample.size
        counts = np.bincount(np.minimum(coarse, LIMITS[-1] + 1))
        shares = counts[counts > 0] / sample.size
        bits = float(-(shares * np.log2(shares)).sum()) + shift
        bits += (1 - shares[0] * (counts[0] > 0) - escapes) + escapes * 8 * width_of(most >> shift)
        if bits < best_bits:
            best, best_bits = shift, bits
    return best


def width_of(magnitude: int) -> int:
    """Bytes of an integer with a sign, from -magnitude to magnitude."""
    return next(width for width in (*WIDTHS, 8) if magnitude < 1 << 8 * width - 1)


def packed_size(size: int, bits: int) -> int:
    return -(-size * bits // 8)


def pack_bits(values: NDArray[np.int64], bits: int) -> bytes:
    """The lowest `bits` bits of each value, one value after another."""
    places = np.arange(bits - 1, -1, -1)
    return np.packbits((values[:, None] >> places & 1).astype(np.uint8)).tobytes()


def unpack_bits(packed: NDArray[np.uint8], bits: int, size: int) -> NDArray[np.int64]:
    """What `pack_bits` packed."""
    ones = np.unpackbits(packed, count=size * bits).reshape(size, bits)
    return ones @ (1 << np.arange(bits - 1, -1, -1))
