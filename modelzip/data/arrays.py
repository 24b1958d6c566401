"""Data held in memory, with normalisation and augmentation a batch at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from modelzip.core import checks
from modelzip.data.base import Augmented, Normalised, Splits, generator_for
from modelzip.errors import DataError, SettingError


class ArrayDataset(Augmented, Normalised):
    """Inputs and labels in memory; a batch is cut, augmented and normalised at once.

    Args:
        inputs: [N, ...]; uint8 images [N, C, H, W] come out as float32 in [0, 1].
        targets: [N], integers.
        mean, std: per channel (dimension 1); an input comes out as (x - mean) / std.
        crop: pixels of zero padding that a random crop of the original size is taken from, with
            a random horizontal flip; 0 for neither. He et al. 2016, https://arxiv.org/abs/1512.03385.
        seed: of the augmentation, which depends on it, the epoch and the index alone.

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
        if len(mean) != len(std):
            raise SettingError(
                f"mean has {len(mean)} values and std {len(std)}; give one a channel"
            )
        if mean and (inputs.ndim < 2 or inputs.shape[1] != len(mean)):
            raise SettingError(
                f"mean and std have {len(mean)} values, and inputs of shape "
                f"{list(inputs.shape)} have another number of channels in dimension 1"
            )
        if crop and inputs.ndim != 4:
            raise SettingError(f"crop needs images N x C x H x W, got shape {list(inputs.shape)}")
        if targets.is_floating_point():
            raise DataError(f"labels must be integers, got {targets.dtype}")
        self.inputs = inputs
        self.targets = targets.long()
        shape = (1, -1, *[1] * (inputs.ndim - 2))
        self._mean = torch.tensor(mean).view(shape) if mean else None
        self._std = torch.tensor(std).view(shape) if std else None
        self.mean, self.std = tuple(mean), tuple(std)
        self._crop = crop
        self._seed = seed
        self.set_epoch(0)

    def plain(self) -> ArrayDataset:
        """The same data without augmentation; nothing is copied."""
        same = copy.copy(self)
        same._crop = 0
        return same

    def set_epoch(self, epoch: int) -> None:
        """Draw an offset and a flip for every image at once, so that batch order cannot matter."""
        if self._crop:
            generator = generator_for(self._seed, epoch, 1)  # not the stream of the order
            high = 2 * self._crop + 1
            size = len(self.inputs)
            self._offsets = torch.randint(high, (2, size), generator=generator)
            self._flips = torch.randint(2, (size,), generator=generator).bool()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")
        inputs, targets = self.__getitems__([index])
        return inputs[0], int(targets[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A collated batch: inputs [len(indices), ...] and targets [len(indices)]."""
        chosen = torch.as_tensor(indices)
        inputs = self.inputs[chosen]
        if self._crop:
            inputs = self._augment(inputs, chosen)
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255)
        if self._mean is not None and self._std is not None:
            inputs = (inputs - self._mean).div_(self._std)
        return inputs, self.targets[chosen]

    def _augment(self, images: Tensor, chosen: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = F.pad(images, [self._crop] * 4)
        top, left = self._offsets[:, chosen]
        rows = top[:, None] + torch.arange(height)
        columns = left[:, None] + torch.arange(width)
        columns = torch.where(self._flips[chosen][:, None], columns.flip(1), columns)
        batch = torch.arange(len(images))[:, None, None]
        # indexing dimensions 0, 2 and 3 moves channels last: B x H x W x C
        return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


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
