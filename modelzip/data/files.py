"""Finding data files, and reading foreign formats without trusting what they declare."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelzip.errors import DataError

VARIABLE = "MODELZIP_DATA"
MAX_BYTES = 2**34  # one array larger than 16 GiB does not belong in memory
CIFAR_BATCH = 10_000  # images in each file of CIFAR-10's archive
_TIMEOUT_S = 60


def data_folder() -> Path | None:
    """The folder that the environment variable MODELZIP_DATA names; None where it is not set."""
    value = os.environ.get(VARIABLE)
    if not value:
        return None
    folder = Path(value).expanduser()
    if not folder.is_dir():
        raise DataError(
            f"{VARIABLE} is {value!r}, which is not a folder; set it to one or unset it"
        )
    return folder


def local_file(name: str) -> Path | None:
    """The file `name` in the data folder, or None."""
    folder = data_folder()
    return folder / name if folder is not None and (folder / name).is_file() else None


def cache_folder() -> Path:
    """Where downloads are kept: modelzip/ in XDG_CACHE_HOME, which is ~/.cache by default."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelzip"


def fetch(url: str, *, sha256: str) -> Path:
    """The file at `url`, from the data folder, the cache, or the network; checked by its hash.

    Raises:
        DataError: it cannot be downloaded, or its SHA-256 is another.
    """
    name = url.rpartition("/")[2]
    path = local_file(name) or cache_folder() / name
    if not path.is_file():
        _download(url, path)
    found = _sha256(path)
    if found != sha256:
        raise DataError(
            f"{path} is damaged: its SHA-256 is {found[:16]}..., not {sha256[:16]}...; "
            f"delete it to have {url} downloaded again"
        )
    return path


def _download(url: str, path: Path) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        request = urllib.request.Request(url)  # noqa: S310 - the callers' URLs are constants
        opened = urllib.request.urlopen(request, timeout=_TIMEOUT_S)  # noqa: S310
        with opened as source, partial.open("wb") as target:
            while block := source.read(2**20):
                target.write(block)
        partial.replace(path)
    except (OSError, HTTPException) as error:  # URLError and a full disk are OSErrors
        raise DataError(
            f"cannot download {url} to {path.parent} ({error}); put {path.name} into a folder and "
            f"set the environment variable {VARIABLE} to it"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


class NpzFile:
    """Arrays of an .npz file, each checked against what its header declares before it is read.

    Never unpickles: object arrays are refused.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"there is no file {self.path}")
        try:
            with zipfile.ZipFile(self.path) as archive:
                self.names = [n.removesuffix(".npy") for n in archive.namelist()]
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path} is not an .npz file: {error}") from error

    def read(self, name: str, *, kinds: str, ndim: int | None = None) -> NDArray[Any]:
        """The array `name`, whose dtype kind is one of `kinds`, with `ndim` dimensions."""
        if name not in self.names:
            raise DataError(
                f"{self.path} has no array {name!r}; it has {', '.join(sorted(self.names)[:12])}"
            )
        try:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as member:
                shape, dtype = _npy_header(member)
                problem = _unfit(shape, dtype, kinds=kinds, ndim=ndim)
                if problem is None:
                    member.seek(0)
                    array: NDArray[Any] = np.lib.format.read_array(member, allow_pickle=False)
                    return array
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise DataError(f"{self.path}: array {name!r} cannot be read: {error}") from error
        raise DataError(f"{self.path}: array {name!r} {problem}")


def _npy_header(member: Any) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = np.lib.format.read_magic(member)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, _, dtype = read(member)
    return shape, dtype


def _unfit(
    shape: Sequence[int], dtype: np.dtype[Any], *, kinds: str, ndim: int | None
) -> str | None:
    words = {"u": "unsigned integer", "i": "integer", "f": "float"}
    if dtype.kind not in kinds:
        wanted = " or ".join(words[k] for k in kinds)
        return f"has dtype {dtype}; it must be {wanted}"
    if ndim is not None and len(shape) != ndim:
        return f"has shape {list(shape)}; it must have {ndim} dimension{'s' * (ndim != 1)}"
    size = dtype.itemsize
    for side in shape:  # in Python's integers, which do not overflow
        size *= side
    if min(shape, default=0) < 1 or size > MAX_BYTES:
        return f"declares the shape {list(shape)} ({size} bytes); nothing of that size is read"
    return None


def webp_strip(data: bytes, *, side: int, where: str) -> NDArray[np.uint8]:
    """Images [N, side, side, 3] stacked in one lossless WebP file `side` pixels wide.

    Raises:
        DataError: another format or width, or damaged.
        MissingExtraError: Pillow is not installed.
    """
    from modelzip.data.images import open_image

    image = open_image(io.BytesIO(data), where=where, formats=("WEBP",))
    if image.width != side or image.height % side or image.height == 0:
        raise DataError(f"{where} is {image.width} x {image.height} pixels; it must be {side} wide")
    pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    return pixels.reshape(-1, side, side, 3)


def idx(path: Path, *, ndim: int) -> NDArray[np.uint8]:
    """An array of bytes from a gzipped IDX file (http://yann.lecun.com/exdb/mnist)."""
    header = 4 + 4 * ndim
    try:
        with gzip.open(path) as file:
            head = file.read(header)
            shape = np.frombuffer(head[4:], ">u4").astype(int).tolist()
            size = int(np.prod(shape, dtype=object)) if len(head) == header else -1
            if head[:4] != bytes([0, 0, 8, ndim]) or not 0 < size <= MAX_BYTES:
                raise DataError(f"{path} is not an IDX file of {ndim}-dimensional bytes")
            body = file.read(size + 1)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(body) != size:
        raise DataError(f"{path} holds {len(body)} bytes where its header declares {shape}")
    array: NDArray[np.uint8] = np.frombuffer(body, np.uint8).reshape(shape)
    return array


def cifar_batches(path: Path) -> Iterator[tuple[str, NDArray[np.uint8], NDArray[np.uint8]]]:
    """Name, images [N, 3, 32, 32] and labels [N] of each file in CIFAR-10's binary archive.

    Each record is a label byte and 3072 pixels, https://www.cs.toronto.edu/~kriz/cifar.html.
    """
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    try:
        with tarfile.open(path) as archive:
            for name in names:
                member = archive.extractfile(f"cifar-10-batches-bin/{name}.bin")
                data = b"" if member is None else member.read(CIFAR_BATCH * 3073 + 1)
                yield name, *_cifar_records(data, where=f"{path}: {name}.bin")
    except (OSError, KeyError, EOFError, tarfile.TarError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def cifar_batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Images and labels of one file of that archive, such as `test_batch.bin`."""
    try:
        with path.open("rb") as file:
            data = file.read(CIFAR_BATCH * 3073 + 1)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return _cifar_records(data, where=str(path))


def _cifar_records(data: bytes, *, where: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    if len(data) != CIFAR_BATCH * 3073:
        raise DataError(f"{where} does not hold {CIFAR_BATCH} images")
    records = np.frombuffer(data, np.uint8).reshape(-1, 3073)
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0]
