"""Models whose path depends on values, or that fx cannot trace symbolically for other reasons."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.architectures.traits import conv_bn, head


class Branch(nn.Module):
    """One of two layers runs, by the values of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = conv_bn(3, 16), conv_bn(16, 24), conv_bn(16, 24)
        self.last, self.head = conv_bn(24, 32), head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.a(x) if x.mean() > -1e9 else self.b(x)
        return self.head(self.last(x))


class Steps(nn.Module):
    """A recurrent layer by hand: a Python loop over time, and a mask that may be left out."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6 + 16, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        assert x.shape[1] > 1, "one step is no sequence"
        state = torch.zeros(len(x), 16)
        for t in range(x.shape[1]):
            state = F.relu(self.inner(torch.cat([x[:, t], state], 1)))
            if mask is not None:
                state = state * mask[:, t : t + 1]
        return self.head(state)


@dataclass
class Answer(dict[str, Any]):
    """What a model may return: a dict that is a dataclass too."""

    logits: Tensor
    loss: Tensor | None = None

    def __post_init__(self) -> None:
        self.update({k: v for k, v in vars(self).items() if v is not None})


class Answering(nn.Module):
    """Keywords, a check of values, stacked features, and an output of a class of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.more, self.head = conv_bn(3, 16), conv_bn(16, 16), nn.Linear(16, 5)

    def forward(self, pixels: Tensor, *, labels: Tensor | None = None, **extra: Any) -> Answer:
        if not isinstance(pixels, Tensor) or bool(torch.isnan(pixels).any()):
            raise ValueError("pixels must be a tensor without NaN")
        x = self.more(self.stem(pixels))
        logits = self.head(sum(row.mean(-1) for row in x.unbind(2)))
        return Answer(logits, None if labels is None else F.cross_entropy(logits, labels))


class Collected(nn.Module):
    """Any number of images, in a loop, and assignment to a slice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv_bn(3, 16), head(16)

    def forward(self, *images: Tensor) -> Tensor:
        total = torch.zeros(images[0].size(0), 16, *images[0].shape[2:])
        for image in images:
            total[:, :, 1:] += self.stem(image)[:, :, 1:]
        return self.head(total)
