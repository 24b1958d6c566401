"""Writing a dataset into one file."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from modelzip.archive.container import Writer
from modelzip.archive.progress import advancing
from modelzip.core import checks
from modelzip.data.packed import coding, filters
from modelzip.data.packed.coding import Items
from modelzip.data.packed.filters import AUTO
from modelzip.data.packed.form import NARROW, PICTURES, Form
from modelzip.data.packed.items import Source
from modelzip.errors import DataError, SettingError

INPUTS, LABELS = "inputs/", "labels/"  # and the number of the chunk


@dataclass(frozen=True)
class PackedData:
    """What packing did: how samples are kept, and bytes of them as arrays and of the file."""

    path: Path
    form: Form
    count: int
    before: int
    after: int

    @property
    def factor(self) -> float:
        """How many times fewer bytes the file has."""
        return self.before / self.after


def pack(
    dataset: Dataset[Any] | Sequence[Any],
    path: str | Path,
    *,
    codec: str = "zstd",
    filters: str | Sequence[str] = AUTO,
    level: int | None = None,
    chunk: int = 256,
    single: bool = False,
    bits: int | None = None,
    dtype: str | None = None,
    threshold: float | None = None,
    noise: bool = False,
    jpeg: int | None = None,
    webp: int | None = None,
    progress: bool = False,
) -> PackedData:
    """Write a dataset into one file, which `PackedDataset` reads; without loss unless asked for.

    Args:
        dataset: pairs of inputs and an integer label. Inputs are tensors or arrays of one size, or
            rows of any length (token ids), or `bytes`. Of an `ArrayDataset`, or a
            `Subset` of one, what it holds is packed, before normalisation and augmentation.
        path: of the file, by custom "train.mzd"; what is there stays until it is whole.
        codec: of bytes (store, deflate, zlib, bzip2, lzma, zstd, lz4, snappy, lzo, huffman, lzw)
            or of images one by one (png, webp).
        filters: what makes bytes fewer before the codec: "delta:AXIS", "green:AXIS", "ycocg:AXIS",
            "planes", "sparse"; "auto" tries some on the first chunk.
        level: of zstd, 1 to 22; 1 where there is none.
        chunk: samples that are coded together, and read together.
        single: code each sample of a chunk on its own: more bytes, and any order of reading.
        bits: keep this many of uint8's 8 bits; the rest is read as its middle.
        dtype: round floats to "float16", or by a scale for each chunk to "int8" or "uint8".
        threshold: make floats of less magnitude 0 (with filters auto they are then left out).
        noise: read what `bits` or `dtype` rounded off as uniform noise and not as its middle.
        jpeg, webp: quality, 1 to 100, of images that are kept as such, with loss.
        progress: show a bar where it takes more than a second.

    Raises:
        DataError: an item is no such pair, or not like those before it.
        SettingError: a setting is wrong, or does not fit the samples.
        MissingExtraError: the codec needs a package that is not installed.
        OutputError: the file cannot be written.

    >>> import tempfile, torch
    >>> from modelzip.data import ArrayDataset, PackedDataset
    >>> images = ArrayDataset(torch.zeros(300, 1, 8, 8, dtype=torch.uint8), torch.arange(300))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     packed = pack(images, f"{folder}/train.mzd", codec="zlib")
    ...     inputs, label = PackedDataset(packed.path)[299]
    >>> packed.factor > 5, inputs.shape, label
    (True, torch.Size([1, 8, 8]), 299)
    """
    source = Source(dataset)
    if dtype is not None and dtype not in NARROW:
        raise SettingError(f"dtype must be one of {', '.join(NARROW)}, got {dtype!r}")
    codec, quality = _picture(codec, jpeg=jpeg, webp=webp)
    auto = filters == AUTO and codec not in PICTURES
    names = () if filters == AUTO else checks.names("filters", filters)
    form = Form(
        dtype=source.kind.dtype,
        shape=source.kind.shape,
        text=source.kind.text,
        chunk=chunk,
        single=single or codec in PICTURES,
        codec=codec,
        filters=names,
        quality=quality,
        bits=bits,
        narrow=dtype,
        threshold=threshold,
        noise=noise,
    )
    coding.check_level(level, form)
    return _write(source, Path(path), form, level, auto=auto, progress=progress)


def _write(
    source: Source, path: Path, form: Form, level: int | None, *, auto: bool, progress: bool
) -> PackedData:
    before = done = 0
    with Writer(path) as writer, advancing("packing", source.count, shown=progress) as advance:
        for number, (items, labels) in enumerate(source.chunks(form.chunk)):
            try:
                if auto and number == 0:
                    form = _best(items, form, level)
                data = coding.encode(items, form, level=level)
            except DataError as error:
                raise DataError(f"items {done} to {done + len(items) - 1}: {error}") from error
            writer.add(f"{INPUTS}{number}", data)
            writer.add(f"{LABELS}{number}", zlib.compress(labels.astype("<i8").tobytes(), 9))
            before += items.values.nbytes + labels.nbytes
            done += len(items)
            advance(len(items))
        writer.finish({"dataset": form.to_json(source.count)})
    return PackedData(path, form, source.count, before, path.stat().st_size)


def _best(items: Items, form: Form, level: int | None) -> Form:
    """The form whose filters leave fewest bytes of a chunk."""
    shape = (1,) if form.shape is None else form.shape
    itemsize = np.dtype(form.stored).itemsize
    forms = [replace(form, filters=names) for names in filters.candidates(shape, itemsize)]
    return min(forms, key=lambda each: len(coding.encode(items, each, level=level)))


def _picture(codec: str, *, jpeg: int | None, webp: int | None) -> tuple[str, int | None]:
    """The codec, and the quality of one with loss."""
    if jpeg is None and webp is None:
        return codec, None
    name = "webp" if jpeg is None else "jpeg"
    if (jpeg is not None and webp is not None) or codec not in ("zstd", name):
        raise SettingError(
            f"codec={codec!r}, jpeg={jpeg} and webp={webp} are several ways to keep an image; "
            "choose one"
        )
    return name, webp if jpeg is None else jpeg
