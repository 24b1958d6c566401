"""Images side by side in one PNG file."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modelzip.errors import MissingExtraError, OutputError

_SCALE = 2  # pixels of the file for one of an image, a side


def check_pillow() -> None:
    """MissingExtraError where no PNG can be written."""
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        purpose = "sheets of samples"
        raise MissingExtraError("Pillow", extra="images", purpose=purpose) from error


def tile(images: Tensor) -> NDArray[np.uint8]:
    """Grey images [N, 1, H, W] in [0, 1] as one, row by row; places left over are black.

    >>> import torch
    >>> tile(torch.ones(3, 1, 2, 2)).shape
    (4, 4)
    """
    count, _, height, width = images.shape
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    sheet = np.zeros((rows * columns, height, width), np.uint8)
    sheet[:count] = (255 * images[:, 0]).round().byte().numpy()
    shaped = sheet.reshape(rows, columns, height, width).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(shaped.reshape(rows * height, columns * width))


def write_sheet(images: Tensor, path: Path) -> None:
    """Write `tile(images)`, twice as large, to the PNG file `path`."""
    check_pillow()
    import PIL.Image

    sheet = tile(images).repeat(_SCALE, axis=0).repeat(_SCALE, axis=1)
    try:
        PIL.Image.fromarray(sheet).save(path, "PNG")
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
