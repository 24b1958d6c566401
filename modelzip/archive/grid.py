"""Floats that are multiples of a step, exactly, as integers: one step, or one a channel.

A value is the product step * q, rounded once as IEEE 754 does (to nearest, ties to even) in the
type of the values, float32 or float64; all values but zeros, and all steps, are normal numbers, so
that every CPU agrees. If `negative_zero` is set, -0.0 occurs: it is the integer -1, and what is
below 0 is one lower than its q. Rounded weights have it wherever a small negative one became 0.

The step is found from the largest and the smallest magnitude of a channel: their ratio is that of
two integers. It is verified on every value, bit by bit.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.archive.palette import is_smaller
from modelzip.errors import ArchiveError

Floats = NDArray[Any]
Ints = NDArray[Any]
LARGEST = (1 << 15) - 2
SMALLEST = np.arange(1, 129)  # the integers that the smallest magnitude may be
NEAR = np.arange(-2, 3)  # a step is so many units in the last place from what a division gives
PROBES = 32


class Grid(NamedTuple):
    """`integers`, shaped like the values; `steps`, one for each index of `axis`, or one if None."""

    steps: Floats
    integers: Ints
    axis: int | None
    negative_zero: bool


def find_grid(values: Floats) -> Grid | None:
    """The grid that float32 or float64 values lie on exactly, or None if there is none to gain by.

    One step for all is tried first, then one a channel along axis 0, then 1.

    >>> grid = find_grid(np.float32(0.1) * np.float32([[3, 0, -1, 2], [5, 1, -4, -4]]))
    >>> grid.steps, grid.integers.tolist()
    (array([0.1], dtype=float32), [[3, 0, -1, 2], [5, 1, -4, -4]])
    """
    if values.dtype.kind != "f" or values.itemsize < 4 or not _is_normal(values):
        return None
    axes = [axis for axis in range(min(values.ndim, 2)) if 2 * values.shape[axis] < values.size]
    for axis in (None, *axes):
        steps = _find_steps(values, axis)
        if steps is None:
            continue
        integers, negative_zero = _to_integers(values, steps, axis)
        kinds = int(integers.max()) - int(integers.min()) + 1
        if _has_values(steps, integers) and is_smaller(values, steps.nbytes, kinds):
            return Grid(steps, integers, axis, negative_zero)
    return None


def from_grid(grid: Grid) -> Floats:
    """The values again. ArchiveError if there is no such grid."""
    steps, integers, axis, negative_zero = grid
    if axis is not None and (type(axis) is not int or not 0 <= axis < min(integers.ndim, 2)):
        raise ArchiveError(f"a grid has steps along axis 0, 1 or None of its own, not {axis!r:.20}")
    needed = 1 if axis is None else integers.shape[axis]
    if steps.shape != (needed,) or steps.dtype.kind != "f" or steps.itemsize < 4:
        raise ArchiveError(f"a grid needs {needed} float32 or float64 steps, got {steps.shape}")
    if not steps.size or not integers.size:
        return np.empty(integers.shape, steps.dtype)
    low, high = int(integers.min()), int(integers.max())
    if not _has_values(steps, integers):
        least, most = float(steps.min()), float(steps.max())
        raise ArchiveError(f"a grid of steps {least} to {most} has no values at {low} to {high}")
    if not -LARGEST - 1 <= low <= high <= LARGEST:
        raise ArchiveError(f"a grid has integers to {LARGEST}, not {low} to {high}")
    lowered = (integers < 0) if negative_zero else np.zeros((), bool)
    factors = np.asarray(np.add(integers, lowered, dtype=np.int32)).astype(steps.dtype)
    factors *= _along(steps, axis, integers.ndim)
    if negative_zero:
        factors[integers == -1] = -0.0
    return factors


def _has_values(steps: Floats, integers: Ints) -> bool:
    """Whether the largest step times the largest integer, of whichever channel, is finite."""
    bounds, most = np.finfo(steps.dtype), max(-int(integers.min()), int(integers.max()), 1)
    return bool(bounds.tiny <= steps.min() and steps.max() < bounds.max / most)


def _find_steps(values: Floats, axis: int | None) -> Floats | None:
    channels = [values] if axis is None else np.moveaxis(values, axis, 0)
    steps = np.ones(len(channels), values.dtype)
    for index, channel in enumerate(channels):
        magnitudes = np.abs(channel).reshape(-1)
        if not magnitudes.all():
            magnitudes = magnitudes[magnitudes > 0]
        if magnitudes.size:
            step = _find_step(magnitudes)
            if step is None:
                return None
            steps[index] = step
    return steps


def _find_step(magnitudes: Floats) -> Any:
    """The largest step of which all `magnitudes`, above 0, are multiples; None if there is none."""
    smallest, largest = float(magnitudes.min()), float(magnitudes.max())
    with np.errstate(over="ignore"):  # to infinity, which is over LARGEST
        counts = np.rint(largest / smallest * SMALLEST)
    counts = counts[counts <= LARGEST]
    guesses = (largest / counts).astype(magnitudes.dtype)
    ulps = guesses.view(f"i{guesses.itemsize}")[:, None] + NEAR.astype(f"i{guesses.itemsize}")
    steps = ulps.view(guesses.dtype).reshape(-1)
    steps = steps[steps >= np.finfo(steps.dtype).tiny]
    probes = magnitudes[:: max(1, magnitudes.size // PROBES)]
    fits = _are_multiples(probes, steps[:, None]).all(axis=1)
    return next((step for step in steps[fits] if _are_multiples(magnitudes, step).all()), None)


def _are_multiples(magnitudes: Floats, step: Any) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = np.rint(magnitudes / step) * step == magnitudes
    return same


def _to_integers(values: Floats, steps: Floats, axis: int | None) -> tuple[Ints, bool]:
    integers = np.rint(values / _along(steps, axis, values.ndim)).astype(np.int16)
    below = np.signbit(values)
    negative_zero = bool((below & (integers == 0)).any())
    if negative_zero:
        integers -= below
    if integers.min() >= -128 and integers.max() <= 127:
        integers = integers.astype(np.int8)
    return integers, negative_zero


def _along(steps: Floats, axis: int | None, ndim: int) -> Floats:
    return steps.reshape([-1 if index == axis else 1 for index in range(ndim)])


def _is_normal(values: Floats) -> bool:
    """Whether there are values, and none is infinite, NaN or subnormal."""
    bounds = np.finfo(values.dtype)
    magnitudes = np.abs(values)
    return bool(
        values.size
        and magnitudes.max() <= bounds.max
        and magnitudes.min(where=magnitudes > 0, initial=bounds.max) >= bounds.tiny
    )
