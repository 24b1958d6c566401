"""Normalisation and augmentation of samples, a batch at a time."""

from __future__ import annotations

import copy
import math
import numbers
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from modelzip.core import checks
from modelzip.data.base import Augmented, Normalised, generator_for
from modelzip.errors import DataError, SettingError

Same = TypeVar("Same", bound="Pipeline")


class Pipeline(Augmented, Normalised):
    """Samples of one shape, from wherever a child class keeps them, ready for a model.

    uint8 comes out as float32 in [0, 1].

    Args:
        shape: of all inputs together, [N, ...].
        targets: [N], integers.
        mean, std: per channel (dimension 1); an input comes out as (x - mean) / std.
        crop: pixels of zero padding that a random crop of the original size is taken from, with
            a random horizontal flip; 0 for neither. He et al. 2016, https://arxiv.org/abs/1512.03385.
        seed: of the augmentation, which depends on it, the epoch and the index alone.
    """

    def __init__(
        self,
        shape: Sequence[int],
        targets: Tensor,
        *,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        crop: int = 0,
        seed: int = 0,
    ) -> None:
        _check_numbers("mean", mean)
        _check_numbers("std", std)
        checks.integer("crop", crop, low=0)
        if len(mean) != len(std):
            raise SettingError(
                f"mean has {len(mean)} values and std {len(std)}; give one a channel"
            )
        if any(deviation <= 0 for deviation in std):
            raise SettingError(f"std must be above 0, as inputs are divided by it, got {list(std)}")
        if mean and (len(shape) < 2 or shape[1] != len(mean)):
            raise SettingError(
                f"mean and std have {len(mean)} values, and inputs of shape "
                f"{list(shape)} have another number of channels in dimension 1"
            )
        if crop and len(shape) != 4:
            raise SettingError(f"crop needs images N x C x H x W, got shape {list(shape)}")
        if targets.is_floating_point():
            raise DataError(f"labels must be integers, got {targets.dtype}")
        self.targets = targets.long()
        self.mean, self.std, self.crop, self.seed = tuple(mean), tuple(std), crop, seed
        per_channel = (1, -1, *[1] * (len(shape) - 2))
        self._mean = torch.tensor(mean).view(per_channel) if mean else None
        self._std = torch.tensor(std).view(per_channel) if std else None
        self.set_epoch(0)

    def _raw(self, chosen: Tensor) -> Tensor:
        """The inputs as they are kept, of these indices: [len(chosen), ...]."""
        raise NotImplementedError

    def plain(self: Same) -> Same:
        """The same data without augmentation; nothing is copied."""
        same = copy.copy(self)
        same.crop = 0
        return same

    def set_epoch(self, epoch: int) -> None:
        """Draw an offset and a flip for every image at once, so that batch order cannot matter."""
        if self.crop:
            generator = generator_for(self.seed, epoch, 1)  # not the stream of the order
            high = 2 * self.crop + 1
            size = len(self)
            self._offsets = torch.randint(high, (2, size), generator=generator)
            self._flips = torch.randint(2, (size,), generator=generator).bool()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")
        inputs, targets = self.__getitems__([index])
        return inputs[0], int(targets[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A collated batch: inputs [len(indices), ...] and targets [len(indices)]."""
        chosen = torch.as_tensor(indices)
        inputs = self._raw(chosen)
        if self.crop:
            inputs = self._augment(inputs, chosen)
        if inputs.dtype == torch.uint8:
            inputs = inputs.float().div_(255)
        if self._mean is not None and self._std is not None:
            inputs = (inputs - self._mean).div_(self._std)
        return inputs, self.targets[chosen]

    def _augment(self, images: Tensor, chosen: Tensor) -> Tensor:
        height, width = images.shape[2:]
        padded = F.pad(images, [self.crop] * 4)
        top, left = self._offsets[:, chosen]
        rows = top[:, None] + torch.arange(height)
        columns = left[:, None] + torch.arange(width)
        columns = torch.where(self._flips[chosen][:, None], columns.flip(1), columns)
        batch = torch.arange(len(images))[:, None, None]
        # indexing dimensions 0, 2 and 3 moves channels last: B x H x W x C
        return padded[batch, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _check_numbers(name: str, values: object) -> None:
    """SettingError unless `values` are numbers, one a channel."""
    if (
        isinstance(values, str)
        or not isinstance(values, Sequence)
        or not all(isinstance(value, numbers.Real) and math.isfinite(value) for value in values)
    ):
        raise SettingError(f"{name} must be a list of numbers, one a channel, got {values!r}")
