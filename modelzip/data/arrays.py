"""Data held in memory, with normalisation and augmentation a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from modelzip.core import checks
from modelzip.data.base import Splits
from modelzip.data.pipeline import Pipeline
from modelzip.errors import DataError, SettingError


class ArrayDataset(Pipeline):
    """Inputs and labels in memory; a batch is cut, augmented and normalised at once.

    Args:
        inputs: [N, ...]; uint8 images [N, C, H, W] come out as float32 in [0, 1].
        targets: [N], integers.
        mean, std, crop, seed: as of `Pipeline`.

    >>> data = ArrayDataset(torch.full((4, 1, 2, 2), 255, dtype=torch.uint8), torch.arange(4))
    >>> inputs, targets = data.__getitems__([1, 3])
    >>> inputs.shape, float(inputs.max()), targets.tolist()
    (torch.Size([2, 1, 2, 2]), 1.0, [1, 3])
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        crop: int = 0,
        seed: int = 0,
    ) -> None:
        _check_lengths(inputs, targets)
        super().__init__(inputs.shape, targets, mean=mean, std=std, crop=crop, seed=seed)
        self.inputs = inputs

    def _raw(self, chosen: Tensor) -> Tensor:
        return self.inputs[chosen]

    def take(self, indices: Sequence[int]) -> ArrayDataset:
        """These samples alone, in this order, normalised and augmented as here."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        return ArrayDataset(
            self.inputs[chosen],
            self.targets[chosen],
            mean=self.mean,
            std=self.std,
            crop=self.crop,
            seed=self.seed,
        )


def in_hand(dataset: Dataset[Any] | Sequence[Any]) -> Dataset[Any] | Sequence[Any]:
    """`dataset`, or where it is a `Subset` of an `ArrayDataset` those samples as one.

    >>> data = ArrayDataset(torch.zeros(4, 2), torch.arange(4))
    >>> in_hand(Subset(data, [3, 1])).targets.tolist()
    [3, 1]
    """
    if not isinstance(dataset, Subset):
        return dataset
    whole = in_hand(dataset.dataset)
    return whole.take(dataset.indices) if isinstance(whole, ArrayDataset) else dataset


def split_off(
    size: int, *, validation: float, limit: int | None, seed: int
) -> tuple[Tensor, Tensor]:
    """Indices below `size` of a training and a validation set, disjoint, in a seeded order.

    Args:
        validation: a count of samples, or a fraction of `size` below 1.
        limit: keep at most this many training samples.

    >>> train, held_out = split_off(10, validation=0.2, limit=5, seed=0)
    >>> len(train), len(held_out)
    (5, 2)
    """
    if isinstance(validation, float) and validation < 1:
        held_out = round(checks.fraction("validation", validation, zero=False) * size)
    else:
        held_out = checks.integer("validation", validation, low=1)
    if limit is not None:
        checks.integer("limit", limit, low=1)
    if not 0 < held_out < size:
        raise SettingError(
            f"validation={validation} of {size} training samples leaves an empty split; "
            "give a count or a fraction in between"
        )
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    return order[held_out:][:limit], order[:held_out]


def in_memory(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    classes: int,
    validation: float,
    limit: int | None,
    seed: int,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    crop: int = 0,
) -> Splits:
    """Splits of two (inputs, targets) pairs; validation is cut off train, and un-augmented."""
    _check_lengths(*train)
    rest, held_out = split_off(len(train[0]), validation=validation, limit=limit, seed=seed)

    def dataset(pair: tuple[Tensor, Tensor], crop: int = 0) -> Dataset[Any]:
        return ArrayDataset(*pair, mean=mean, std=std, crop=crop, seed=seed)

    def pick(indices: Tensor) -> tuple[Tensor, Tensor]:
        return train[0][indices], train[1][indices]

    return Splits(
        train=dataset(pick(rest), crop),
        validation=dataset(pick(held_out)),
        test=dataset(test),
        classes=classes,
    )


def _check_lengths(inputs: Tensor, targets: Tensor) -> None:
    if len(inputs) != len(targets):
        raise DataError(f"there are {len(inputs)} inputs and {len(targets)} labels")
