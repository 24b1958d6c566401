"""Transformers and recurrent networks, small, and still what they are called."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FusedAttention(nn.Module):
    """Queries, keys and values from one Linear; the width of a head from the input's."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (width // num_heads) ** -0.5
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, width))


class HeadDimAttention(nn.Module):
    """The same with the width of a head its own, so that the number of heads may change."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.proj(x.reshape(batch, length, self.num_heads * self.head_dim))


class SeparateAttention(nn.Module):
    """Queries, keys and values from a Linear each."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads, self.head_dim = num_heads, width // num_heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).view(x.shape[0], -1, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        x = F.scaled_dot_product_attention(q, k, v)
        return self.o(x.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class VitBlock(nn.Module):
    def __init__(self, width: int, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(width), attention
        self.norm2, self.mlp = nn.LayerNorm(width), Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Vit(nn.Module):
    """Patches, a class token and positions, blocks that normalise first."""

    def __init__(self, attention: Callable[[int, int], nn.Module], width: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 17, width) / 5)
        self.blocks = nn.Sequential(*(VitBlock(width, attention(width, 4)) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.blocks(x))[:, 0])


class BertAttention(nn.Module):
    """Attention whose three sizes are attributes, and whose heads a mask reaches."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, width // heads
        self.all_head_size = self.num_attention_heads * self.attention_head_size
        self.query = nn.Linear(width, self.all_head_size)
        self.key = nn.Linear(width, self.all_head_size)
        self.value = nn.Linear(width, self.all_head_size)
        self.dropout = nn.Dropout(0.1)

    def split(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], self.num_attention_heads, self.attention_head_size)
        return x.view(shape).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)
        weights = self.dropout(torch.softmax(scores + mask, -1))
        x = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return x.view((*x.shape[:-2], self.all_head_size))


class BertLayer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention, self.dense = BertAttention(width, 4), nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.intermediate, self.output = nn.Linear(width, 64), nn.Linear(64, width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = self.norm1(x + self.dense(self.attention(x, mask)))
        return self.norm2(x + self.output(F.gelu(self.intermediate(x))))


class Bert(nn.Module):
    """Three embeddings summed, layers that normalise last, a pooler over the first token."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(50, width), nn.Embedding(8, width)
        self.types, self.norm = nn.Embedding(2, width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(BertLayer(width) for _ in range(2))
        self.pooler, self.classifier = nn.Linear(width, width), nn.Linear(width, 5)
        self.register_buffer("position_ids", torch.arange(8)[None], persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        positions = self.positions(self.position_ids[:, : input_ids.shape[1]])
        x = self.words(input_ids) + positions + self.types(torch.zeros_like(input_ids))
        mask = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -10000.0
        x = self.norm(x)
        for layer in self.layers:
            x = layer(x, mask)
        return {"logits": self.classifier(torch.tanh(self.pooler(x[:, 0])))}


class TorchEncoder(nn.Module):
    """PyTorch's own encoder over vectors."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.embed = nn.Linear(6, 32)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.hidden, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.embed(x)).mean(1)
        return self.head(F.relu(self.hidden(x)))


class CrossAttention(nn.Module):
    """Learned queries that look at an image's features; class and place of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.project = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1)
        self.queries = nn.Parameter(torch.randn(3, 32))
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm, self.mlp = nn.LayerNorm(32), Mlp(32)
        self.classes, self.places = nn.Linear(32, 5), nn.Linear(32, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        memory = self.project(F.relu(self.stem(image))).flatten(2).transpose(1, 2)
        x = self.queries.expand(image.shape[0], -1, -1)
        x = x + self.cross(x, memory, memory, need_weights=False)[0]
        x = x + self.mlp(self.norm(x))
        return self.classes(x), torch.sigmoid(self.places(x))


class LanguageModel(nn.Module):
    """A causal block; the output layer's weight is the embedding's."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(50, width), nn.Embedding(8, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp, self.head = Mlp(width), nn.Linear(width, 50, bias=False)
        self.head.weight = self.embed.weight
        self.width, self.heads = width, 4
        self.register_buffer("causal", torch.ones(8, 8).tril().bool()[None, None])

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        x = self.embed(tokens) + self.positions.weight[:length]
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.query(self.norm1(x)).split(self.width, 2)
        )
        scores = q @ k.transpose(-2, -1) / (self.width // self.heads) ** 0.5
        scores = scores.masked_fill(~self.causal[:, :, :length, :length], -1e4)
        x = x + self.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        x = x + self.mlp(self.norm2(x))
        return self.head(x)


class Tagger(nn.Module):
    """Convolutions before a recurrent layer in both directions, two heads after it."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv1d(6, 24, 3, padding=1), nn.Conv1d(24, 16, 3, padding=1)
        self.rnn = kind(16, 16, batch_first=True, bidirectional=True)
        self.hidden, self.tags = nn.Linear(32, 24), nn.Linear(24, 5)
        self.last, self.score = nn.Linear(32, 16), nn.Linear(16, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.conv2(F.relu(self.conv1(x.transpose(1, 2)))).transpose(1, 2)
        x, _ = self.rnn(x)
        tags = self.tags(F.relu(self.hidden(x)))
        return tags, self.score(F.relu(self.last(x[:, -1])))


TOKENS = "tokens"

SEQUENCES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "vit_fused": (lambda: Vit(FusedAttention), (2, 3, 16, 16)),
    "vit_head_dim": (lambda: Vit(HeadDimAttention), (2, 3, 16, 16)),
    "vit_separate": (lambda: Vit(SeparateAttention), (2, 3, 16, 16)),
    "bert": (Bert, "masked tokens"),
    "torch_encoder": (TorchEncoder, (2, 5, 6)),
    "cross_attention": (CrossAttention, (2, 3, 16, 16)),
    "language_model": (LanguageModel, TOKENS),
    "lstm_heads": (lambda: Tagger(nn.LSTM), (2, 4, 6)),
    "gru_heads": (lambda: Tagger(nn.GRU), (2, 4, 6)),
}
