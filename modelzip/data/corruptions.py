"""What happens to images on their way to a model: coding, fewer bits, noise, blur, other light."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor
from torch.utils.data import Dataset, Subset

from modelzip.core import checks
from modelzip.data.base import Normalised
from modelzip.errors import DataError, MissingExtraError, SettingError

_SLACK = 0.01  # of [0, 1], for the rounding of mean and std
Apply = TypeVar("Apply")


@dataclass(frozen=True)
class Kind(Generic[Apply]):
    """A corruption: its function of (images or text, level, generator), and the levels it takes."""

    apply: Apply
    low: float
    high: float
    whole: bool
    level: str


@dataclass(frozen=True)
class PixelScale:
    """From a model's inputs [N, C, H, W] to pixels in [0, 1], and back."""

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def pixels(self, inputs: Any) -> Tensor:
        """The pixels of `inputs`; DataError for what are no images, or not of this scale."""
        if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim != 4:
            raise DataError(
                f"corruptions are for images, float N x C x H x W, got {_described(inputs)}"
            )
        found = inputs * self._of(self.std) + self._of(self.mean) if self.mean else inputs
        low, high = float(found.min()), float(found.max())
        if low < -_SLACK or high > 1 + _SLACK:
            raise DataError(
                f"pixels must be in [0, 1], got {low:.3g} to {high:.3g}; where a dataset of your "
                "own normalises, let it derive from modelzip.data.Normalised, with mean and std"
            )
        return found.clamp(0, 1)

    def inputs(self, pixels: Tensor) -> Tensor:
        """What the model takes for `pixels`."""
        return (pixels - self._of(self.mean)) / self._of(self.std) if self.mean else pixels

    @staticmethod
    def _of(values: tuple[float, ...]) -> Tensor:
        return torch.tensor(values).view(-1, 1, 1)


def scale_of(dataset: Dataset[Any]) -> PixelScale:
    """How `dataset` normalises, as it says itself; not at all where it does not say.

    >>> from modelzip.data import digits
    >>> scale_of(digits().test)
    PixelScale(mean=(), std=())
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if isinstance(dataset, Normalised):
        return PixelScale(dataset.mean, dataset.std)
    return PixelScale()


def corrupt(images: Tensor, kind: str, level: float, generator: Generator) -> Tensor:
    """`images`, float32 [N, C, H, W] in [0, 1], corrupted and in that range again.

    Kinds and severities follow Hendrycks & Dietterich 2019, https://arxiv.org/abs/1903.12261.

    Args:
        kind: a name in `KINDS`.
        level: what its `level` there says.
        generator: of the noise.

    Raises:
        SettingError: no such kind or level.
        DataError: JPEG and WebP take 1 or 3 channels.
        MissingExtraError: and need Pillow.

    >>> corrupt(torch.full((1, 1, 1, 2), 0.5), "brightness", 0.7, torch.Generator()).tolist()
    [[[[1.0, 1.0]]]]
    """
    check_level(kind, level)
    return KINDS[kind].apply(images, level, generator)


def check_level(
    kind: str, level: object, *, where: str = "", kinds: Mapping[str, Kind[Any]] | None = None
) -> float:
    """`level` if corruption `kind` of `kinds` has it, by default of images; `where` is its name."""
    known = KINDS if kinds is None else kinds
    found = known[checks.choice("corruption", kind, known)]
    name = f"{where or kind}: {found.level}"
    fits = isinstance(level, int if found.whole else (int, float)) and not isinstance(level, bool)
    if not fits or not found.low <= float(level) <= found.high:  # type: ignore[arg-type]
        what = "an integer" if found.whole else "a number"
        raise SettingError(
            f"{name} must be {what} from {found.low:g} to {found.high:g}, got {level!r}"
        )
    return level  # type: ignore[return-value]


def check_ranges(name: str, ranges: object) -> dict[str, tuple[float, float]]:
    """A mapping from corruptions to the levels, [low, high], that are drawn between.

    >>> check_ranges("augment", {"jpeg": [50, 95]})
    {'jpeg': (50, 95)}
    """
    if not isinstance(ranges, Mapping) or not ranges:
        raise SettingError(f"{name} must be a mapping such as {{jpeg: [50, 95]}}, got {ranges!r}")
    found = {}
    for kind, pair in ranges.items():
        checks.choice(name, kind, KINDS)
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise SettingError(f"{name}: {kind} must be two levels, [low, high], got {pair!r}")
        low, high = (check_level(kind, level, where=f"{name}: {kind}") for level in pair)
        if low > high:
            raise SettingError(f"{name}: {kind} must be [low, high], got {list(pair)}")
        found[kind] = (low, high)
    return found


def _coded(format_: str) -> Callable[[Tensor, float, Generator], Tensor]:
    """Each image written as a file of that format and read again."""

    def apply(images: Tensor, quality: float, _: Generator) -> Tensor:
        try:
            import PIL.Image
        except ImportError as error:
            raise MissingExtraError(
                "Pillow", extra="images", purpose=f"{format_} images"
            ) from error
        if images.shape[1] not in (1, 3):
            raise DataError(f"{format_} takes 1 or 3 channels, got {images.shape[1]}")
        mode = "L" if images.shape[1] == 1 else "RGB"
        coded = []
        for image in _bytes(images).permute(0, 2, 3, 1).numpy():
            buffer = io.BytesIO()
            pixels = image[..., 0] if mode == "L" else np.ascontiguousarray(image)
            PIL.Image.fromarray(pixels).save(buffer, format_, quality=int(quality))
            with PIL.Image.open(buffer) as read:
                coded.append(np.asarray(read.convert(mode)).reshape(image.shape))
        return torch.from_numpy(np.stack(coded)).permute(0, 3, 1, 2).float().div_(255)

    return apply


def _bits(images: Tensor, bits: float, _: Generator) -> Tensor:
    width = 1 << (8 - int(bits))
    # the mean of the 8-bit values that share their upper bits
    return ((_bytes(images) // width) * float(width) + (width - 1) / 2) / 255


def _gaussian(images: Tensor, deviation: float, generator: Generator) -> Tensor:
    noise = torch.randn(images.shape, generator=generator)
    return (images + deviation * noise).clamp_(0, 1)


def _impulse(images: Tensor, share: float, generator: Generator) -> Tensor:
    drawn = torch.rand(images.shape, generator=generator)
    black_or_white = (drawn < share / 2).to(images.dtype)
    return torch.where(drawn < share, black_or_white, images)


def _blur(images: Tensor, deviation: float, _: Generator) -> Tensor:
    reach = math.ceil(3 * deviation)
    kernel = torch.exp(-torch.arange(-reach, reach + 1).float().square() / (2 * deviation**2))
    kernel = (kernel / kernel.sum()).repeat(images.shape[1], 1, 1, 1)
    padded = F.pad(images, [reach] * 4, mode="replicate")
    across = F.conv2d(padded, kernel, groups=images.shape[1])
    blurred: Tensor = F.conv2d(across, kernel.transpose(2, 3), groups=images.shape[1])
    return blurred.clamp_(0, 1)


def _brightness(images: Tensor, added: float, _: Generator) -> Tensor:
    return (images + added).clamp_(0, 1)


def _bytes(images: Tensor) -> Tensor:
    return images.mul(255).round_().to(torch.uint8)


def _described(inputs: Any) -> str:
    if isinstance(inputs, Tensor):
        return f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
    return f"a {type(inputs).__name__}"


KINDS: dict[str, Kind[Callable[[Tensor, float, Generator], Tensor]]] = {
    "jpeg": Kind(_coded("JPEG"), 1, 100, True, "quality"),
    "webp": Kind(_coded("WEBP"), 1, 100, True, "quality"),
    "bits": Kind(_bits, 1, 8, True, "bits a channel"),
    "gaussian": Kind(_gaussian, 1e-6, 1, False, "standard deviation"),
    "impulse": Kind(_impulse, 1e-6, 1, False, "share of values that turn black or white"),
    "blur": Kind(_blur, 0.1, 100, False, "standard deviation in pixels"),
    "brightness": Kind(_brightness, -1, 1, False, "what is added"),
}
