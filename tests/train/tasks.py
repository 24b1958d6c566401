"""A small task that trains in milliseconds, and passes to train it with."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from modelzip.core.base import Pass, PassReport, Stage
from modelzip.core.prepare import Prepared
from modelzip.data import ArrayDataset, Splits


def images(count: int, *, seed: int, crop: int = 0) -> ArrayDataset:
    """Noise with a bright row (label 0) or column (label 1)."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(count, 1, 6, 6, generator=generator)
    targets = torch.arange(count) % 2
    inputs[targets == 0, :, 3, :] += 0.7
    inputs[targets == 1, :, :, 3] += 0.7
    return ArrayDataset(inputs, targets, crop=crop)


def splits(**changes) -> Splits:
    found = {
        "train": images(64, seed=0, crop=1),
        "validation": images(32, seed=1),
        "test": images(32, seed=2),
        "classes": 2,
    }
    return Splits(**(found | changes))


def model() -> nn.Module:
    """With batch norm and dropout, so that state and randomness matter."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.AdaptiveMaxPool2d(2),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(16, 2),
        )


def prepared() -> Prepared:
    return Prepared(model())


def state(of: Prepared) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in of.model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@dataclass(frozen=True, kw_only=True)
class Scheduled(Pass):
    """Does nothing until step `end`, adds `weight` times the squared weights to the loss."""

    name: ClassVar[str] = "scheduled"
    stage: ClassVar[Stage] = Stage.WEIGHT
    end: int = 0
    weight: float = 0.0

    def prepare(self, model, context):
        return model

    def settled(self, model, step):
        return step >= self.end

    def penalty(self, model):
        return self.weight * sum(p.square().sum() for p in model.parameters())

    def convert(self, model, context):
        return PassReport(name=self.name, settings={}, layers=())


class Killed(ArrayDataset):
    """Ends its process, as kill -9 does, when asked for batch number `at`."""

    at = 0

    def __getitems__(self, indices):
        self.at -= 1
        if self.at == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitems__(indices)


def killed_run(checkpoint: str, at: int) -> None:
    from modelzip.train.finetune import FineTune, finetune

    data = images(64, seed=0, crop=1)
    data.__class__ = Killed
    data.at = at
    finetune(
        prepared(),
        splits(train=data),
        FineTune(epochs=4, lr=0.1),
        batch_size=16,
        checkpoint=Path(checkpoint),
        progress=False,
    )
