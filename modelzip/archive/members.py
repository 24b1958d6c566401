"""The files in a zip or tar from anywhere, one after another, each within what it declares.

Only flat folders of regular files are read, under names that every system can have: letters,
digits, underscores, and between them dots, dashes and spaces. So no name leads out of a folder,
hides, or stands for a device.
"""

from __future__ import annotations

import gzip
import io
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from modelzip.archive.header import has_header
from modelzip.errors import ArchiveError, first_line

CHUNK = 1 << 20
MAX_MEMBERS = 10_000
MAX_NAME = 128
_NAME = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_. -]*[A-Za-z0-9_])?")
_DEVICE = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # of Windows
_BLOCK = tarfile.BLOCKSIZE
_MAX_PADDING = 1 << 20  # zeros after a tar's end; 10 KB by custom
_MAX_READ = 8 << 20  # at once from a zip: its directory, for 10,000 members at most 4 MB
_ENCRYPTED = 0x1 | 0x40 | 0x2000  # bits of a zip member's flags
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_DAMAGE = (  # what the readers of zip, gzip and deflate raise at bytes that are none
    *(EOFError, NotImplementedError, OSError, OverflowError, RuntimeError, ValueError),
    *(struct.error, tarfile.TarError, zipfile.BadZipFile, zlib.error),
)


class Source(Protocol):
    """Bytes that are read from front to back."""

    def read(self, size: int = -1, /) -> bytes: ...


@dataclass(frozen=True)
class Member:
    """A file in a bundle; `chunks`, of `size` bytes together, are read before the next one."""

    name: str
    size: int
    chunks: Iterator[bytes]


def kind(path: str | Path) -> str | None:
    """What a file is by its first bytes: "zip", "tar", "gzip", or none of these."""
    if not Path(path).is_file():
        return None
    try:
        with Path(path).open("rb") as file:
            head = file.read(_BLOCK)
    except OSError as error:
        raise ArchiveError(f"cannot read {path}: {error.strerror}") from error
    if head.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return "zip"
    if head.startswith(b"\x1f\x8b"):
        return "gzip"
    is_tar = head[257:262] == b"ustar" and not has_header(memoryview(head))
    return "tar" if is_tar else None


def bad_name(name: str) -> str | None:
    """Why a name cannot be used, or None.

    >>> bad_name("../report.md")
    'a name has letters, digits, _, and between them . - and spaces'
    >>> bad_name("report.md")
    """
    if not _NAME.fullmatch(name):
        return "a name has letters, digits, _, and between them . - and spaces"
    if _DEVICE.fullmatch(name):
        return "Windows has a device of that name"
    return None if len(name) <= MAX_NAME else f"a name has at most {MAX_NAME} letters"


def members(path: str | Path, *, limit: int) -> Iterator[Member]:
    """The files in the bundle at `path`, in order.

    Raises:
        ArchiveError: it is damaged, has a name or member that a bundle does not have, two names
            that are alike, more than 10,000 members, or asks for more than `limit` bytes.
    """
    total, seen = 0, set[str]()
    for member in _files(Path(path)):
        where = f"{path}: member {shown(member.name)}"
        if reason := bad_name(member.name):
            raise ArchiveError(f"{where} cannot be unpacked: {reason}")
        if member.name.lower() in seen:
            raise ArchiveError(f"{where} is there twice, but for upper and lower case")
        seen.add(member.name.lower())
        if len(seen) > MAX_MEMBERS:
            raise ArchiveError(f"{path} has over {MAX_MEMBERS} members")
        total += member.size
        if total > limit:
            raise ArchiveError(
                f"{where} takes what is asked for to {total} bytes, over the limit of {limit}; "
                "give a higher limit"
            )
        yield member


def shown(name: str) -> str:
    """A stranger's name as it can be printed, in a line of ASCII."""
    return ascii(name[:80])


def _files(path: Path) -> Iterator[Member]:
    form = kind(path)
    if form == "zip":
        yield from _zip_members(path)
        return
    if form is None:
        raise ArchiveError(f"{path} is no bundle: neither a zip nor a tar")
    with _readable(str(path)), path.open("rb") as file:
        if form == "tar":
            yield from _tar_members(path, file)
        else:
            with gzip.open(file) as inflated:
                yield from _tar_members(path, inflated)


class _Cautious(io.BufferedReader):
    """A file that is not read whole, whatever a directory says of its own size."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > _MAX_READ:
            raise zipfile.BadZipFile(f"{size} bytes are no directory of {MAX_MEMBERS} members")
        return super().read(size)


def _zip_members(path: Path) -> Iterator[Member]:
    with path.open("rb", buffering=0) as raw, _Cautious(raw) as file:
        with _readable(str(path)):
            bundle = zipfile.ZipFile(file)
        found = bundle.infolist()
        if sum(info.compress_size for info in found) > path.stat().st_size:
            raise ArchiveError(f"{path} is damaged: its members lie over each other")
        for info in found:
            name = info.orig_filename  # before anything was done to it
            where = f"{path}: member {shown(name)}"
            if info.flag_bits & _ENCRYPTED:
                raise ArchiveError(f"{where} is encrypted; a bundle is not")
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                raise ArchiveError(f"{where} is no regular file")
            if info.compress_type not in _METHODS:
                raise ArchiveError(
                    f"{where} is compressed by method {info.compress_type}; "
                    "a bundle stores (0) or deflates (8)"
                )
            with _readable(where):
                stream = bundle.open(info)
            with closing(stream):
                yield Member(name, info.file_size, _chunks(stream, info.file_size, where))


def _tar_members(path: Path, stream: Source) -> Iterator[Member]:
    """Header by header: `tarfile.TarFile` follows extensions, and may recurse in them."""
    end = bytes(_BLOCK)
    while (block := _block(stream, path)) != end:
        with _readable(str(path)):
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        where = f"{path}: member {shown(info.name)}"
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            raise ArchiveError(f"{where} is no regular file")
        if info.size < 0:
            raise ArchiveError(f"{where} is said to have {info.size} bytes")
        yield Member(info.name, info.size, _chunks(stream, info.size, where))
        if info.size % _BLOCK:
            _read(stream, _BLOCK - info.size % _BLOCK, str(path))
    _block(stream, path)  # the second of the two that end a tar
    rest = _read(stream, _MAX_PADDING + 1, str(path))
    if len(rest) > _MAX_PADDING or rest.strip(b"\0"):
        raise ArchiveError(f"{path} has bytes after its end")


def _block(stream: Source, path: Path) -> bytes:
    block = _read(stream, _BLOCK, str(path))
    if len(block) < _BLOCK:
        raise ArchiveError(f"{path} is cut short: a tar ends with two blocks of zeros")
    return block


def _chunks(stream: Source, size: int, where: str) -> Iterator[bytes]:
    """`size` bytes in pieces of 1 MB: what inflates to more is not read further."""
    left = size
    while left:
        data = _read(stream, min(left, CHUNK), where)
        if not data:
            raise ArchiveError(f"{where} ends after {size - left} of {size} bytes")
        left -= len(data)
        yield data


def _read(stream: Source, size: int, what: str) -> bytes:
    with _readable(what):
        return stream.read(size)


@contextmanager
def _readable(what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        raise ArchiveError(f"{what} is damaged: {first_line(error)}") from error
