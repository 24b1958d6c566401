"""How the samples of a packed dataset are kept: what its file says of them once.

The archive's spec has the key "dataset": {"version": 1, "count": samples in all} and the fields of
`Form` that are not their defaults; docs/data.md has what they mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from modelzip.archive import codecs
from modelzip.core import checks
from modelzip.data.packed import filters as filtering
from modelzip.errors import SettingError

VERSION = 1
PICTURES = ("png", "webp", "jpeg")
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64")
FLOATS = ("float16", "float32", "float64")
NARROW = ("float16", "int8", "uint8")
MAX_CHUNK = 1 << 30  # bytes
_LABEL = 8  # bytes


@dataclass(frozen=True, kw_only=True)
class Form:
    """What samples are and how they are coded; SettingError if that cannot be.

    Args:
        dtype: of numpy, that samples have.
        shape: of a sample; None for one row of any length.
        text: samples are `bytes`.
        chunk: samples in each but the last chunk.
        single: each sample is coded on its own.
        codec: of bytes, or of images; `filters` come before one of bytes.
        quality: of JPEG, and of WebP, which is lossless without.
        bits: highest bits kept of 8; narrow: the dtype that floats are rounded to.
        noise: what was rounded off comes back as noise and not as its middle.
        threshold: numbers of less magnitude are 0.
    """

    dtype: str
    shape: tuple[int, ...] | None
    text: bool = False
    chunk: int = 256
    single: bool = False
    codec: str = "zstd"
    filters: tuple[str, ...] = ()
    quality: int | None = None
    bits: int | None = None
    narrow: str | None = None
    noise: bool = False
    threshold: float | None = None

    def __post_init__(self) -> None:
        checks.choice("dtype", self.dtype, DTYPES)
        checks.choice("codec", self.codec, codecs.NAMES + PICTURES)
        checks.integer("chunk", self.chunk, low=1)
        for name in ("text", "single", "noise"):
            checks.flag(name, getattr(self, name))
        self._check_shape()
        self._check_loss()
        if self.codec in PICTURES:
            self._check_picture()
        elif self.quality is not None:
            raise SettingError(f"quality is for JPEG and WebP, and not for codec {self.codec!r}")
        filtering.check(self.filters, (1,) if self.shape is None else self.shape)

    def _check_shape(self) -> None:
        for side in self.shape or ():
            checks.integer("a side of shape", side, low=0)
        if self.text and (self.shape is not None or self.dtype != "uint8"):
            raise SettingError("text must be of uint8 in rows of any length")
        size = self.chunk * max(self.item_bytes, _LABEL)
        if size > MAX_CHUNK:
            raise SettingError(
                f"a chunk of {self.chunk} samples has {size} bytes, and at most {MAX_CHUNK} are "
                "read at once; lower chunk"
            )

    def _check_loss(self) -> None:
        lossy = [n for n in ("bits", "narrow", "threshold") if getattr(self, n) is not None]
        if "bits" in lossy:
            checks.integer("bits", self.bits, low=1, high=7)
        if "narrow" in lossy:
            checks.choice("dtype", self.narrow, NARROW)
        if "threshold" in lossy:
            checks.positive("threshold", self.threshold)
        if len(lossy) > 1:
            named = " and ".join("dtype" if name == "narrow" else name for name in lossy)
            raise SettingError(f"{named} are two ways to lose; choose one")
        for name in lossy:
            fits = self.dtype == "uint8" if name == "bits" else self.dtype in FLOATS
            if not fits or self.text:
                setting = "dtype" if name == "narrow" else name
                wanted = "uint8 images" if name == "bits" else "floats"
                raise SettingError(
                    f"{setting} rounds {wanted}, and samples are "
                    f"{'bytes' if self.text else self.dtype}; labels, token ids and text are "
                    "kept exactly"
                )
        if self.noise and (not lossy or self.threshold is not None or self.narrow == "float16"):
            raise SettingError("noise stands for what bits, int8 or uint8 rounds off; set one")

    def _check_picture(self) -> None:
        planes = self.shape if self.shape is None or len(self.shape) != 3 else self._colours()
        if self.dtype != "uint8" or planes is None or len(planes) != 2 or 0 in planes:
            shape = "of any length" if self.shape is None else list(self.shape)
            raise SettingError(
                f"codec {self.codec!r} is for uint8 images [H, W], [1 or 3, H, W] or [H, W, 3], "
                f"and samples are {self.dtype} {shape}"
            )
        if self.filters or not self.single:
            raise SettingError(f"codec {self.codec!r} codes images one by one, without filters")
        if self.quality is not None:
            checks.integer("quality", self.quality, low=1, high=100)
        if (self.quality is None, self.codec) in ((True, "jpeg"), (False, "png")):
            raise SettingError(
                f"codec {self.codec!r} has quality {self.quality}: JPEG needs one, PNG has none"
            )
        if self.bits is not None and self.quality is not None:
            raise SettingError("bits and quality are two ways to lose; choose one")

    def _colours(self) -> tuple[int, ...] | None:
        if self.shape is None:
            return None
        if self.shape[0] in (1, 3):
            return self.shape[1:]
        return self.shape[:2] if self.shape[2] == 3 else None

    @property
    def item_bytes(self) -> int:
        """Bytes of a sample; 0 where they differ."""
        return 0 if self.shape is None else math.prod(self.shape) * np.dtype(self.dtype).itemsize

    @property
    def stored(self) -> np.dtype[Any]:
        """What numbers are kept as."""
        found: np.dtype[Any] = np.dtype(self.narrow or self.dtype).newbyteorder("<")
        return found

    @property
    def lossless(self) -> bool:
        """Whether samples come back as they were."""
        return (self.bits, self.narrow, self.threshold, self.quality) == (None,) * 4

    def to_json(self, count: int) -> dict[str, Any]:
        """What the file says."""
        defaults = {field.name: field.default for field in fields(self)}
        chosen = {k: v for k, v in asdict(self).items() if v != defaults[k]}
        return {"version": VERSION, "count": count, **chosen}


def read_form(said: Mapping[str, Any]) -> Form:
    """The form that a file says. SettingError or TypeError if there is none such."""
    values = {k: v for k, v in said.items() if k not in ("version", "count")}
    for name, kind in (("shape", int), ("filters", str)):
        if values.get(name) is not None:
            if not isinstance(values[name], list) or not all(type(v) is kind for v in values[name]):
                raise SettingError(f"{name} is no list of {kind.__name__}")
            values[name] = tuple(values[name])
    return Form(**values)
