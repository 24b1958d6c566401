"""A file as read-only memory: any part of it at once, and none of it kept."""

from __future__ import annotations

import contextlib
import mmap
import sys
from pathlib import Path

from modelzip.errors import ArchiveError


class Mapped:
    """A regular file of at least one byte, mapped. ArchiveError where there is none.

    Several threads may read it. The file must not be cut short while it is open.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ArchiveError(f"there is no file {self.path}")
        try:
            with self.path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # what mmap says of no bytes
            raise ArchiveError(f"{self.path} is empty") from error
        except OSError as error:
            raise ArchiveError(f"cannot read {self.path}: {error.strerror}") from error
        self.view = memoryview(self._map)
        self.size = len(self.view)

    def release_pages(self) -> None:
        """Count no page read so far as this process's memory; it is read again when needed."""
        if sys.platform == "linux":
            self._map.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Let the file go. Parts still in use stay valid, and let it go when they end."""
        self.view.release()
        with contextlib.suppress(BufferError):  # a part is in use: the last one closes the file
            self._map.close()
