"""A network that a generator is trained with, and the data that the generator itself is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from modelzip.core.running import evaluating
from modelzip.data.base import Splits

_CHUNK = 500


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """Codes [N, latent] and an image [N, 1, H, W] for each."""

    codes: Tensor
    images: Tensor

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """All of them in order, `size` at a time."""
        yield from zip(torch.split(self.codes, size), torch.split(self.images, size), strict=True)


@dataclass(frozen=True, kw_only=True, eq=False)
class Given:
    """What a generator is given, and how it is judged.

    Attributes:
        train, validation, test: the three splits.
        loss: of images made and wanted, a scalar; what a fine-tuning minimises.
        scores: of all images made and wanted of a split, figures by name, the better the lower;
            the first is the one to require and to choose by.
        samples: 64 codes to draw a sheet of.
        paired: whether the image of a code is the one to make of it.
    """

    train: Pairs
    validation: Pairs
    test: Pairs
    loss: Callable[[Tensor, Tensor], Tensor]
    scores: Callable[[Tensor, Tensor], Mapping[str, float]]
    samples: Tensor
    paired: bool


class Companion(nn.Module):
    """An encoder, a discriminator: trained with the model, and left behind.

    What a recipe builds by `companion: {build: "module:function"}`.
    """

    def check(self, model: nn.Module) -> None:
        """SettingError where `model` is not one that this companion trains."""
        raise NotImplementedError

    def given(self, data: Splits) -> Given:
        """What the model is given, made of `data`; before training too, to rehearse the steps."""
        raise NotImplementedError

    def train_with(
        self, model: nn.Module, data: Splits, *, batch_size: int, seed: int, progress: bool
    ) -> None:
        """Train `model` and this network together, in place; both are left in eval mode."""
        raise NotImplementedError


def made(model: nn.Module, codes: Tensor) -> Tensor:
    """The images of all `codes`, in eval mode and without gradients.

    >>> made(nn.Identity(), torch.zeros(3, 1, 2, 2)).shape
    torch.Size([3, 1, 2, 2])
    """
    with evaluating(model):
        return torch.cat([model(part) for part in torch.split(codes, _CHUNK)])
