"""Schedules: a training step to the value of a setting."""

from __future__ import annotations


def cubic_sparsity(step: int, *, first: int, last: int, final: float) -> float:
    """Sparsity after `step`: 0 up to `first`, `final` from `last` on, a cubic between.

    `final * (1 - (1 - t) ** 3)` with t the fraction of [first, last] gone by: fast while there
    are many redundant weights, slow towards the end. Equation 1 of Zhu & Gupta 2017 with an
    initial sparsity of 0, https://arxiv.org/abs/1710.01878.

    >>> [round(cubic_sparsity(k, first=0, last=4, final=0.8), 3) for k in range(6)]
    [0.0, 0.463, 0.7, 0.788, 0.8, 0.8]
    """
    if step >= last:
        return final
    t = max(0, step - first) / (last - first)
    return final * (1 - (1 - t) ** 3)
