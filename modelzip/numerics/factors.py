"""Weights as products of smaller ones: truncated SVD and Tucker-2, blind or as the inputs weigh.

Every function takes and gives float64 tensors, weights as [outputs, inputs, *kernel].
"""

from __future__ import annotations

import torch
from torch import Tensor

_DAMPING = 1e-3  # of the mean variance, so that a channel that never varied stays defined
_ROUNDS = 10
_SETTLED = 1e-6  # gain of a round in energy, as a fraction of all


def root(moment: Tensor) -> Tensor:
    """A lower triangular root of the inputs' second `moment` [n, n]: itself times its transpose.

    Errors of a weight times the root are errors of the layer's output on those inputs, so that
    truncation drops what the outputs miss least: Wang et al. 2024, https://arxiv.org/abs/2403.07378.

    >>> root(torch.tensor([[4.0, 0.0], [0.0, 1.0]], dtype=torch.float64)).round(decimals=1).tolist()
    [[2.0, 0.0], [0.0, 1.0]]
    """
    mean = moment.diagonal().mean()
    unit = torch.eye(len(moment), dtype=moment.dtype, device=moment.device)
    return torch.linalg.cholesky(moment + _DAMPING * mean * unit) if mean > 0 else unit


def weighed(weight: Tensor, lower: Tensor | None) -> Tensor:
    """`weight` as it acts on inputs of unit variance, whose root is `lower`; or as it is."""
    return weight if lower is None else _project(weight, lower, axis=1)


def factorize(
    weight: Tensor, ranks: tuple[int, ...], *, lower: Tensor | None = None
) -> tuple[list[Tensor], float]:
    """Factors of `weight`, in the order they are applied, and the fraction of energy they keep.

    One rank is that of a matrix; two, those of the inputs and outputs of a convolution's core. A
    side of full rank has no factor of its own. With `lower`, the `root` of the inputs' moment, the
    energy is that of the outputs.

    >>> factors, kept = factorize(torch.ones(4, 2, 3, 3, dtype=torch.float64), (2, 1))
    >>> [tuple(factor.shape) for factor in factors]
    [(1, 2, 3, 3), (4, 1)]
    """
    seen = weighed(weight, lower)
    if len(ranks) == 1:
        matrix = seen.flatten(1)
        kept = float(svd_energy(matrix)[ranks[0] - 1])
        first, last = svd_factors(matrix, ranks[0])
        return balanced([_on_inputs(first, lower), last]), kept
    first, core, last, kept = tucker_factors(seen, *ranks)
    first = _on_inputs(first, lower)
    factors = [core]
    if len(first) < first.shape[1]:
        factors.insert(0, first)
    else:
        factors[0] = _project(core, first, axis=1)
    if len(last) > last.shape[1]:
        factors.append(last)
    else:
        factors[-1] = _project(factors[-1], last.T, axis=0)
    return balanced(factors), kept


def _on_inputs(first: Tensor, lower: Tensor | None) -> Tensor:
    """The first factor of a weighed weight, as it acts on the inputs themselves."""
    if lower is None:
        return first
    own: Tensor = torch.linalg.solve_triangular(lower, first, upper=False, left=False)
    return own


def svd_energy(weight: Tensor) -> Tensor:
    """Fraction of the squared singular values that the ranks 1, 2, ... keep, [min(weight.shape)].

    >>> svd_energy(torch.diag(torch.tensor([1.0, 3.0], dtype=torch.float64))).tolist()
    [0.9, 1.0]
    """
    values, _ = _eigen(weight if len(weight) <= weight.shape[1] else weight.T)
    return _fractions(values.cumsum(0))


def svd_factors(weight: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """`first` [rank, inputs] and `last` [outputs, rank]: `last @ first` is nearest to `weight`.

    Eckart & Young 1936, https://doi.org/10.1007/BF02288367.

    >>> first, last = svd_factors(torch.ones(2, 3, dtype=torch.float64), 1)
    >>> bool(torch.allclose(last @ first, torch.ones(2, 3, dtype=torch.float64)))
    True
    """
    if len(weight) <= weight.shape[1]:
        last = _eigen(weight)[1][:, :rank]
        return last.T @ weight, last
    first = _eigen(weight.T)[1][:, :rank].T
    return first, weight @ first.T


def tucker_energy(weight: Tensor) -> Tensor:
    """Fraction of the energy that a truncated HOSVD keeps, [outputs, inputs].

    Entry [i, j] is for i + 1 output and j + 1 input components. De Lathauwer et al. 2000,
    https://doi.org/10.1137/S0895479896305696.
    """
    core = _project(weight, _basis(weight, axis=0), axis=0)
    core = _project(core, _basis(weight, axis=1), axis=1)
    return _fractions(core.flatten(2).square().sum(2).cumsum(0).cumsum(1))


def tucker_factors(
    weight: Tensor, rank_in: int, rank_out: int
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Tucker-2 factors of a convolution's weight, and the fraction of its energy they keep.

    `first` [rank_in, inputs], `core` [rank_out, rank_in, *kernel] and `last` [outputs, rank_out]
    are 1 x 1, k x k and 1 x 1 convolutions in a row: Kim et al. 2016,
    https://arxiv.org/abs/1511.06530. Found by higher-order orthogonal iteration from the HOSVD, De
    Lathauwer et al. 2000, https://doi.org/10.1137/S0895479898346995.

    >>> weight = torch.ones(4, 2, 3, 3, dtype=torch.float64)
    >>> first, core, last, kept = tucker_factors(weight, 1, 1)
    >>> tuple(first.shape), tuple(core.shape), tuple(last.shape), round(kept, 6)
    ((1, 2), (1, 1, 3, 3), (4, 1), 1.0)
    """
    inputs = _basis(weight, axis=1)[:, :rank_in]
    total = float(weight.square().sum()) or 1.0
    kept = 0.0
    for _ in range(_ROUNDS):
        outputs = _basis(_project(weight, inputs, axis=1), axis=0)[:, :rank_out]
        seen = _project(weight, outputs, axis=0)
        inputs = _basis(seen, axis=1)[:, :rank_in]
        core = _project(seen, inputs, axis=1)
        before, kept = kept, float(core.square().sum()) / total
        if kept - before <= _SETTLED:
            break
    return inputs.T, core, outputs, kept


def balanced(factors: list[Tensor]) -> list[Tensor]:
    """The same product, each component of equal norm in the factors on both its sides.

    Factors are in the order they are applied, each [outputs, inputs, *kernel]. Of all scalings this
    has the least sum of squares, and no factor is left with the scale of all.

    >>> a, b = balanced([torch.tensor([[8.0]]), torch.tensor([[0.5]])])
    >>> float(a), float(b)
    (2.0, 2.0)
    """
    result = list(factors)
    for index in range(len(result) - 1):
        before, after = result[index], result[index + 1]
        left = before.flatten(1).norm(dim=1)
        right = after.transpose(0, 1).flatten(1).norm(dim=1)
        scale = torch.where((left > 0) & (right > 0), (right / left).sqrt(), 1.0)
        result[index] = before * scale.view(-1, *[1] * (before.dim() - 1))
        result[index + 1] = after / scale.view(1, -1, *[1] * (after.dim() - 2))
    return result


def _basis(weight: Tensor, *, axis: int) -> Tensor:
    """Orthonormal vectors along `axis`, in columns, those of most energy first."""
    return _eigen(weight.movedim(axis, 0).flatten(1))[1]


def _project(weight: Tensor, vectors: Tensor, *, axis: int) -> Tensor:
    """`weight` in the coordinates of the columns of `vectors` along `axis`."""
    moved = weight.movedim(axis, 0)
    seen = vectors.T @ moved.flatten(1)
    return seen.reshape(-1, *moved.shape[1:]).movedim(0, axis)


def _eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Squared singular values, largest first, and left singular vectors of a wide `matrix`."""
    values, vectors = torch.linalg.eigh(matrix @ matrix.T)
    return values.flip(0).clamp_min(0.0), vectors.flip(1)


def _fractions(energies: Tensor) -> Tensor:
    total = energies.flatten()[-1]
    return energies / total if total > 0 else torch.ones_like(energies)
