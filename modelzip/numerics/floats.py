"""What is lost when values change to a narrower float type."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def misfit(peak: float, dtype: torch.dtype) -> str:
    """Why values of which `peak` is the largest |value| do not fit in `dtype`, "" where they do.

    float16 ends at 65504 and has all its digits from 6.1e-05, bfloat16 ends at 3.4e38; IEEE
    754-2019, https://doi.org/10.1109/IEEESTD.2019.8766229.

    >>> misfit(81234.0, torch.float16)
    'reaches 81234, float16 holds 65504'
    """
    limits, name = torch.finfo(dtype), str(dtype).removeprefix("torch.")
    if peak > limits.max:
        return f"reaches {peak:.5g}, {name} holds {limits.max:.5g}"
    if 0 < peak < limits.smallest_normal:
        return f"is at most {peak:.2g}, {name} loses digits below {limits.smallest_normal:.2g}"
    return ""


def underflow_count(values: Tensor, dtype: torch.dtype) -> int:
    """How many `values` other than zero become zero in `dtype`.

    float16 reaches down to 2**-24, about 6e-8, bfloat16 to about 9e-41.

    >>> underflow_count(torch.tensor([0., 1e-8, 6e-8]), torch.float16)
    1
    """
    return int(((values != 0) & (values.to(dtype) == 0)).sum())


def largest_magnitude(values: Tensor) -> float:
    """The largest finite |value|, 0.0 where there is none.

    >>> largest_magnitude(torch.tensor([1., -7., float("inf")]))
    7.0
    """
    if not values.numel():
        return 0.0
    peak = float(values.detach().abs().max())
    if math.isfinite(peak):
        return peak
    finite = values.detach()[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
