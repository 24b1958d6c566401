"""How many samples a second a packed dataset gives."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import torch

from modelzip.core import checks
from modelzip.data.packed.dataset import PackedDataset
from modelzip.data.packed.sampler import ChunkShuffled

ORDERS = ("in turn", "chunk-shuffled", "random")
SECONDS = 5.0  # at most, about


class Speed(NamedTuple):
    """Samples a second: by the clock, and by the time this process had of a core."""

    wall: float
    core: float


def speed(path: str | Path, order: str, *, batch_size: int = 128) -> Speed:
    """Read batches in an order of `ORDERS`, from a file just opened, for one pass or 5 seconds."""
    checks.choice("order", order, ORDERS)
    checks.integer("batch_size", batch_size, low=1)
    data = PackedDataset(path, random_access=True)
    numbers = list(range(len(data)))
    if order == "chunk-shuffled":
        numbers = list(ChunkShuffled(data))
    elif order == "random":
        generator = torch.Generator().manual_seed(0)
        numbers = torch.randperm(len(data), generator=generator).tolist()
    wall, core, count = time.perf_counter(), time.process_time(), 0
    while count < len(numbers) and time.perf_counter() - wall < SECONDS:
        count += len(data.__getitems__(numbers[count : count + batch_size]))
    return Speed(
        count / max(time.perf_counter() - wall, 1e-9),
        count / max(time.process_time() - core, 1e-9),
    )
