"""Small convolutional nets for images."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from modelzip.core import checks


def digits_cnn(*, width: int = 16, classes: int = 10) -> nn.Module:
    """A CNN for one-channel images such as the 8 x 8 digits: [N, 1, H, W] to [N, classes].

    >>> import torch
    >>> digits_cnn()(torch.zeros(2, 1, 8, 8)).shape
    torch.Size([2, 10])
    """
    checks.integer("width", width, low=1)
    return nn.Sequential(
        *_conv(1, width),
        *_conv(width, 2 * width, stride=2),
        *_conv(2 * width, 4 * width, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4 * width, classes),
    )


def _conv(inputs: int, outputs: int, *, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions and an option-A shortcut: subsampled, padded with zero channels."""

    def __init__(self, inputs: int, outputs: int, *, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.padding = (outputs - inputs) // 2  # zero channels on either side

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.padding or self.stride > 1:
            x = F.pad(
                x[:, :, :: self.stride, :: self.stride],
                [0, 0, 0, 0, self.padding, self.padding],
            )
        return F.relu(out + x)


class ResNet(nn.Module):
    """He et al. 2016's ResNet for 32 x 32 images, https://arxiv.org/abs/1512.03385.

    [N, 3, 32, 32] to [N, classes]; three stages of 16, 32 and 64 channels, `blocks` blocks each.
    """

    def __init__(self, *, blocks: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks=blocks, stride=1)
        self.layer2 = self._stage(16, 32, blocks=blocks, stride=2)
        self.layer3 = self._stage(32, 64, blocks=blocks, stride=2)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(inputs: int, outputs: int, *, blocks: int, stride: int) -> nn.Sequential:
        first = ResidualBlock(inputs, outputs, stride=stride)
        rest = [ResidualBlock(outputs, outputs, stride=1) for _ in range(blocks - 1)]
        return nn.Sequential(first, *rest)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        pooled = F.adaptive_avg_pool2d(out, 1).flatten(1)
        return self.linear(pooled)  # type: ignore[no-any-return]


def resnet20(*, classes: int = 10) -> ResNet:
    """ResNet-20.

    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return ResNet(blocks=3, classes=classes)


def resnet56(*, classes: int = 10) -> ResNet:
    """ResNet-56.

    >>> sum(p.numel() for p in resnet56().parameters())
    853018
    """
    return ResNet(blocks=9, classes=classes)


def depthwise_cnn(*, width: int = 32, channels: int = 3, classes: int = 10) -> nn.Module:
    """Depthwise-separable convolutions for small images: [N, channels, H, W] to [N, classes].

    Howard et al. 2017 (MobileNet), https://arxiv.org/abs/1704.04861.

    >>> import torch
    >>> depthwise_cnn(width=8)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    checks.integer("width", width, low=1)
    plan = [(width, 2 * width, 1), (2 * width, 4 * width, 2), (4 * width, 4 * width, 1)]
    plan += [(4 * width, 8 * width, 2), (8 * width, 8 * width, 1)]
    layers = _conv(channels, width)
    for inputs, outputs, stride in plan:
        layers += _conv(inputs, inputs, stride=stride, groups=inputs)
        pointwise = nn.Conv2d(inputs, outputs, 1, bias=False)
        layers += [pointwise, nn.BatchNorm2d(outputs), nn.ReLU()]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, classes)]
    return nn.Sequential(*layers, *head)
