"""LZW, Welch 1984, https://doi.org/10.1109/MC.1984.1659158: strings seen before become one code.

Codes are written one after another, the lowest bit first. Codes 0 to 255 are the bytes; each code
read after the first makes a new one, from 256 on, of the string before it and its own first byte.
Codes have 9 bits at first, and one more as soon as the next code to be made would not fit; at 16
bits no more are made. The last byte is filled with 0. No data are no bytes.
"""

from __future__ import annotations

from typing import Final

from modelzip.errors import ArchiveError

_FIRST_BITS, _MOST_BITS = 9, 16


class Lzw:
    """Strings seen before become one code."""

    name: Final = "lzw"

    def encode(self, data: bytes | memoryview) -> bytes:
        """The codes of `data`."""
        known = {bytes([value]): value for value in range(256)}
        out = bytearray()
        waiting = count = 0
        bits = _FIRST_BITS
        current = b""
        for value in bytes(data):
            longer = current + bytes([value])
            if longer in known:
                current = longer
                continue
            waiting |= known[current] << count
            count += bits
            while count >= 8:
                out.append(waiting & 255)
                waiting >>= 8
                count -= 8
            if len(known) < 1 << _MOST_BITS:
                known[longer] = len(known)
                bits = _width(len(known) - 1)
            current = bytes([value])
        if current:
            waiting |= known[current] << count
            out += waiting.to_bytes((count + bits + 7) // 8, "little")
        return bytes(out)

    def decode(self, data: bytes | memoryview, size: int) -> bytes:
        """The `size` bytes of these codes. ArchiveError if they are others."""
        known = [bytes([value]) for value in range(256)]
        out = bytearray()
        waiting = count = at = 0
        bits = _FIRST_BITS
        last = b""
        while len(out) < size:
            while count < bits:
                if at == len(data):
                    raise ArchiveError(f"lzw: the data end after {len(out)} of {size} bytes")
                waiting |= data[at] << count
                at += 1
                count += 8
            code = waiting & (1 << bits) - 1
            waiting >>= bits
            count -= bits
            string = self._string(known, code, last)
            if last and len(known) < 1 << _MOST_BITS:
                known.append(last + string[:1])
            out += string
            last = string
            bits = _width(len(known))
        if len(out) > size or at < len(data) or waiting:
            raise ArchiveError(f"lzw: the data hold more than the {size} bytes declared")
        return bytes(out)

    def _string(self, known: list[bytes], code: int, last: bytes) -> bytes:
        if code < len(known):
            return known[code]
        if code == len(known) and last and len(known) < 1 << _MOST_BITS:
            return last + last[:1]  # the code that is made just now
        raise ArchiveError(f"lzw: code {code} of {len(known)} is damaged")


def _width(next_code: int) -> int:
    """Bits of the next code, where `next_code` is the one that reading it will make."""
    return min(_MOST_BITS, max(_FIRST_BITS, next_code.bit_length()))
