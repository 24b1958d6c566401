"""Weights cut into blocks of successive inputs, each of which gets a scale of its own."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor


def split(weight: Tensor, block_size: int | None) -> Tensor:
    """`weight` [outputs, *inputs] as [outputs, blocks, length], the last block filled with zeros.

    Blocks run along the flattened inputs; None makes each output one block.

    >>> import torch
    >>> split(torch.tensor([[1, 2, 3]]), 2).tolist()
    [[[1, 2], [3, 0]]]
    """
    rows = weight.flatten(1)
    length = min(block_size or rows.shape[1], rows.shape[1])
    missing = -rows.shape[1] % length
    if missing:
        rows = F.pad(rows, (0, missing))
    return rows.view(len(weight), -1, length)


def join(blocks: Tensor, shape: Sequence[int]) -> Tensor:
    """What `split` made of a weight of `shape`, put together again.

    >>> import torch
    >>> join(torch.tensor([[[1, 2], [3, 0]]]), (1, 3)).tolist()
    [[1, 2, 3]]
    """
    rows = blocks.flatten(1)
    used = math.prod(shape[1:])
    if rows.shape[1] > used:
        rows = rows[:, :used]
    return rows.reshape(*shape)
