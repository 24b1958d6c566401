"""A small convolutional classifier of texts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core import checks
from modelzip.errors import SettingError


class TextCNN(nn.Module):
    """Convolutions of several widths over tokens, the largest value of each; see `text_cnn`."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        channels: int,
        kernels: Sequence[int],
        dropout: float,
        word_dropout: float,
        classes: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.1)
        self.word_dropout = nn.Dropout1d(word_dropout)  # a token is a channel: all of it goes
        self.convs = nn.ModuleList(
            nn.Conv1d(width, channels, kernel, padding=kernel // 2) for kernel in kernels
        )
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(channels * len(kernels), classes)
        self.length = length

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_dropout(self.embed(ids)).transpose(1, 2)
        # a pool over all places, unlike amax, is known to keep integers integers
        found = [F.max_pool1d(F.relu(conv(x)), self.length) for conv in self.convs]
        return self.linear(self.dropout(torch.cat(found, dim=1).flatten(1)))  # type: ignore[no-any-return]


def text_cnn(
    *,
    vocabulary: int = 2000,
    length: int = 64,
    width: int = 64,
    channels: int = 64,
    kernels: Sequence[int] = (1, 3, 5),
    dropout: float = 0.5,
    word_dropout: float = 0.1,
    classes: int = 2,
) -> TextCNN:
    """A convolutional classifier of texts: int64 ids [N, length] to scores [N, classes].

    Kim 2014, https://arxiv.org/abs/1408.5882.

    Args:
        kernels: how many tokens each group of `channels` filters looks at; odd.
        dropout: share of values dropped in training before the classifier.
        word_dropout: share of whole tokens dropped in training.

    >>> text_cnn(vocabulary=100, length=8)(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 2])
    """
    if not kernels:
        raise SettingError("text_cnn needs at least one kernel, got kernels=[]")
    for kernel in kernels:
        if checks.integer("kernels", kernel, low=1) % 2 == 0:
            raise SettingError(f"kernels must be odd, so that all give {length=}, got {kernel}")
    return TextCNN(
        vocabulary=checks.integer("vocabulary", vocabulary, low=1),
        length=checks.integer("length", length, low=1),
        width=checks.integer("width", width, low=1),
        channels=checks.integer("channels", channels, low=1),
        kernels=tuple(kernels),
        dropout=checks.fraction("dropout", dropout),
        word_dropout=checks.fraction("word_dropout", word_dropout),
        classes=checks.integer("classes", classes, low=1),
    )
