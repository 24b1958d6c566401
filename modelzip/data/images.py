"""Image files, through Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from modelzip.data.base import Normalised
from modelzip.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "WEBP")
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".webp")
MAX_PIXELS = 2**26  # per image; more is a decompression bomb or a mistake


def open_image(file: Path | IO[bytes], *, where: str, formats: Sequence[str] = FORMATS) -> Image:
    """A decoded image; DataError naming `where` if damaged, too large, or of no known format."""
    try:
        import PIL.Image
    except ImportError as error:
        raise MissingExtraError("Pillow", extra="images", purpose="reading images") from error
    try:
        image = PIL.Image.open(file, formats=list(formats))
        with image:  # closes the file; the decoded image stays
            if image.width * image.height <= MAX_PIXELS:
                image.load()
                return image
    # Pillow raises SyntaxError for a broken PNG, and DecompressionBombError is none of the others
    except (OSError, ValueError, SyntaxError, PIL.Image.DecompressionBombError) as error:
        raise DataError(f"{where} is not a readable image: {error}") from error
    raise DataError(f"{where} has {image.width} x {image.height} pixels; the limit is {MAX_PIXELS}")


class ImageFiles(Normalised):
    """Image files read one by one: RGB, shorter side scaled to `size`, centre cut out, normalised.

    Items are (float32 [3, size, size], label).
    """

    def __init__(
        self,
        files: Sequence[tuple[Path, int]],
        *,
        size: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        self.files = tuple(files)
        self.size = size
        self.mean, self.std = tuple(mean), tuple(std)
        self._mean = torch.tensor(mean).view(3, 1, 1)
        self._std = torch.tensor(std).view(3, 1, 1)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.files[index]
        image = open_image(path, where=str(path)).convert("RGB")
        if image.size != (self.size, self.size):
            image = _centre(image, self.size)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float().div_(255)
        return (pixels - self._mean) / self._std, label


def _centre(image: Image, size: int) -> Image:
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height)).crop((left, top, left + size, top + size))


def class_folders(folder: Path) -> tuple[tuple[str, ...], list[tuple[Path, int]]]:
    """Class names, and (file, label) of every image, in the sub-folders of `folder`, sorted."""
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; images are looked for in its sub-folders")
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir()))
    files = [
        (path, label)
        for label, name in enumerate(names)
        for path in sorted((folder / name).rglob("*"))
        if path.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(f"{folder} holds no images in sub-folders, one for each class")
    return names, files
