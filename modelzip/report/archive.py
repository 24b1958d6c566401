"""What is in an archive, as a table."""

from __future__ import annotations

from pathlib import Path

from modelzip.archive.unpack import open_archive
from modelzip.report.text import table

_HEADERS = ("tensor", "type", "shape", "codec", "bytes", "bits a value", "ratio")


def listing(path: str | Path) -> str:
    """Every tensor of the archive at `path`, how it is stored, and the sum.

    ArchiveError if it is damaged.
    """
    with open_archive(path) as archive:
        entries = archive.entries
        size = archive.size
    rows = [
        (
            entry.name,
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
        f"the archive {whole:,}: {whole / size:.3f}x"
    )
