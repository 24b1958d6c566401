"""Models of one trait each: a residual, a depthwise convolution, a tied weight, and so on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations


def conv_bn(inputs: int, outputs: int, kernel: int = 3, **settings: Any) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **settings)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def head(channels: int) -> nn.Sequential:
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5))


class Block(nn.Module):
    """A residual block; option A pads channels with zeros, option B projects them."""

    def __init__(self, inputs: int, outputs: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.padding = stride, (outputs - inputs) // 2
        self.project = (
            nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            if option == "B" and inputs != outputs
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.project is not None:
            x = self.project(x)
        elif self.padding:
            x = x[:, :, :: self.stride, :: self.stride]
            x = F.pad(x, (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(x + y)


def resnet(option: str) -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16), Block(16, 16, 1, option), Block(16, 32, 2, option), head(32)
    )


def depthwise() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16),
        conv_bn(16, 16, groups=16),
        conv_bn(16, 32, 1),
        conv_bn(32, 64, groups=32),  # two filters a channel
        conv_bn(64, 16, 1),
        head(16),
    )


class Dense(nn.Module):
    """Each layer reads all earlier ones, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm1, self.conv1 = nn.BatchNorm2d(16), nn.Conv2d(16, 8, 3, padding=1)
        self.norm2, self.conv2 = nn.BatchNorm2d(24), nn.Conv2d(24, 16, 3, padding=1)
        self.head = head(40)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat([x, self.conv1(F.relu(self.norm1(x)))], 1)
        x = torch.cat([x, self.conv2(F.relu(self.norm2(x)))], 1)
        return self.head(x)


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 32)
        self.reduce, self.expand = nn.Conv2d(32, 16, 1), nn.Conv2d(16, 32, 1)
        self.head = head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.expand(F.silu(self.reduce(F.adaptive_avg_pool2d(x, 1))))
        return self.head(x * torch.sigmoid(gate))


class SpatialGate(nn.Module):
    """One channel broadcast over all."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.head = conv_bn(3, 16), nn.Conv2d(16, 1, 1), head(16)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x * torch.sigmoid(self.gate(x)))


class Attention(nn.Module):
    """Self-attention by hand, its head count written in."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.o = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape

        def split(y: Tensor) -> Tensor:
            return y.view(batch, length, self.heads, -1).transpose(1, 2)

        q, k, v = split(self.q(x)), split(self.k(x)), split(self.v(x))
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.o((weights @ v).transpose(1, 2).reshape(batch, length, -1))


class Encoder(nn.Module):
    """A transformer over token numbers; `kind` chooses where its attention comes from."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 16)
        self.kind = kind
        if kind == "torch":
            self.attention: nn.Module = nn.MultiheadAttention(16, 4, batch_first=True)
        else:
            self.attention = Attention(16, 4)
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 64), nn.Linear(64, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        y = self.norm1(x)
        y = self.attention(y, y, y)[0] if self.kind == "torch" else self.attention(y)
        x = x + y
        x = x + self.down(F.gelu(self.up(self.norm2(x))))
        return self.head(x.mean(1))


class Shared(nn.Module):
    """One layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = conv_bn(3, 16), conv_bn(16, 16), head(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shared(self.shared(self.stem(x))))


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.wide, self.out = nn.Linear(16, 32), nn.Linear(32, 5)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.b(F.relu(self.a(F.relu(self.stem(x))))))
        return self.out(F.relu(self.wide(x)))


def grouped() -> nn.Module:
    return nn.Sequential(conv_bn(3, 32), conv_bn(32, 64, groups=8), conv_bn(64, 32, 1), head(32))


def flatten() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16),
        nn.MaxPool2d(2),
        conv_bn(16, 16),
        nn.Flatten(),
        nn.Linear(16 * 16, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    )


def transposed() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16),
        nn.ConvTranspose2d(16, 32, 2, 2),
        nn.PReLU(32),
        nn.InstanceNorm2d(32, affine=True),
        nn.ConvTranspose2d(32, 3, 2, 2),
    )


class Shuffle(nn.Module):
    """Channel shuffle: a reshape no dependency graph follows."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.mix = conv_bn(3, 16), nn.Conv2d(16, 16, 3, padding=1)
        self.last, self.head = conv_bn(16, 32), head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(self.stem(x))
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2)
        return self.head(self.last(x.reshape(batch, channels, height, width)))


class ShuffleUnit(nn.Module):
    """Half the channels pass, half are computed, then both are interleaved, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 16), conv_bn(8, 8), conv_bn(8, 8)
        self.last, self.head = conv_bn(16, 32), head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in (self.a, self.b):
            left, right = x.chunk(2, 1)
            x = torch.cat([left, branch(right)], 1)
            x = x.view(len(x), 2, 8, *x.shape[2:]).transpose(1, 2).reshape(x.shape)
        return self.head(self.last(x))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.LSTM | nn.GRU]) -> None:
        super().__init__()
        self.stem, self.more = nn.Linear(6, 32), nn.Linear(32, 16)
        self.rnn, self.head = kind(16, 16, 2, batch_first=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.more(F.relu(self.stem(x)))
        return self.head(self.rnn(x)[0][:, -1])


class TwoInputs(nn.Module):
    """An image and a vector; returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.pool = conv_bn(3, 16), nn.AdaptiveAvgPool2d(1)
        self.vector, self.head = nn.Linear(6, 16), nn.Linear(32, 5)

    def forward(self, image: Tensor, vector: Tensor | None = None) -> dict[str, Tensor]:
        x = self.pool(self.image(image)).flatten(1)
        y = F.relu(self.vector(vector))
        return {"logits": self.head(torch.cat([x, y], 1))}


class Gated(nn.Module):
    """One layer's halves, multiplied: channels i and i + 16 go together."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 32), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.up(x).chunk(2, 1)
        return self.down(a * torch.sigmoid(b))


class ChannelMean(nn.Module):
    """A mean over channels, which counts them: removing one is not masking it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = conv_bn(3, 16), conv_bn(16, 32), head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.wide(x - x.mean(1, keepdim=True)))


class Scaled(nn.Module):
    """A bare parameter along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = conv_bn(3, 16), conv_bn(16, 32), head(32)
        self.scale = nn.Parameter(torch.rand(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.stem(x) * self.scale))


class Unregistered(nn.Module):
    """Layers in a plain list: a copy of the model still runs the original's."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.wide, self.head = conv_bn(3, 16), conv_bn(16, 32), head(32)
        self.hidden = [nn.Conv2d(16, 16, 1)]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.wide(self.hidden[0](self.stem(x))))


def group_norm() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.ReLU(), conv_bn(16, 32), head(32)
    )


def zero_scale() -> nn.Module:
    """Option A with its last scales still at zero, which hides what the branches compute."""
    model = resnet("A")
    for module in model.modules():
        if isinstance(module, Block):
            nn.init.zeros_(module.bn2.weight)
    return model


def parametrized() -> nn.Module:
    model = nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 5)
    )
    parametrizations.weight_norm(model[0])
    return model
