"""Reading a bundle: what is in it, checked, or its files again."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from modelzip.archive.members import Member, bad_name, kind, members, shown
from modelzip.errors import ArchiveError, OutputError

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
SUMS = "SHA256SUMS"
_MAX_SUMS = 4 << 20
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")  # as sha256sum writes it


@dataclass(frozen=True)
class BundledFile:
    """A file in a bundle, its bytes, and the SHA-256 that they have."""

    name: str
    size: int
    sha256: str


def is_bundle(path: str | Path) -> bool:
    """Whether a file is a zip or a tar, by its content; False where there is none."""
    return kind(path) is not None


def own_name(path: Path) -> str:
    """The name of a bundle without its ending.

    >>> own_name(Path("runs/v1.2.tar.gz"))
    'v1.2'
    """
    ending = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(ending)


def contents(path: str | Path, *, limit: int) -> tuple[BundledFile, ...]:
    """The files in the bundle at `path`, without `SHA256SUMS`, after all of it was checked.

    Raises:
        ArchiveError: as `unbundle` does.
    """
    return _read(path, limit, None)


def unbundle(path: str | Path, out: str | Path, *, limit: int) -> Path:
    """Write the files of the bundle at `path` into the folder `out`, all of them or none.

    Args:
        out: made if it is not there; nothing in it is overwritten.
        limit: bytes that the files may have together.

    Raises:
        ArchiveError: the bundle is damaged or none, a file is not what `SHA256SUMS` says, or a name
            or size is not what a bundle may have.
        OutputError: a file is there already, or cannot be written.
    """
    folder = Path(out)
    there = folder.is_dir()
    if not there and os.path.lexists(folder):
        raise OutputError(f"{folder} is no folder; a bundle is unpacked into one")
    # within the same file system, so that a rename is all there is left to do
    partial = (folder / "_" if there else folder).with_name(
        f".modelzip-{secrets.token_hex(8)}.partial"
    )
    try:
        partial.mkdir()
        found = _read(path, limit, partial)
        if there:
            _move([*(file.name for file in found), SUMS], partial, folder)
        else:
            partial.rename(folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def _read(path: str | Path, limit: int, folder: Path | None) -> tuple[BundledFile, ...]:
    """The files, each written into `folder` if there is one, against their sums."""
    found, sums = [], None
    for member in members(path, limit=limit):
        listing = bytearray() if member.name == SUMS else None
        if listing is not None and member.size > _MAX_SUMS:
            raise ArchiveError(f"{path}: {SUMS} has {member.size} bytes, and at most {_MAX_SUMS}")
        file = _copy(member, folder, listing)
        if listing is None:
            found.append(file)
        else:
            sums = _parsed(bytes(listing), path)
    if sums is None:
        raise ArchiveError(f"{path} is no modelzip bundle, or not whole: it has no {SUMS}")
    for file in found:
        if file.name not in sums:
            raise ArchiveError(f"{path}: member {shown(file.name)} is not in {SUMS}")
        if sums.pop(file.name) != file.sha256:
            raise ArchiveError(
                f"{path}: member {shown(file.name)} has SHA-256 {file.sha256[:16]}..., "
                f"another than in {SUMS}; copy the bundle again"
            )
    if sums:
        raise ArchiveError(f"{path} has no {shown(min(sums))}, which is in {SUMS}")
    return tuple(found)


def _copy(member: Member, folder: Path | None, listing: bytearray | None) -> BundledFile:
    digest = hashlib.sha256()
    with ExitStack() as stack:
        file = stack.enter_context((folder / member.name).open("xb")) if folder else None
        for chunk in member.chunks:
            digest.update(chunk)
            if listing is not None:
                listing += chunk
            if file is not None:
                file.write(chunk)
        if file is not None:
            file.flush()
            os.fsync(file.fileno())
    return BundledFile(member.name, member.size, digest.hexdigest())


def _parsed(listing: bytes, path: str | Path) -> dict[str, str]:
    sums: dict[str, str] = {}
    for number, line in enumerate(listing.decode("ascii", "replace").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if match is None or bad_name(match[2]) or match[2] in sums:
            raise ArchiveError(
                f"{path}: line {number} of {SUMS} is no sum of a further file: {shown(line)}"
            )
        sums[match[2]] = match[1]
    return sums


def _move(names: list[str], source: Path, folder: Path) -> None:
    """Move files from `source` to where there are none of these names, all or none."""
    moved: list[Path] = []
    try:
        for name in names:
            target = folder / name
            target.open("xb").close()  # ours from here on: a rename alone would overwrite
            moved.append(target)
            (source / name).replace(target)
    except BaseException as error:
        for target in moved:
            with suppress(OSError):
                target.unlink()
        if isinstance(error, FileExistsError):
            raise OutputError(
                f"{error.filename} exists already; unpack into another folder, or remove it"
            ) from error
        raise
