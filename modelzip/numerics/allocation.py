"""One choice for each of several tensors, of least total cost within a budget of bytes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelzip.errors import SettingError


def allocate(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], *, budget: float
) -> list[int]:
    """The index chosen in each row: least total of `costs` with the total of `sizes` in `budget`.

    The multiple-choice knapsack problem, solved exactly as an integer program,
    https://doi.org/10.1007/978-3-540-24777-7.

    Args:
        costs: a row a tensor, an entry a choice, finite and not negative; rows of one length.
        sizes: of the same shape, in bytes.
        budget: bytes in all.

    Raises:
        SettingError: the smallest choice of every row is over the budget together.

    >>> allocate([[9.0, 1.0], [4.0, 1.0]], [[1, 2], [1, 2]], budget=3)
    [1, 0]
    """
    from scipy import optimize, sparse  # slow to load, and needed here alone

    smallest = sum(min(row) for row in sizes)
    if smallest > budget:
        raise SettingError(f"the smallest choice takes {smallest:.0f} bytes, over {budget:.0f}")
    owners = np.repeat(np.arange(len(costs)), [len(row) for row in costs])
    flat_costs = np.concatenate([np.asarray(row, float) for row in costs])
    flat_sizes = np.concatenate([np.asarray(row, float) for row in sizes])
    places = np.arange(len(owners))
    one_each = sparse.csr_array((np.ones(len(owners)), (owners, places)))
    found = optimize.milp(
        flat_costs / _typical_cost(costs, sizes, budget),
        integrality=np.ones(len(owners), int),
        bounds=optimize.Bounds(0, 1),
        constraints=[
            optimize.LinearConstraint(one_each, 1, 1),
            optimize.LinearConstraint(flat_sizes[None] / budget, -np.inf, 1),
        ],
        options={"mip_rel_gap": 0.0},
    )
    chosen = places[np.asarray(found.x) > 0.5]
    starts = np.searchsorted(owners, np.arange(len(costs)))
    return [int(c) for c in chosen - starts]


def _typical_cost(
    costs: Sequence[Sequence[float]], sizes: Sequence[Sequence[float]], budget: float
) -> float:
    """A total near the least one: the solver's tolerances are absolute."""
    tables = zip(zip(*costs, strict=True), zip(*sizes, strict=True), strict=True)
    uniform = [sum(column) for column, size in tables if sum(size) <= budget]
    return max(min(uniform, default=max(map(max, costs))), 1e-300)
