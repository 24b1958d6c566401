"""A bundle: what a run leaves to hand a model on, in one zip or tar.

It is flat: `recipe.yaml`, `report.json`, `report.md`, plots beside them, `model.mzip` and
`model.onnx`, sorted by name, and last `SHA256SUMS`, which `sha256sum -c` reads. Names, times, modes
and owners are the same wherever it is made, so equal runs make equal bundles.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from modelzip.archive.aside import written_aside
from modelzip.archive.members import Source, bad_name
from modelzip.archive.progress import Advance, advancing
from modelzip.archive.unbundle import SUFFIXES, SUMS
from modelzip.errors import SettingError

REPORT = ("recipe.yaml", "report.json", "report.md")
MODEL, ARCHIVE = "model.onnx", "model.mzip"
PLOTS = ("*.png", "*.svg")
_USTAR_SIZE = 1 << 33  # bytes that its field for a size has digits for
Entry = tuple[str, int, Source]


@dataclass(frozen=True)
class Bundled:
    """What bundling did: the names of the files, and their bytes before and after."""

    path: Path
    files: tuple[str, ...]
    before: int
    after: int


def bundle(
    folder: str | Path, path: str | Path, *, onnx: bool = True, progress: bool = False
) -> Bundled:
    """Put the recipe, report, archive and ONNX file of a run into one file to hand on.

    `unpack` takes it apart again: one verb for whatever someone was handed. Checkpoints and the
    original model stay where they are.

    Args:
        folder: of a finished run.
        path: ends in .zip, .tar or .tar.gz; what is there stays until the bundle is whole.
        onnx: False leaves out `model.onnx`, which `unpack` makes from `model.mzip`.
        progress: show a bar where it takes more than a second.

    Raises:
        SettingError: the folder is not one of a finished run, or the ending is another.
        OutputError: the bundle cannot be written.

    >>> bundle("runs/none", "none.zip")
    Traceback (most recent call last):
    modelzip.errors.SettingError: there is no folder runs/none; give that of a finished run
    """
    path = Path(path)
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), "")
    if not suffix:
        raise SettingError(f"a bundle is a {', '.join(SUFFIXES)}, got {path.name!r}")
    files = _files(Path(folder), onnx=onnx)
    before = sum(file.stat().st_size for file in files)
    with (
        written_aside(path) as out,
        advancing("bundling", before, shown=progress) as advance,
    ):
        entries = _entries(files, advance)
        if suffix == ".zip":
            _write_zip(out, entries)
        elif suffix == ".tar":
            _write_tar(out, entries)
        else:
            with gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as deflated:
                _write_tar(cast("IO[bytes]", deflated), entries)
    return Bundled(path, tuple(file.name for file in files), before, path.stat().st_size)


def _files(folder: Path, *, onnx: bool) -> list[Path]:
    """The files of a run that go into a bundle, sorted by name."""
    if not folder.is_dir():
        raise SettingError(f"there is no folder {folder}; give that of a finished run")
    needed = [*REPORT, MODEL if onnx else ARCHIVE]
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        hint = "" if missing != [ARCHIVE] else ", which would stand in for model.onnx"
        raise SettingError(
            f"{folder} has no {', '.join(missing)}{hint}; give the folder of a finished run"
        )
    optional = [folder / ARCHIVE, *(plot for glob in PLOTS for plot in folder.glob(glob))]
    files = {folder / name for name in needed} | {file for file in optional if file.exists()}
    for file in files:
        if not stat.S_ISREG(file.lstat().st_mode):  # a link may lead to anything
            raise SettingError(f"{file} is no regular file; put what it should be in its place")
        if reason := bad_name(file.name):
            raise SettingError(f"{file} cannot go into a bundle: {reason}; rename it")
    return sorted(files, key=lambda file: file.name)


class _Summed:
    """A file that is hashed as it is read."""

    def __init__(self, file: IO[bytes], advance: Advance) -> None:
        self._file = file
        self._advance = advance
        self.sha256 = hashlib.sha256()

    def read(self, size: int = -1, /) -> bytes:
        data = self._file.read(size)
        self.sha256.update(data)
        self._advance(len(data))
        return data


def _entries(files: Sequence[Path], advance: Advance) -> Iterator[Entry]:
    """Name, size and stream of each file, to be read before the next; then those of the sums."""
    lines = []
    for path in files:
        with path.open("rb") as file:
            stream = _Summed(file, advance)
            yield path.name, os.fstat(file.fileno()).st_size, stream
        lines.append(f"{stream.sha256.hexdigest()}  {path.name}\n")
    text = "".join(lines).encode()
    yield SUMS, len(text), io.BytesIO(text)


def _write_zip(out: IO[bytes], entries: Iterable[Entry]) -> None:
    with zipfile.ZipFile(out, "w") as bundled:
        for name, size, stream in entries:
            info = zipfile.ZipInfo(name)  # its time is that of 1980
            info.create_system = 3  # Unix, on any system
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            packed = name.endswith(".mzip")
            info.compress_type = zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED
            info.file_size = size
            with bundled.open(info, "w") as target:
                shutil.copyfileobj(stream, target, 1 << 20)


def _write_tar(out: IO[bytes], entries: Iterable[Entry]) -> None:
    with tarfile.TarFile(fileobj=out, mode="w") as bundled:
        for name, size, stream in entries:
            info = tarfile.TarInfo(name)  # of time, user and group 0
            info.size = size
            large = size >= _USTAR_SIZE
            bundled.format = tarfile.GNU_FORMAT if large else tarfile.USTAR_FORMAT
            bundled.addfile(info, stream)
