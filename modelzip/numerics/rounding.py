"""Rounding a weight so that what it computes changes least, not the weight itself."""

from __future__ import annotations

import torch
from torch import Tensor

from modelzip.numerics.affine import SMALLEST_SCALE, weight_levels

_SCALES = 12  # tried for each row, from the largest |w| down
_NARROWEST = 0.5  # of the largest |w|, at the last of them
_SWEEPS = 6
_BLOCK = 32  # columns whose errors are passed on together
_DAMPING = 0.01  # of the mean diagonal


def least_squares_integers(
    weight: Tensor, gram: Tensor, *, bits: int, cross: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Integers q, shaped like `weight`, and a scale s for each row so that s q x is nearest W x.

    Minimises the squared error over the inputs that `gram` summarises: one column after another
    is rounded and those that are left make up for it (GPTQ, Frantar et al. 2022,
    https://arxiv.org/abs/2210.17323), with the best of several scales for each row; then single
    weights and scales are improved in turns until nothing is left to gain. Zeros stay zero.

    Args:
        weight: W, [rows, d].
        gram: sum of x x^T over the inputs x that the rounded weight will see, [d, d].
        cross: sum of y x^T, where W was meant to see y in place of x; `gram` where None.

    >>> weight = torch.tensor([[0.4, 0.4, 0.4, 3.0]])  # of equal inputs the sum counts: 1.2 -> 1
    >>> gram = torch.ones(4, 4) + 0.1 * torch.eye(4)
    >>> integers, scale = least_squares_integers(weight, gram, bits=3)
    >>> abs(float(scale * integers.sum()) - 4.2) < 0.3
    True
    """
    gram, target = solve_target(weight, gram, gram if cross is None else cross)
    keep = weight != 0
    peak = weight.double().abs().amax(1).clamp_min(SMALLEST_SCALE) / weight_levels(bits)
    fractions = torch.linspace(1.0, _NARROWEST, _SCALES, dtype=torch.float64)
    scale = (fractions[:, None] * peak).flatten()  # every row once for each fraction
    rows = len(weight)
    integers = round_columns(
        target.repeat(_SCALES, 1), gram, scale, keep.repeat(_SCALES, 1), top=weight_levels(bits)
    )
    errors = _error(integers * scale[:, None], target.repeat(_SCALES, 1), gram)
    best = errors.view(_SCALES, rows).argmin(0) * rows + torch.arange(rows)
    integers, scale = _improve(integers[best], scale[best], target, gram, keep, bits=bits)
    return integers.to(weight.dtype), scale.to(weight.dtype)


def solve_target(weight: Tensor, gram: Tensor, cross: Tensor) -> tuple[Tensor, Tensor]:
    """`gram` with a little on its diagonal, and the rows that come nearest to W x unrounded.

    Both float64; arguments as of `least_squares_integers`.
    """
    gram = gram.double()
    damping = _DAMPING * float(gram.diagonal().mean()) + 1e-12
    eye = damping * torch.eye(len(gram), dtype=torch.float64)
    gram = gram + eye
    target = torch.linalg.solve(gram, (weight.double() @ (cross.double() + eye)).T).T
    return gram, target


def _error(rounded: Tensor, target: Tensor, gram: Tensor) -> Tensor:
    left = rounded - target
    return ((left @ gram) * left).sum(1)


def round_columns(target: Tensor, gram: Tensor, scale: Tensor, keep: Tensor, *, top: int) -> Tensor:
    """Integers up to `top` for `target`, each column's error passed on to those after it."""
    order = gram.diagonal().argsort(descending=True)  # the weightiest while all others can help
    inverse = torch.linalg.inv(gram[order][:, order])
    upper = torch.linalg.cholesky(inverse, upper=True).float()
    left, step, kept = target[:, order].float(), scale.float(), keep[:, order]
    integers = torch.zeros_like(left)
    for start in range(0, left.shape[1], _BLOCK):
        stop = min(start + _BLOCK, left.shape[1])
        errors = torch.zeros(len(left), stop - start)
        for column in range(start, stop):
            value = left[:, column]
            integers[:, column] = (value / step).round_().clamp_(-top, top) * kept[:, column]
            error = (value - integers[:, column] * step) / upper[column, column]
            left[:, column:stop] -= error[:, None] * upper[column, column:stop]
            errors[:, column - start] = error
        left[:, stop:] -= errors @ upper[start:stop, stop:]
    return integers[:, order.argsort()].double()


def _improve(
    integers: Tensor, scale: Tensor, target: Tensor, gram: Tensor, keep: Tensor, *, bits: int
) -> tuple[Tensor, Tensor]:
    """The nearest local optimum: no single integer, and no scale, can lower the error."""
    top = weight_levels(bits)
    diagonal = gram.diagonal()
    for _ in range(_SWEEPS):
        before = integers.clone()
        gradient = (integers * scale[:, None] - target) @ gram
        for column in range(integers.shape[1]):
            old = integers[:, column]
            wanted = old - gradient[:, column] / (diagonal[column] * scale)
            new = wanted.round_().clamp_(-top, top) * keep[:, column]
            gradient += ((new - old) * scale)[:, None] * gram[column]
            integers[:, column] = new
        along = integers @ gram
        fitted = (along * target).sum(1) / (along * integers).sum(1).clamp_min(1e-30)
        scale = torch.where(fitted > SMALLEST_SCALE, fitted, scale)
        if torch.equal(before, integers):
            break
    return integers, scale
