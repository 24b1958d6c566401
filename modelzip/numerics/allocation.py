"""One choice for each of several tensors, of least total cost within a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelzip.errors import SettingError

_UNITS = 2**16  # that the budget is counted in; each size is rounded up to one


def allocate(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], *, budget: float
) -> list[int]:
    """The index chosen in each row: least total of `costs` with the total of `sizes` in `budget`.

    The multiple-choice knapsack problem by dynamic programming, Kellerer et al. 2004,
    https://doi.org/10.1007/978-3-540-24777-7, chapter 11: exact but for sizes, which count in
    units of 1/65536 of the budget, rounded up.

    Args:
        costs: a row a tensor, an entry a choice, finite and not negative; rows of one length.
        sizes: of the same shape, in bytes.
        budget: bytes in all.

    Raises:
        SettingError: the smallest choice of every row is over the budget together.

    >>> allocate([[9.0, 1.0], [4.0, 1.0]], [[1, 2], [1, 2]], budget=3.01)
    [1, 0]
    """
    units = np.ceil(np.asarray(sizes, float) * (_UNITS / max(budget, 1e-300)) - 1e-9).astype(int)
    if units.min(axis=1).sum() > _UNITS:
        smallest = sum(min(row) for row in sizes)
        raise SettingError(f"the smallest choice takes {smallest:.0f} bytes, over {budget:.0f}")
    least = np.zeros(_UNITS + 1)  # cost of the rows so far, by the units they may take
    picks = []
    for row, lengths in zip(np.asarray(costs, float), units, strict=True):
        options = np.full((len(row), _UNITS + 1), np.inf)
        for option, cost, length in zip(options, row, lengths, strict=True):
            if length <= _UNITS:
                option[length:] = least[: _UNITS + 1 - length] + cost
        picks.append(options.argmin(axis=0))
        least = options.min(axis=0)
    chosen: list[int] = []
    left = _UNITS
    for pick, lengths in zip(reversed(picks), reversed(units), strict=True):
        chosen.append(int(pick[left]))
        left -= lengths[chosen[-1]]
    return chosen[::-1]
