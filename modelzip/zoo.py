"""Small models to compress, and building any model from "module:function" and a weights file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from modelzip.core import checks, imports
from modelzip.errors import ModelError, SettingError

_SHOWN = 300  # characters of the keys that do not fit


def build(
    target: str,
    /,
    *,
    weights: str | Path | None = None,
    beside: str | Path | None = None,
    **arguments: Any,
) -> nn.Module:
    """The model that the function `target`, "module:function", returns for `arguments`.

    Args:
        weights: a .safetensors file, or a .pt or .pth file of plain tensors (loaded with
            `weights_only=True`, so no code in it runs); every key must fit.
        beside: a folder in which the module is looked for first, such as a recipe's own.

    Raises:
        SettingError: no such module, function, argument or file, or the weights do not fit.
        ModelError: a weight is NaN or infinite; names it.

    >>> type(build("modelzip.zoo:digits_cnn", width=8)).__name__
    'Sequential'
    >>> build("modelzip.zoo:encoder", heds=2)
    Traceback (most recent call last):
    modelzip.errors.SettingError: modelzip.zoo:encoder has no argument 'heds'; did you mean 'heads'?
    """
    model = imports.call(target, arguments, beside=beside)
    if not isinstance(model, nn.Module):
        raise SettingError(f"{target} returned {type(model).__name__}; it must return a Module")
    if weights is not None:
        load_weights(model, weights)
    refuse_nan(model)
    return model


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill `model` from a .safetensors, .pt or .pth file; SettingError where keys do not fit."""
    path = Path(path)
    if not path.is_file():
        raise SettingError(f"there is no weights file {path}")
    state = _read_state(path)
    try:
        model.load_state_dict(state, strict=True)
    except RuntimeError as error:  # torch lists missing, unexpected and misshapen keys, a line each
        reasons = " ".join(line.strip() for line in str(error).splitlines()[1:])
        raise SettingError(f"{path} does not fit the model: {reasons:.{_SHOWN}}") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise SettingError(f"{path} is not a readable safetensors file: {error}") from error
    if path.suffix not in (".pt", ".pth"):
        raise SettingError(f"weights must be .safetensors, .pt or .pth, got {path.name}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # its unpickler fails on damaged files with whatever comes
        raise SettingError(
            f"{path} holds something other than tensors, or is damaged; only a state dict is "
            "loaded: torch.save(model.state_dict(), ...)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise SettingError(f"{path} is not a state dict: names and tensors alone")
    return state


def refuse_nan(model: nn.Module) -> None:
    """ModelError naming the first parameter or buffer that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ModelError(
                f"{name} of {type(model).__name__} holds NaN or infinity; retrain the model or "
                "mend its weights file"
            )


def digits_cnn(*, width: int = 16, classes: int = 10) -> nn.Module:
    """A CNN for one-channel images such as the 8 x 8 digits: [N, 1, H, W] to [N, classes].

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


class Attention(nn.Module):
    """Multi-head self-attention over [N, length, width], written out."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        return self.out(mixed.transpose(1, 2).flatten(-2))  # type: ignore[no-any-return]


class EncoderLayer(nn.Module):
    """Attention and a feed-forward net, each normalised first and added to its input."""

    def __init__(self, width: int, *, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads=heads)
        self.norm2 = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mixed = x + self.attention(self.norm1(x))
        return mixed + self.down(F.gelu(self.up(self.norm2(mixed))))  # type: ignore[no-any-return]


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
    if width % heads:
        raise SettingError(f"width must be a multiple of heads, got width={width}, heads={heads}")
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
