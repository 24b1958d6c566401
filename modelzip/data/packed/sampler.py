"""An order that is random and still reads a packed dataset chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from modelzip.core import checks
from modelzip.data.base import Shuffled, generator_for
from modelzip.errors import SettingError

if TYPE_CHECKING:
    from modelzip.data.packed.dataset import PackedDataset

WINDOW = 4


class ChunkShuffled(Shuffled):
    """Chunks in random order, and samples shuffled within each few chunks; once each.

    Args:
        data: a packed dataset.
        seed: of the order, which depends on it and on `epoch` alone.
        window: chunks whose samples are shuffled together; at most as many as `data` keeps.
        workers: of the DataLoader. Each then decodes chunks that are its own.
        batch_size: of the DataLoader, where there are several workers.
        share: as of `Shuffled`; each process then decodes all chunks.

    >>> import tempfile
    >>> from modelzip.data import PackedDataset
    >>> from modelzip.data.packed.pack import pack
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     pack([(b"a", 0), (b"b", 1), (b"c", 2)], f"{folder}/a.mzd", codec="store", chunk=2).count
    ...     sorted(ChunkShuffled(PackedDataset(f"{folder}/a.mzd"), seed=1))
    3
    [0, 1, 2]
    """

    def __init__(
        self,
        data: PackedDataset,
        *,
        seed: int = 0,
        window: int = WINDOW,
        workers: int = 1,
        batch_size: int | None = None,
        share: tuple[int, int] = (0, 1),
    ) -> None:
        super().__init__(len(data), seed=seed, share=share)
        self.data = data
        self.window = checks.integer("window", window, low=1)
        self.workers = max(1, checks.integer("workers", workers, low=0))
        if window > data.cache:
            raise SettingError(
                f"a window of {window} chunks is more than the {data.cache} that are kept; open "
                f"the dataset with cache={window}"
            )
        if self.workers > 1 and batch_size is None:
            raise SettingError(f"workers={workers} take whole batches; give their batch_size too")
        self.batch_size = (
            1 if batch_size is None else checks.integer("batch_size", batch_size, low=1)
        )

    def __iter__(self) -> Iterator[int]:
        generator = generator_for(self.seed, self.epoch)
        chunks = torch.randperm(self.data.chunk_count, generator=generator).tolist()
        orders = [self._order(chunks[w :: self.workers], generator) for w in range(self.workers)]
        index, count = self.share
        order = _dealt(orders, self.batch_size)
        return iter(order[: len(self) * count][index::count].tolist())

    def _order(self, chunks: list[int], generator: torch.Generator) -> Tensor:
        parts = [torch.empty(0, dtype=torch.int64)]
        for start in range(0, len(chunks), self.window):
            ranges = [self.data.chunk_of(chunk) for chunk in chunks[start : start + self.window]]
            samples = torch.cat([torch.arange(r.start, r.stop) for r in ranges])
            parts.append(samples[torch.randperm(len(samples), generator=generator)])
        return torch.cat(parts)


def _dealt(orders: list[Tensor], batch_size: int) -> Tensor:
    """Batches of each order in turn, as workers take them; what makes no batch for all is last."""
    whole = min(len(order) for order in orders) // batch_size * batch_size
    turns = torch.stack([order[:whole].view(-1, batch_size) for order in orders], dim=1)
    return torch.cat([turns.reshape(-1), *(order[whole:] for order in orders)])
