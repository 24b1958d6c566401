"""What is lost when values change to a narrower float type."""

from __future__ import annotations

import torch
from torch import Tensor


def overflow_count(values: Tensor, dtype: torch.dtype) -> int:
    """How many finite `values` become infinite in `dtype`.

    float16 ends at 65504, bfloat16 at about 3.4e38; IEEE 754-2019 rounds to nearest, so values
    up to half a step beyond the end stay finite, https://doi.org/10.1109/IEEESTD.2019.8766229.

    >>> overflow_count(torch.tensor([65504., 65519., 65520., float("inf")]), torch.float16)
    1
    """
    return int((values.isfinite() & values.to(dtype).isinf()).sum())


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
    finite = values.detach()[values.isfinite()]
    return float(finite.abs().max()) if finite.numel() else 0.0
