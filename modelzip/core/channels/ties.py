"""Which channels must go together and which must stay, gathered first and resolved at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modelzip.core.channels.labels import compact

Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """What hangs together.

    Attributes:
        root: for each channel number the smallest number tied to it.
        stays: for each channel number which of `reasons` its unit must stay for, or -1.
        owners: by root, the modules whose own forward laid the unit out in a shape of theirs.
    """

    root: Numbers
    stays: Numbers
    reasons: Sequence[str]
    owners: Mapping[int, set[str]]


class Ties:
    """What is known of the channels 1 to `count`; labels are as in `labels`, and zeros are skipped.

    >>> import torch
    >>> ties = Ties(4)
    >>> ties.tie(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]))
    >>> ties.bar(torch.tensor([4.0]), "stays")
    >>> units = ties.resolve()
    >>> units.root.tolist(), units.stays.tolist()
    ([0, 1, 1, 3, 3], [-1, -1, -1, 0, 0])
    """

    def __init__(self, count: int) -> None:
        self._count = count + 1
        self._pairs: list[tuple[Numbers, Numbers]] = []
        self._barred: list[tuple[Numbers, bool, str]] = []
        self._splits: list[tuple[Numbers, tuple[int, ...], int | None]] = []
        self._laid_out: list[tuple[Numbers, str]] = []
        self._mixed: list[tuple[Numbers, str]] = []

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Elements of `a` go with those of `b` where they meet, after broadcasting."""
        first, second = (_numbers(t).ravel() for t in compact(a, b))
        differ = (first != second) & (first > 0) & (second > 0)
        if differ.any():
            self._pairs.append((first[differ], second[differ]))

    def bar(self, label: Tensor, reason: str) -> None:
        """All channels in `label` must stay. A reason given later is preferred."""
        self._barred.append((np.unique(_numbers(*compact(label)))[None], False, reason))

    def fix(self, label: Tensor, axes: Sequence[int], reason: str) -> None:
        """The size of these axes cannot change: what lies along them is one unit, or must stay."""
        (small,) = compact(label)
        lengths = [small.shape[axis] for axis in axes]
        if any(length > 1 for length in lengths):
            moved = np.moveaxis(_numbers(small), list(axes), range(-len(axes), 0))
            self._barred.append((moved.reshape(-1, int(np.prod(lengths))), True, reason))

    def split(self, label: Tensor, axes: Sequence[int], *, free: int | None = None) -> None:
        """These axes were one: along all of them but `free`, units take their channels evenly.

        If it is not given, it is the longest of those along which units differ once all ties are
        known: others have their sizes written in, such as the number of groups of a shuffle.
        """
        (small,) = compact(label)
        self._splits.append((_numbers(small), tuple(axes), free))

    def lay_out(self, label: Tensor, owner: str) -> None:
        """The module `owner` splits or joins axes by the channels in `label`."""
        self._laid_out.append((np.unique(_numbers(*compact(label))), owner))

    def mix(self, label: Tensor, reason: str) -> None:
        """What later finds sizes fixed by the channels in `label` is not to blame: `reason` is."""
        self._mixed.append((np.unique(_numbers(*compact(label))), reason))

    def resolve(self) -> Units:
        """Follow ties through any number of steps."""
        root = _components(self._count, self._pairs)
        even = [
            pair for split, axes, free in self._splits for pair in _evenly(root[split], axes, free)
        ]
        if even:
            root = _components(self._count, [*self._pairs, *even])
        reasons = [reason for _, _, reason in self._barred] + [reason for _, reason in self._mixed]
        return Units(root, self._stays(root), reasons, self._owners(root))

    def _stays(self, root: Numbers) -> Numbers:
        latest = np.full(self._count, -1)
        for index, (rows, unless_alike, _) in enumerate(self._barred):
            roots = root[rows]
            if unless_alike:
                highest = roots.max(1)
                lowest = np.where(roots > 0, roots, self._count).min(1)
                roots = roots[lowest < highest]
            latest[roots] = index
        fixes = np.array([*(unless_alike for _, unless_alike, _ in self._barred), False])
        by_size = fixes[latest]  # the last is for -1
        for index, (numbers, _) in enumerate(self._mixed, len(self._barred)):
            roots = root[numbers]
            latest[roots[by_size[roots]]] = index
        latest[0] = -1
        stays: Numbers = latest[root]
        return stays

    def _owners(self, root: Numbers) -> dict[int, set[str]]:
        owners: dict[int, set[str]] = defaultdict(set)
        for numbers, owner in self._laid_out:
            for unit in np.unique(root[numbers]).tolist():
                owners[unit].add(owner)
        return owners


def _components(count: int, pairs: Sequence[tuple[Numbers, Numbers]]) -> Numbers:
    """For each of `count` vertices the smallest one it is connected to.

    Each round hooks every tree to the lowest neighbour of its root and flattens the trees.
    """
    root = np.arange(count)
    if not pairs:
        return root
    a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
    while True:
        ends = root[a], root[b]
        apart = ends[0] != ends[1]
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        high, low = np.maximum(*ends)[apart], np.minimum(*ends)[apart]
        np.minimum.at(root, high, low)
        while not np.array_equal(above := root[root], root):
            root = above


def _evenly(
    units: Numbers, axes: tuple[int, ...], free: int | None
) -> list[tuple[Numbers, Numbers]]:
    """Ties of `units` across those of `axes` along which they differ, but for the free one."""
    differ = [axis for axis in axes if (units != units.take([0], axis)).any()]
    if len(differ) < 2:
        return []
    if free is None:
        free = max(differ, key=lambda axis: (units.shape[axis], axis))
    first = units
    for axis in differ:
        if axis != free:
            first = first.take([0], axis)
    a, b = np.broadcast_to(first, units.shape).ravel(), units.ravel()
    both = (a > 0) & (b > 0)
    return [(a[both], b[both])]


def _numbers(label: Tensor) -> Numbers:
    return label.numpy().astype(np.int64)
