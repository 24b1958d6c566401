"""Numbers in fewer bits: what is rounded off, and what is read in its place."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from modelzip.data.packed.form import Form
from modelzip.errors import DataError

Array = NDArray[Any]
_STEPS = {"int8": (-127, 127), "uint8": (0, 255)}


class Scale(NamedTuple):
    """An integer q stands for q * step + start, in float32."""

    step: float = 1.0
    start: float = 0.0


def narrow(values: Array, form: Form) -> tuple[Array, Scale]:
    """The numbers that are kept of `values`. DataError if they are beyond what can be.

    >>> form = Form(dtype="float32", shape=(2,), narrow="int8")
    >>> narrow(np.array([[1.0, -0.5]], np.float32), form)[0].tolist()
    [[127, -64]]
    """
    if form.bits is not None:
        return values >> np.uint8(8 - form.bits), Scale()
    if form.threshold is not None:
        return np.where(np.abs(values) < form.threshold, 0, values).astype(values.dtype), Scale()
    if form.narrow is None:
        return values, Scale()
    if not np.isfinite(values).all():
        raise DataError(f"{form.narrow} has no NaN or infinity; keep such samples as they are")
    if form.narrow == "float16":
        if values.size and np.abs(values).max() > np.finfo(np.float16).max:
            raise DataError(
                f"float16 ends at 65504, and there is {np.abs(values).max():g}; use int8, or "
                "scale the samples"
            )
        return values.astype(np.float16), Scale()
    return _quantize(values.astype(np.float32), form.narrow)


def _quantize(values: Array, name: str) -> tuple[Array, Scale]:
    low, high = _STEPS[name]
    if not values.size:
        return values.astype(name), Scale()
    least, most = float(values.min()), float(values.max())
    if name == "int8":  # symmetric: 0 stays 0
        most = max(abs(least), abs(most))
        start, span = 0.0, most
    else:
        start, span = least, most - least
    step = float(np.float32(span / high)) or 1.0
    kept = np.rint((values.astype(np.float64) - start) / step).clip(low, high)
    return kept.astype(name), Scale(step, start)


def widen(kept: Array, form: Form, scale: Scale, seed: int) -> Array:
    """Values of the samples' own dtype, at the middle of what was rounded to `kept`.

    With noise they are anywhere in that span, each time in the same place: a fine step where a
    coarse one would show (pseudo-quantization noise; Widrow & Kollar 2008, section 4).
    `seed` is the number of the first sample.

    >>> form = Form(dtype="uint8", shape=(2,), bits=5)
    >>> widen(np.array([[0, 31]], np.uint8), form, Scale(), 0).tolist()
    [[4, 252]]
    """
    random = np.random.default_rng(seed) if form.noise else None
    if form.bits is not None:
        lost = 8 - form.bits
        # in place: `kept` is a chunk that nothing else has
        np.left_shift(kept, lost, out=kept)
        kept |= random.integers(0, 1 << lost, kept.shape, np.uint8) if random else 1 << lost >> 1
        return kept
    if form.narrow is None:
        return kept
    if form.narrow == "float16":
        return kept.astype(form.dtype)
    found = kept.astype(np.float32)
    if random:
        found += random.random(kept.shape, np.float32) - np.float32(0.5)
    found *= np.float32(scale.step)
    found += np.float32(scale.start)
    return found.astype(form.dtype, copy=False)
