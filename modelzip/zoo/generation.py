"""Small networks between images of 28 x 28 pixels and the codes that stand for them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modelzip.core import checks
from modelzip.errors import SettingError

_SIDE = 28


class ImageGenerator(nn.Module):
    """Codes [N, latent] to grey images [N, 1, 28, 28] in [0, 1]; see `image_generator`."""

    def __init__(self, *, latent: int, width: int) -> None:
        super().__init__()
        small = _SIDE // 4
        self.latent = latent
        self.layers = nn.Sequential(
            nn.Linear(latent, 2 * width * small * small),
            nn.ReLU(),
            nn.Unflatten(1, (-1, small, small)),
            nn.Upsample(scale_factor=2),
            *_convolution(2 * width, width),
            nn.Upsample(scale_factor=2),
            *_convolution(width, width // 2),
            nn.Conv2d(width // 2, 1, 3, padding=1),
        )

    def logits(self, codes: Tensor) -> Tensor:
        """What the sigmoid makes pixels of: [N, 1, 28, 28]."""
        return self.layers(codes)  # type: ignore[no-any-return]

    def forward(self, codes: Tensor) -> Tensor:
        return torch.sigmoid(self.logits(codes))


def image_generator(*, latent: int = 16, width: int = 32) -> ImageGenerator:
    """A decoder or generator: codes [N, latent] to grey images [N, 1, 28, 28] in [0, 1].

    Nearest-neighbour upsampling and 3 x 3 convolutions, which leave no checkerboard, and all of
    which can be integers. Odena et al. 2016, https://doi.org/10.23915/distill.00003.

    Args:
        width: channels at 14 x 14 pixels, even; twice as many before, half as many after.

    >>> image_generator(width=8)(torch.zeros(2, 16)).shape
    torch.Size([2, 1, 28, 28])
    """
    checks.integer("latent", latent, low=1)
    _check_width(width)
    return ImageGenerator(latent=latent, width=width)


def image_encoder(*, outputs: int, width: int = 32) -> nn.Sequential:
    """Grey images [N, 1, 28, 28] to [N, outputs], by two convolutions of stride 2 and one more.

    Without batch statistics, so that an image's outputs are its own, in training too.

    >>> image_encoder(outputs=32, width=8)(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 32])
    """
    checks.integer("outputs", outputs, low=1)
    _check_width(width)
    return nn.Sequential(
        nn.Conv2d(1, width // 2, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width // 2, width, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * width * (_SIDE // 4) ** 2, outputs),
    )


def _check_width(width: int) -> None:
    if checks.integer("width", width, low=2) % 2:
        raise SettingError(f"width must be even, as half of it is a layer's too, got {width}")


def _convolution(inputs: int, outputs: int) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
