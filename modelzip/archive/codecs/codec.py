"""What a codec of bytes is, and the checks that all of them share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from modelzip.errors import ArchiveError

_SHORT = 256  # bytes: the least that the ratio is taken of, since tables and heads are short


@dataclass(frozen=True)
class Codec:
    """Codes bytes as fewer bytes, and none as none; to decode, their number must be known.

    `expand` gets data and a size and gives at most one byte more than that, or ArchiveError with
    what is wrong. `ratio` bounds how many bytes one byte of data can stand for, where it is so low
    that memory can be refused by it; `limit` is the most bytes the codec can code.
    """

    name: str
    compress: Callable[[memoryview], bytes]
    expand: Callable[[memoryview, int], bytes]
    ratio: int | None = None
    limit: int | None = None

    def encode(self, data: bytes | memoryview) -> bytes:
        """The data in fewer bytes, if they can be. ArchiveError if they are over the limit."""
        view = _bytes_of(data)
        if self.limit is not None and len(view) > self.limit:
            raise ArchiveError(
                f"{self.name} codes at most {self.limit} bytes, got {len(view)}; "
                "cut them in parts, or use another codec"
            )
        return self.compress(view) if len(view) else b""

    def decode(self, data: bytes | memoryview, size: int) -> bytes:
        """The `size` bytes that were encoded. ArchiveError if data are not those of `size` bytes.

        What is checked is the data's form: whether the bytes are the right ones is for a checksum.
        """
        view = _bytes_of(data)
        try:
            self._check(view, size)
            found = self.expand(view, size) if len(view) else b""
            if len(found) > size:
                raise ArchiveError("more bytes than declared are found")
            if len(found) < size:
                raise ArchiveError(f"only {len(found)} bytes are found")
        except ArchiveError as error:
            raise ArchiveError(
                f"{self.name}: {error}, in {len(view)} bytes that are declared to be {size}"
            ) from error
        return found

    def _check(self, view: memoryview, size: int) -> None:
        if size < 0:
            raise ArchiveError("a size cannot be negative")
        if size == 0 and len(view):
            raise ArchiveError("no bytes are no data")
        if self.limit is not None and size > self.limit:
            raise ArchiveError(f"at most {self.limit} bytes can be coded")
        if self.ratio is not None and size > self.ratio * max(len(view), _SHORT):
            raise ArchiveError(f"a byte stands for at most {self.ratio}")


def _bytes_of(data: bytes | memoryview) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")  # no cast takes a side of 0
