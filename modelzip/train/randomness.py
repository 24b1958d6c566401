"""Randomness of training: a function of seed and epoch, and none of the caller's."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from modelzip.data.base import generator_for


def seed_all(*numbers: int) -> None:
    """Seed every generator that a model or a dataset may draw from."""
    seed = generator_for(*numbers).initial_seed()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """Randomness inside leaves the caller's generators where they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
