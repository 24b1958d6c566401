"""Convolutional networks, as small as they can be and still be what they are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from tests.architectures.traits import conv_bn, head


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up to four times the width, beside a projection or nothing."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3, self.relu = nn.BatchNorm2d(4 * width), nn.ReLU(inplace=True)
        self.downsample = None
        if stride > 1 or inputs != 4 * width:
            conv = nn.Conv2d(inputs, 4 * width, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, nn.BatchNorm2d(4 * width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


def bottleneck() -> nn.Module:
    blocks = nn.Sequential(Bottleneck(8, 8), Bottleneck(32, 8), Bottleneck(32, 16, 2))
    return nn.Sequential(conv_bn(3, 8, 7, stride=2), nn.MaxPool2d(3, 1, 1), blocks, head(64))


class Vgg(nn.Module):
    """Convolutions and pooling, then a large head over the flattened map."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for width in (8, 16, 0, 32, 32, 0):
            if width:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features, self.pool = nn.Sequential(*layers), nn.AdaptiveAvgPool2d(2)
        self.classifier = nn.Sequential(
            *(nn.Linear(32 * 4, 64), nn.ReLU(), nn.Dropout()),
            *(nn.Linear(64, 32), nn.ReLU(), nn.Dropout(), nn.Linear(32, 5)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.pool(self.features(x)), 1))


class DenseLayer(nn.Module):
    """Reads the list of all features so far, and normalises what it concatenates."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 16, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(16), nn.Conv2d(16, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        x = self.conv1(F.relu(self.norm1(torch.cat(features, 1))))
        return self.conv2(F.relu(self.norm2(x)))


class DenseNet(nn.Module):
    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        self.stem = conv_bn(3, 16)
        self.block1 = nn.ModuleList(DenseLayer(16 + i * growth, growth) for i in range(3))
        self.transition = nn.Sequential(
            nn.BatchNorm2d(40), nn.ReLU(), nn.Conv2d(40, 16, 1, bias=False), nn.AvgPool2d(2)
        )
        self.block2 = nn.ModuleList(DenseLayer(16 + i * growth, growth) for i in range(2))
        self.norm, self.head = nn.BatchNorm2d(32), head(32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.transition(self._block(self.block1, self.stem(x)))
        return self.head(F.relu(self.norm(self._block(self.block2, x))))

    def _block(self, layers: nn.ModuleList, x: Tensor) -> Tensor:
        features = [x]
        for layer in layers:
            features.append(layer(features))
        return torch.cat(features, 1)


class Excite(nn.Module):
    """Squeeze and excitation with 1x1 convolutions."""

    def __init__(self, width: int, inner: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(width, inner, 1), nn.Conv2d(inner, width, 1)
        self.pool, self.gate = nn.AdaptiveAvgPool2d(1), gate()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(self.fc2(F.relu(self.fc1(self.pool(x)))))


class Inverted(nn.Module):
    """Expand, filter by depth, excite, project without activation; a residual where it fits."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int = 1,
        kernel: int = 3,
        act: type[nn.Module] = nn.ReLU6,
        gate: type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        wide = 4 * inputs
        filters = nn.Conv2d(wide, wide, kernel, stride, kernel // 2, groups=wide, bias=False)
        self.body = nn.Sequential(
            *(nn.Conv2d(inputs, wide, 1, bias=False), nn.BatchNorm2d(wide), act()),
            *(filters, nn.BatchNorm2d(wide), act()),
            nn.Identity() if gate is None else Excite(wide, 8, gate),
            *(nn.Conv2d(wide, outputs, 1, bias=False), nn.BatchNorm2d(outputs)),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.residual else self.body(x)


def mobile(act: type[nn.Module], gate: type[nn.Module] | None, kernel: int = 3) -> nn.Module:
    """MobileNetV2 with ReLU6, V3 with hard-swish and hard-sigmoid, EfficientNet with SiLU."""
    settings: dict[str, Any] = {"act": act, "gate": gate, "kernel": kernel}
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act()),
        Inverted(8, 8, **settings),
        Inverted(8, 16, stride=2, **settings),
        Inverted(16, 16, **settings),
        *(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), act()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16), act(), nn.Linear(16, 5)),
    )


class UNet(nn.Module):
    """Down twice, up twice by transposed convolution, each level concatenated with its twin."""

    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.middle = conv_bn(3, 8), conv_bn(8, 16), conv_bn(16, 32)
        self.up2, self.join2 = nn.ConvTranspose2d(32, 16, 2, 2), conv_bn(32, 16)
        self.up1, self.join1 = nn.ConvTranspose2d(16, 8, 2, 2), conv_bn(16, 8)
        self.out = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.middle(F.max_pool2d(two, 2))
        x = self.join2(torch.cat([self.up2(x), two], 1))
        return self.out(self.join1(torch.cat([one, self.up1(x)], 1)))


class Mixed(nn.Module):
    """Inception: four branches of different kernels, one of them pooled, side by side."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.one, self.pooled = conv_bn(inputs, 8, 1), conv_bn(inputs, 8, 1)
        self.three = nn.Sequential(conv_bn(inputs, 8, 1), conv_bn(8, 16))
        self.five = nn.Sequential(conv_bn(inputs, 8, 1), conv_bn(8, 8, 5))

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pooled(F.avg_pool2d(x, 3, 1, 1))
        return torch.cat([self.one(x), self.three(x), self.five(x), pooled], 1)


def inception() -> nn.Module:
    return nn.Sequential(conv_bn(3, 16), Mixed(16), nn.MaxPool2d(2), Mixed(40), head(40))


class ConvNext(nn.Module):
    """A 7x7 depthwise convolution, LayerNorm over channels last, an MLP, and a layer scale."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width, 1, 1), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        return x + self.scale * y


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def convnext() -> nn.Module:
    stem = nn.Sequential(nn.Conv2d(3, 8, 2, 2), ChannelNorm(8))
    down = nn.Sequential(ChannelNorm(8), nn.Conv2d(8, 16, 2, 2))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 5))
    return nn.Sequential(stem, ConvNext(8), down, ConvNext(16), pool)


class Dilated(nn.Module):
    """A residual of 1-D convolutions with a hole, and a gate that is half of the channels."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.filters = nn.Conv1d(width, 2 * width, 3, padding=dilation, dilation=dilation)
        self.norm, self.mix = nn.BatchNorm1d(2 * width), nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(F.glu(self.norm(self.filters(x)), dim=1))


def audio() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(1, 16, 9, 4, 4), nn.BatchNorm1d(16), nn.ReLU(), nn.MaxPool1d(2)),
        *(Dilated(16, 1), Dilated(16, 2), nn.Conv1d(16, 32, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(32, 5)),
    )


def video() -> nn.Module:
    """3-D convolutions, the second split into one over space and one over time."""
    return nn.Sequential(
        *(nn.Conv3d(3, 16, 3, padding=1), nn.BatchNorm3d(16), nn.ReLU(), nn.MaxPool3d((1, 2, 2))),
        *(nn.Conv3d(16, 24, (1, 3, 3), padding=(0, 1, 1)), nn.ReLU()),
        *(nn.Conv3d(24, 16, (3, 1, 1), padding=(1, 0, 0)), nn.BatchNorm3d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(16, 5)),
    )


def weight_norm() -> nn.Module:
    """A vocoder's convolutions: some weights computed from a norm and a direction."""
    return nn.Sequential(
        *(nn.Conv1d(1, 16, 5, padding=2), nn.LeakyReLU(0.1), nn.Conv1d(16, 32, 3, 2, 1), nn.ReLU()),
        *(parametrizations.weight_norm(nn.Conv1d(32, 16, 3, padding=1)), nn.LeakyReLU(0.1)),
        *(nn.Conv1d(16, 24, 3, padding=1), nn.ReLU(), nn.Conv1d(24, 1, 3, padding=1), nn.Tanh()),
    )


class Detector(nn.Module):
    """Two scales joined by a lateral sum; heads shared by both; a dict with a tuple in it."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.coarse = conv_bn(3, 16), conv_bn(16, 32, stride=2)
        self.lateral1, self.lateral2 = nn.Conv2d(16, 16, 1), nn.Conv2d(32, 16, 1)
        self.tower = conv_bn(16, 16)
        self.classes, self.boxes = nn.Conv2d(16, 3, 1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Any]:
        fine = self.fine(x)
        top = self.lateral2(self.coarse(fine))
        side = self.lateral1(fine) + F.interpolate(top, scale_factor=2.0, mode="nearest")
        levels = [self.tower(side), self.tower(top)]
        boxes = [self.boxes(level).flatten(2) for level in levels]
        return {"classes": tuple(map(self.classes, levels)), "boxes": torch.cat(boxes, 2)}


class Autoencoder(nn.Module):
    """The decoder's weights are the encoder's, transposed; a scale and a shift are its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.code = nn.Linear(12, 16), nn.Linear(16, 8)
        self.scale, self.shift = nn.Parameter(torch.rand(12)), nn.Parameter(torch.rand(12))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.code(F.relu(self.first(x))))
        x = F.linear(F.relu(F.linear(x, self.code.weight.t())), self.first.weight.t())
        return x * self.scale + self.shift


IMAGE = (2, 3, 16, 16)

IMAGES: dict[str, tuple[Callable[[], nn.Module], Any]] = {
    "bottleneck": (bottleneck, IMAGE),
    "vgg": (Vgg, IMAGE),
    "densenet": (DenseNet, IMAGE),
    "mobilenet_v2": (lambda: mobile(nn.ReLU6, None), IMAGE),
    "mobilenet_v3": (lambda: mobile(nn.Hardswish, nn.Hardsigmoid, 5), IMAGE),
    "efficientnet": (lambda: mobile(nn.SiLU, nn.Sigmoid), IMAGE),
    "unet": (UNet, IMAGE),
    "inception": (inception, IMAGE),
    "convnext": (convnext, IMAGE),
    "audio": (audio, (2, 1, 64)),
    "video": (video, (2, 3, 4, 8, 8)),
    "weight_norm": (weight_norm, (2, 1, 32)),
    "detector": (Detector, IMAGE),
    "autoencoder": (Autoencoder, (2, 12)),
}
