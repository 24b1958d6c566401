"""k-means of single numbers: the few values that stand for many with the least squared error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Array = npt.NDArray[Any]
_Error = Callable[[Array, Array], Array]

_CUTS = 2048  # places where clusters may be parted, before they are refined
_REFINEMENTS = 500


def kmeans(values: Tensor, clusters: int) -> Tensor:
    """The ascending centroids, at most `clusters`, nearest to `values` in the mean square.

    In one dimension clusters are intervals, so dynamic programming finds the best: Grønlund et al.
    2017, https://arxiv.org/abs/1701.07204. It tries every parting of up to 2000 different values;
    of more, those at 2000 places, from where Lloyd's iterations go on. Fewer different values than
    `clusters` are their own centroids. A million take a second.

    `values` are finite floats of any shape, at least one. The result has their dtype.

    >>> kmeans(torch.tensor([2.0, 5.0, 1.0, 3.0, 9.0]), 3).tolist()
    [2.0, 5.0, 9.0]
    """
    ordered = values.detach().flatten().sort().values.double().cpu().numpy()
    middle = ordered.mean()  # squares of what is left lose no digits
    centroids = _refined(ordered - middle, _best_parts(ordered - middle, clusters)) + middle
    return torch.from_numpy(centroids).to(values.device, values.dtype)


def _best_parts(ordered: Array, clusters: int) -> Array:
    """Where the best clusters begin, and the last one ends, of those that part at `_cuts`."""
    cuts = _cuts(ordered)
    sums, squares = _running(ordered)[cuts], _running(ordered**2)[cuts]

    def error(first: Array, last: Array) -> Array:
        """The squared error of what is between two cuts, the second not before the first."""
        count = np.maximum(cuts[last] - cuts[first], 1)
        found: Array = squares[last] - squares[first] - (sums[last] - sums[first]) ** 2 / count
        return found

    every = np.arange(len(cuts))
    least = error(np.zeros_like(every), every)
    begins = []
    for _ in range(min(clusters, len(cuts) - 1) - 1):
        least, begin = _one_more(least, error)
        begins.append(begin)
    path = [len(cuts) - 1]
    for begin in reversed(begins):
        path.append(int(begin[path[-1]]))
    return np.unique(cuts[[0, *path]])


def _one_more(least: Array, error: _Error) -> tuple[Array, Array]:
    """The least error up to each cut with one more cluster, and the cut where that one begins.

    For a later end it begins no earlier. So what is found for some ends bounds what is tried for
    those half way between them: n log n errors are computed for n cuts.
    """
    count = len(least)
    found, begin = least.copy(), np.zeros(count, np.int64)
    step = 1 << (count - 1).bit_length()
    while step > 1:
        ends = np.arange(step // 2, count, step)
        low, later = begin[ends - step // 2], ends + step // 2
        high = np.where(later < count, np.minimum(begin[later % count], ends), ends)
        lengths = high - low + 1
        starts = np.cumsum(lengths) - lengths
        tried = np.arange(lengths.sum()) - np.repeat(starts - low, lengths)
        totals = least[tried] + error(tried, np.repeat(ends, lengths))
        found[ends] = np.minimum.reduceat(totals, starts)
        where = np.where(totals == np.repeat(found[ends], lengths), tried, count)
        begin[ends] = np.minimum.reduceat(where, starts)
        step //= 2
    return found, begin


def _cuts(ordered: Array) -> Array:
    """Places between different values, and both ends.

    Of too many, half are spread evenly over the places, and half over the range of values.
    """
    between = np.flatnonzero(np.diff(ordered)) + 1
    if len(between) > _CUTS:
        even = between[np.linspace(0, len(between) - 1, _CUTS // 2).astype(np.int64)]
        edges = np.linspace(ordered[0], ordered[-1], _CUTS // 2)
        between = np.union1d(even, np.searchsorted(ordered, edges))
    return np.union1d(between, [0, len(ordered)])


def _refined(ordered: Array, parts: Array) -> Array:
    """Centroids that Lloyd's iterations reach: means of the values nearest to each."""
    sums = _running(ordered)
    for _ in range(_REFINEMENTS):
        centroids = np.diff(sums[parts]) / np.diff(parts)
        nearest = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        moved = np.unique([0, *nearest, len(ordered)])  # a cluster left empty goes
        if np.array_equal(moved, parts):
            break
        parts = moved
    found: Array = np.diff(sums[parts]) / np.diff(parts)
    return found


def _running(values: Array) -> Array:
    """Sums of the first 0, 1, ... values."""
    return np.concatenate(([0.0], np.cumsum(values)))
