"""One image as a PNG, WebP or JPEG file, through Pillow."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip.data.images import open_image
from modelzip.data.packed.form import PICTURES, Form
from modelzip.errors import ArchiveError, DataError, MissingExtraError

CODECS = PICTURES
Pixels = NDArray[Any]
_WEBP_EFFORT = 4  # of 0 to 6; 6 takes twice as long for one hundredth


def encode(image: Pixels, form: Form) -> bytes:
    """The file of an image of the form's shape. MissingExtraError without Pillow."""
    try:
        import PIL.Image
    except ImportError as error:
        purpose = f"codec {form.codec!r}"
        raise MissingExtraError("Pillow", extra="images", purpose=purpose) from error
    settings: dict[str, Any] = {}
    if form.codec == "webp":
        lossless = form.quality is None
        settings = {"lossless": lossless, "exact": lossless, "method": _WEBP_EFFORT}
    if form.quality is not None:
        settings["quality"] = form.quality
    file = io.BytesIO()
    PIL.Image.fromarray(_colours_last(image)).save(file, form.codec.upper(), **settings)
    return file.getvalue()


def decode(data: bytes | memoryview, form: Form) -> Pixels:
    """The image of a file. ArchiveError if it is not one of the form's shape."""
    shape = form.shape or ()
    grey = len(shape) == 2 or shape[0] == 1
    try:
        image = open_image(io.BytesIO(data), where="it", formats=(form.codec.upper(),))
    except DataError as error:
        raise ArchiveError(str(error)) from error
    pixels: Pixels = np.asarray(image.convert("L" if grey else "RGB"))
    found = _as_kept(pixels, shape)
    if found.shape != tuple(shape):
        raise ArchiveError(f"it has {image.width} x {image.height} pixels")
    return found


def _colours_last(image: Pixels) -> Pixels:
    if image.ndim == 3 and image.shape[0] == 1:
        image = image[0]
    elif image.ndim == 3 and image.shape[0] == 3:
        image = np.ascontiguousarray(image.transpose(1, 2, 0))
    return image


def _as_kept(pixels: Pixels, shape: Sequence[int]) -> Pixels:
    if pixels.ndim == 2 and len(shape) == 3:
        pixels = pixels[None]
    elif pixels.ndim == 3 and shape[0] == 3:
        pixels = pixels.transpose(2, 0, 1)
    return pixels
