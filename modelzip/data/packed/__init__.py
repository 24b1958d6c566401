"""Datasets packed into one file: written once, read in any order."""

from __future__ import annotations

from modelzip.data.packed.arrays import PackedArrays
from modelzip.data.packed.dataset import PackedDataset
from modelzip.data.packed.pack import pack
from modelzip.data.packed.sampler import ChunkShuffled

__all__ = ["ChunkShuffled", "PackedArrays", "PackedDataset", "pack"]
