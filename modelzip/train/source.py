"""Where the batches of fine-tuning come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.data import Dataset

from modelzip.data.base import length, loader, set_epoch
from modelzip.train.processes import Processes


class Source(ABC):
    """Batches (inputs, targets), epoch by epoch, on the device of `Processes` or not yet.

    `samples` tells runs apart; `per_epoch` is the number of steps between validations.
    """

    @property
    @abstractmethod
    def samples(self) -> int: ...

    @property
    @abstractmethod
    def per_epoch(self) -> int: ...

    @abstractmethod
    def batches(self, epoch: int) -> Iterator[tuple[Any, Tensor]]:
        """At least `per_epoch` batches of the epoch of that number, from 1."""

    @abstractmethod
    def hold(self, model: nn.Module) -> None:
        """Put what must not train into eval mode, where the model is in training mode."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint must keep so that batches go on as they would have."""

    @abstractmethod
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `tensors` gave."""


@dataclass(frozen=True, kw_only=True)
class Stored(Source):
    """Batches of a dataset in an order of seed and epoch; an incomplete last one is left out."""

    dataset: Dataset[Any]
    batch_size: int
    seed: int
    processes: Processes

    @property
    def samples(self) -> int:
        return length(self.dataset)

    @property
    def per_epoch(self) -> int:
        return max(1, self.samples // self.batch_size)

    def batches(self, epoch: int) -> Iterator[tuple[Any, Tensor]]:
        found = loader(
            self.dataset,
            batch_size=self.batch_size // self.processes.count,
            shuffle=True,
            seed=self.seed,
            drop_last=True,
            share=(self.processes.index, self.processes.count),
        )
        set_epoch(found, epoch - 1)
        return iter(found)

    def hold(self, model: nn.Module) -> None:
        """All of it trains."""

    def tensors(self) -> dict[str, Tensor]:
        return {}  # batches depend on the epoch alone

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """There is nothing to go on from."""
