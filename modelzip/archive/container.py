"""The `.mzip` file: blobs of bytes with a spec, each under a CRC-32.

It is a valid safetensors file. Its header, in ASCII, is exactly::

    {"__metadata__":{"modelzip.archive":"1","crc32":C,"spec":S},
     NAME:{"dtype":"U8","shape":[SIZE],"data_offsets":[START,END]},...}

without the line break and spaces shown here, then spaces until the data starts at a multiple of 8.
S is the spec: a JSON object whose "blobs" lists [name, size, CRC-32] of every blob in the order of
the data, which has no gaps; other keys belong to whoever wrote it. C is the CRC-32 of S, and all
CRC-32s are eight lowercase hexadecimal digits of the sum that zlib computes. The header follows
from S, so a reader makes it again and compares: a changed bit anywhere is found.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelzip.archive.aside import written_aside
from modelzip.archive.header import MAX_HEADER, PREFIX, is_text, parse_json, read_header
from modelzip.archive.mapped import Mapped
from modelzip.errors import ArchiveError, OutputError

VERSION = 1
KEY = "modelzip.archive"
METADATA = "__metadata__"
ALIGNMENT = 8
MAX_SIZE = 1 << 63


@dataclass(frozen=True)
class Blob:
    """Where a blob lies in its file, in bytes, and its CRC-32 as eight hexadecimal digits."""

    name: str
    offset: int
    size: int
    crc32: str


class Writer:
    """Writes an archive at once or not at all; a file that was there stays until then.

    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with Writer(f"{folder}/a.mzip") as writer:
    ...         writer.add("weight", b"1234")
    ...         writer.finish({"made_by": "me"})
    ...     with Reader(f"{folder}/a.mzip") as archive:
    ...         print(archive.spec, bytes(archive.blob("weight")))
    {'made_by': 'me'} b'1234'
    """

    def __init__(self, path: str | Path) -> None:
        self._path = Path(path)
        self._blobs: dict[str, Blob] = {}
        self._size = 0
        self._finished = False
        if self._path.exists() and not self._path.is_file():
            raise OutputError(f"cannot write {path}: there is something that is no file")
        try:  # without a name: nothing is left of it, however this process ends
            self._data = tempfile.TemporaryFile(dir=self._path.parent)  # noqa: SIM115
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}") from error

    def add(self, name: str, data: bytes | memoryview) -> None:
        """Append a blob; it goes to the disk at once. ArchiveError if the name cannot be used."""
        if name in self._blobs or name in ("", METADATA) or not is_text(name):
            reason = "is there already" if name in self._blobs else "cannot be a name"
            raise ArchiveError(f"cannot add blob {name!r} to {self._path}: it {reason}")
        data = memoryview(data).cast("B")
        try:
            self._data.write(data)
        except OSError as error:
            raise OutputError(f"cannot write {self._path}: {error.strerror}") from error
        self._blobs[name] = Blob(name, self._size, len(data), _checksum(data))
        self._size += len(data)

    def finish(self, spec: Mapping[str, Any]) -> None:
        """Put the archive in place, with `spec`: JSON values, by any names except "blobs"."""
        header = self._header(spec)
        with written_aside(self._path) as file:
            self._data.seek(0)
            file.write(header)
            shutil.copyfileobj(self._data, file, 1 << 20)
        self._finished = True

    def _header(self, spec: Mapping[str, Any]) -> bytes:
        if "blobs" in spec:
            raise ArchiveError("a spec has no key 'blobs' of its own: the archive writes it")
        blobs = list(self._blobs.values())
        listed = [[blob.name, blob.size, blob.crc32] for blob in blobs]
        try:
            text = _json({**spec, "blobs": listed})
        except (TypeError, ValueError, RecursionError) as error:
            raise ArchiveError(f"the spec of {self._path} is not JSON: {error}") from error
        parse_json(text.encode(), f"the spec of {self._path}")  # what is written can be read
        header = make_header(text, blobs)
        if len(header) > PREFIX + MAX_HEADER:
            raise ArchiveError(
                f"the header of {self._path} has {len(header)} bytes, and at most {MAX_HEADER} "
                "are read; put less in the spec, or more in a blob"
            )
        return header

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(OSError):  # a full disk has been told of before
            self._data.close()
        if kind is None and not self._finished:
            raise ArchiveError(f"{self._path} is not written: finish(spec) was not called")


class Reader:
    """An archive, memory-mapped: the spec is read and checked now, each blob when asked for.

    Args:
        whole: refuse a file that is cut short; else only its blobs that are not there.
    """

    def __init__(self, path: str | Path, *, whole: bool = True) -> None:
        self._file = Mapped(path)
        self._name = str(path)
        self._whole = whole
        try:
            self.spec, self.blobs = self._read()
        except ArchiveError:
            self.close()
            raise

    def blob(self, name: str) -> memoryview:
        """The bytes of a blob, read-only. ArchiveError if they are not those that were written."""
        self._file.release_pages()
        blob = self._find(name)
        self._check_end(blob)
        data = self._file.view[blob.offset : blob.offset + blob.size]
        found = _checksum(data)
        if found != blob.crc32:
            raise ArchiveError(
                f"{self._name} is damaged: blob {name!r}, bytes {blob.offset} to "
                f"{blob.offset + blob.size}, has CRC-32 {found} and not {blob.crc32}; copy it again"
            )
        return data

    def part(self, name: str, start: int, stop: int) -> memoryview:
        """Bytes of a blob from `start` to `stop`, for one with checksums of its own: not checked.

        They are fewer where the file is cut short.
        """
        blob = self._find(name)
        stop = min(stop, blob.size)
        return self._file.view[blob.offset + start : blob.offset + stop]

    def _find(self, name: str) -> Blob:
        if name not in self.blobs:
            raise ArchiveError(f"{self._name} has no blob {name!r} among its {len(self.blobs)}")
        return self.blobs[name]

    def _check_end(self, blob: Blob) -> None:
        if blob.offset + blob.size > self._file.size:
            raise ArchiveError(
                f"{self._name} is cut short: blob {blob.name!r} is bytes {blob.offset} to "
                f"{blob.offset + blob.size}, and the file ends at {self._file.size}"
            )

    def _read(self) -> tuple[dict[str, Any], dict[str, Blob]]:
        view = self._file.view
        try:
            header, start = read_header(view)
        except ArchiveError as error:
            raise ArchiveError(f"{self._name} is no whole modelzip archive: {error}") from error
        text = _checked_spec(self._name, header)
        spec = parse_json(text.encode(), f"the spec of {self._name}")
        blobs = _listed(self._name, spec, start)
        _compare(self._name, bytes(view[:start]), make_header(text, blobs))
        for blob in blobs if self._whole else ():
            self._check_end(blob)
        end = blobs[-1].offset + blobs[-1].size if blobs else start
        if end < len(view):
            raise ArchiveError(f"{self._name} has {len(view) - end} bytes after its end at {end}")
        del spec["blobs"]
        return spec, {blob.name: blob for blob in blobs}

    def close(self) -> None:
        """Let the file go; blobs still in use stay valid."""
        self._file.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def make_header(spec: str, blobs: Iterable[Blob]) -> bytes:
    """The bytes before the data, for a spec's text and the blobs it lists, in their order.

    >>> make_header("{}", [])[8:]
    b'{"__metadata__":{"modelzip.archive":"1","crc32":"a3a6bf43","spec":"{}"}}'
    """
    metadata = {KEY: str(VERSION), "crc32": _checksum(spec.encode()), "spec": spec}
    entries: dict[str, Any] = {METADATA: metadata}
    end = 0
    for blob in blobs:
        start, end = end, end + blob.size
        entries[blob.name] = {"dtype": "U8", "shape": [blob.size], "data_offsets": [start, end]}
    text = _json(entries).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(PREFIX, "little") + text


def _checked_spec(path: str, header: Mapping[str, Any]) -> str:
    """The text of the spec; ArchiveError if it is of another version or damaged."""
    metadata = header.get(METADATA)
    if not isinstance(metadata, dict) or KEY not in metadata:
        raise ArchiveError(f"{path} is no modelzip archive: its metadata has no {KEY!r}")
    version = metadata[KEY]
    if version != str(VERSION):
        if isinstance(version, str) and version.isdecimal() and version > str(VERSION):
            raise ArchiveError(
                f"{path}: version {version[:20]} is newer than this modelzip reads ({VERSION}); "
                "upgrade modelzip"
            )
        raise ArchiveError(f"{path} has unknown version {str(version)[:20]!r}: it is damaged")
    text = metadata.get("spec")
    if not isinstance(text, str) or not is_text(text):
        raise ArchiveError(f"{path} is damaged: its metadata has no text 'spec'")
    if metadata.get("crc32") != _checksum(text.encode()):
        raise ArchiveError(f"{path} is damaged: the CRC-32 of its spec is wrong; copy it again")
    return text


def _listed(path: str, spec: Any, start: int) -> list[Blob]:
    """The blobs that a spec lists, of a file whose data starts at byte `start`."""
    listed = spec.get("blobs") if isinstance(spec, dict) else None
    if not isinstance(listed, list):
        raise ArchiveError(f"{path} is damaged: its spec has no list of blobs")
    blobs: list[Blob] = []
    for index, entry in enumerate(listed):
        match entry:
            case [str(name), int(size), str(crc32)] if 0 <= size < MAX_SIZE and type(size) is int:
                blobs.append(Blob(name, start, size, crc32))
                start += size
            case _:
                raise ArchiveError(f"{path} is damaged: blobs[{index}] is not [name, size, CRC-32]")
    if len({blob.name for blob in blobs}) < len(blobs):
        raise ArchiveError(f"{path} is damaged: two of its blobs have the same name")
    return blobs


def _compare(path: str, found: bytes, expected: bytes) -> None:
    if found != expected:
        pairs = zip(found, expected, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
        raise ArchiveError(
            f"{path} is damaged: byte {at} of its header is not what follows from its spec"
        )


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _checksum(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):08x}"
