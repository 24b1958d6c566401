"""Small transformer encoders."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core import checks
from modelzip.errors import SettingError

_MASKED = -1e4  # added to the score of a padding token: its share is 0, in half precision too


class Attention(nn.Module):
    """Multi-head self-attention over [N, length, width], written out.

    `mask`, broadcast to [N, heads, length, length], is added to the scores.
    """

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Attention and a feed-forward net, each normalised first and added to its input."""

    def __init__(self, width: int, *, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = x + self.dropout(self.attention(self.norm1(x), mask))
        fed = self.down(F.gelu(self.up(self.norm2(mixed))))
        return mixed + self.dropout(fed)  # type: ignore[no-any-return]


class Encoder(nn.Module):
    """A transformer encoder with a mean-pooled classifier. Vaswani et al. 2017,
    https://arxiv.org/abs/1706.03762.
    """

    def __init__(
        self, *, embed: nn.Module, length: int, width: int, heads: int, layers: int, classes: int
    ) -> None:
        super().__init__()
        self.embed = embed
        self.position = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))
        self.layers = nn.Sequential(*(EncoderLayer(width, heads=heads) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(self.embed(x) + self.position)
        return self.linear(self.norm(hidden).mean(dim=1))  # type: ignore[no-any-return]


def encoder(
    *,
    vocabulary: int | None = None,
    features: int | None = None,
    length: int = 64,
    width: int = 64,
    heads: int = 4,
    layers: int = 2,
    classes: int = 2,
) -> Encoder:
    """A small transformer encoder classifier; give `vocabulary` or `features`.

    Args:
        vocabulary: inputs are int64 token ids [N, length] below it.
        features: inputs are float32 sequences [N, length, features].

    >>> encoder(vocabulary=100, length=8)(torch.zeros(2, 8, dtype=torch.long)).shape
    torch.Size([2, 2])
    """
    _check_heads(width, heads)
    if (vocabulary is None) == (features is None):
        raise SettingError("encoder takes vocabulary (token ids) or features (floats), one of them")
    embed: nn.Module
    if vocabulary is not None:
        embed = nn.Embedding(checks.integer("vocabulary", vocabulary, low=1), width)
    else:
        embed = nn.Linear(checks.integer("features", features, low=1), width)
    return Encoder(
        embed=embed, length=length, width=width, heads=heads, layers=layers, classes=classes
    )


class TextEncoder(nn.Module):
    """A transformer encoder for padded sentences; see `text_encoder`."""

    def __init__(
        self,
        *,
        vocabulary: int,
        length: int,
        width: int,
        heads: int,
        layers: int,
        dropout: float,
        word_dropout: float,
        classes: int,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        nn.init.normal_(self.embed.weight, std=0.02)
        self.position = nn.Parameter(torch.empty(1, length, width).normal_(std=0.02))
        self.word_dropout = nn.Dropout1d(word_dropout)  # a token is a channel: all of it goes
        self.dropout = nn.Dropout(dropout)
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads=heads, dropout=dropout) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.linear = nn.Linear(width, classes)

    def forward(self, ids: Tensor) -> Tensor:
        kept = (ids != 0).float()
        mask = ((1 - kept) * _MASKED)[:, None, None, :]
        x = self.dropout(self.word_dropout(self.embed(ids)) + self.position)
        for layer in self.layers:
            x = layer(x, mask)
        kept = kept.unsqueeze(-1)
        # a sentence of nothing has a mean of zeros
        mean = (self.norm(x) * kept).sum(dim=1) / kept.sum(dim=1).clamp(min=1)
        return self.linear(mean)  # type: ignore[no-any-return]


def text_encoder(
    *,
    vocabulary: int = 8000,
    length: int = 64,
    width: int = 256,
    heads: int = 4,
    layers: int = 4,
    dropout: float = 0.2,
    word_dropout: float = 0.2,
    classes: int = 2,
) -> TextEncoder:
    """A small transformer encoder for sentences: int64 ids [N, length] to scores [N, classes].

    Id 0 is padding: nothing attends to it, and the mean before the classifier leaves it out.

    Args:
        dropout: share of values dropped in training, from the input and from each branch.
        word_dropout: share of whole tokens dropped in training.

    >>> text_encoder(vocabulary=100, length=8)(torch.zeros(3, 8, dtype=torch.long)).shape
    torch.Size([3, 2])
    """
    _check_heads(width, heads)
    return TextEncoder(
        vocabulary=checks.integer("vocabulary", vocabulary, low=1),
        length=checks.integer("length", length, low=1),
        width=width,
        heads=heads,
        layers=checks.integer("layers", layers, low=1),
        dropout=checks.fraction("dropout", dropout),
        word_dropout=checks.fraction("word_dropout", word_dropout),
        classes=checks.integer("classes", classes, low=1),
    )


def _check_heads(width: int, heads: int) -> None:
    checks.integer("width", width, low=1)
    if width % checks.integer("heads", heads, low=1):
        raise SettingError(f"width must be a multiple of heads, got width={width}, heads={heads}")
