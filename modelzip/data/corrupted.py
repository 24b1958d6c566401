"""Training data of which a part is corrupted on the way, so that a model learns to bear it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from modelzip.core import checks
from modelzip.data.base import (
    Augmented,
    Normalised,
    Ordered,
    Shuffled,
    collate,
    generator_for,
    length,
    shuffled,
)
from modelzip.data.corruptions import KINDS, check_ranges, corrupt, scale_of


class Corrupted(Augmented, Normalised, Ordered):
    """`dataset` with a `share` of its images corrupted, others in each epoch.

    An image is corrupted in one of the ways given, at a level drawn evenly from its range. What
    becomes of it depends on seed, epoch and index alone.

    Args:
        dataset: images, with whatever augmentation it has itself, which comes first.
        ranges: as `corruptions.check_ranges` takes them.
        share: the fraction of images that are corrupted, in (0, 1].

    >>> from modelzip.data import digits
    >>> data = Corrupted(digits().train, {"bits": (1, 1)}, share=1.0)
    >>> sorted(set(data[0][0].mul(255).flatten().tolist()))
    [63.5, 191.5]
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        ranges: Mapping[str, Sequence[float]],
        *,
        share: float = 0.6,
        seed: int = 0,
    ) -> None:
        self.dataset = dataset
        self._ranges = check_ranges("ranges", ranges)
        self._share = checks.fraction("share", share, zero=False, one=True)
        self._scale = scale_of(dataset)
        self.mean, self.std = self._scale.mean, self._scale.std
        self._seed = seed
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Draw for every image whether it is corrupted, how, and at which level."""
        if isinstance(self.dataset, Augmented):
            self.dataset.set_epoch(epoch)
        self._epoch = epoch
        generator = generator_for(self._seed, epoch, 2)  # not the stream of crops, nor of the order
        size = len(self)
        self._chosen = torch.rand(size, generator=generator) < self._share
        self._kinds = torch.randint(len(self._ranges), (size,), generator=generator)
        self._levels = torch.rand(size, generator=generator)

    def shuffled(self, *, seed: int, share: tuple[int, int] = (0, 1)) -> Shuffled:
        """The order of the dataset itself."""
        return shuffled(self.dataset, seed=seed, share=share)

    def __len__(self) -> int:
        return length(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} is out of range for {len(self)} items")
        inputs, targets = self.__getitems__([index % len(self)])
        return inputs[0], int(targets[0])

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """A collated batch: inputs [len(indices), ...] and targets [len(indices)]."""
        whole = Subset(self.dataset, range(len(self)))
        inputs, targets = collate(whole.__getitems__(list(indices)))
        pixels = self._scale.pixels(inputs)
        names = list(self._ranges)
        changed = inputs.clone()
        for row, index in enumerate(indices):
            if self._chosen[index]:
                kind = names[int(self._kinds[index])]
                noise = generator_for(self._seed, self._epoch, 3, index)
                level = self._level(kind, float(self._levels[index]))
                image = corrupt(pixels[row : row + 1], kind, level, noise)
                changed[row] = self._scale.inputs(image)[0]
        return changed, targets

    def _level(self, kind: str, drawn: float) -> float:
        low, high = self._ranges[kind]
        if KINDS[kind].whole:
            return int(low) + int(drawn * (high - low + 1))
        return low + drawn * (high - low)
