"""What is in an archive or a bundle, as a table, and whether it is whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

from modelzip.archive.bundle import ARCHIVE, MODEL
from modelzip.archive.unbundle import contents, is_bundle, unbundle
from modelzip.archive.unpack import LIMIT, open_archive, unpack
from modelzip.errors import ArchiveError
from modelzip.measure.machine import sha256
from modelzip.report.text import table

_HEADERS = ("tensor", "type", "shape", "codec", "bytes", "bits a value", "ratio")


def listing(path: str | Path) -> str:
    """Every tensor of the archive at `path`, how it is stored, and the sum; or a bundle's files.

    ArchiveError if it is damaged.
    """
    if is_bundle(path):
        return _files(path)
    with open_archive(path) as archive:
        entries = archive.entries
        size = archive.size
    rows = [
        (
            entry.name if entry.name.isprintable() else ascii(entry.name),
            entry.dtype,
            "x".join(map(str, entry.shape)),
            entry.codec,
            f"{entry.after:,}",
            f"{entry.bits:.2f}",
            f"{entry.ratio:.3f}x",
        )
        for entry in entries
    ]
    whole = Path(path).stat().st_size
    return (
        f"{table(rows, _HEADERS)}\n\n{len(entries)} tensors; the file has {size:,} bytes, "
        f"the archive {whole:,}: {whole / max(1, size):.3f}x"
    )


def checked(path: str | Path) -> str:
    """A line that says that the archive or bundle at `path` is whole; ArchiveError if it is not.

    Of a bundle every sum is compared, and its archive decoded and compared with its ONNX file.
    """
    if not is_bundle(path):
        with open_archive(path) as archive:
            archive.test()
            return f"{path}: {len(archive)} tensors, all as they were packed"
    sums = {file.name: file.sha256 for file in contents(path, limit=LIMIT)}
    if ARCHIVE not in sums:
        return f"{path}: {len(sums)} files, all as they were bundled"
    with tempfile.TemporaryDirectory() as scratch:
        folder = unbundle(path, scratch, limit=LIMIT)
        model = unpack(folder / ARCHIVE, folder / "unpacked")
        if MODEL in sums and sha256(model) != sums[MODEL]:
            raise ArchiveError(f"{path}: {ARCHIVE} does not unpack to the bytes of {MODEL}")
    return (
        f"{path}: {len(sums)} files, all as they were bundled; {ARCHIVE} unpacks "
        f"{'to the bytes of ' + MODEL if MODEL in sums else 'as it was packed'}"
    )


def _files(path: str | Path) -> str:
    files = contents(path, limit=LIMIT)
    size = sum(file.size for file in files)
    rows = [(file.name, f"{file.size:,}", file.sha256) for file in files]
    whole = Path(path).stat().st_size
    return (
        f"{table(rows, ('file', 'bytes', 'SHA-256'))}\n\n{len(files)} files of {size:,} bytes; "
        f"the bundle has {whole:,}: {whole / max(1, size):.3f}x"
    )
