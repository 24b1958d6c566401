from __future__ import annotations

import numpy as np
import pytest

from modelzip.archive.codecs import codec
from modelzip.errors import ArchiveError


def joined(codes):
    """Codes in as many bits as 255, 256, 257 ... have, highest first."""
    bits = "".join(f"{code:0{(255 + i).bit_length()}b}" for i, code in enumerate(codes))
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def refused(data, size, text):
    with pytest.raises(ArchiveError, match=rf"^lzw: {text}, in {len(data)} bytes that are"):
        codec("lzw").decode(data, size)


def test_codes_by_hand():
    codes = joined([97, 98, 256, 258])  # a, b, ab, and aba, which ends in its own first byte
    assert codec("lzw").encode(b"abababa") == codes
    assert codec("lzw").decode(codes, 7) == b"abababa"


def test_equal_bytes_are_ever_longer_strings():
    assert codec("lzw").encode(b"a" * 10) == joined([97, 256, 257, 258])


@pytest.mark.parametrize("size", [65_000, 131_000, 400_000])
def test_all_begins_anew_when_16_bits_are_full(size):
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    assert codec("lzw").decode(codec("lzw").encode(data), size) == data


def test_a_code_before_its_string_is_refused():
    refused(joined([97, 257]), 3, "code 257 comes before its string")


def test_more_bytes_are_refused_before_they_are_many():
    refused(joined([97, *range(256, 2000)]), 100, "more bytes than declared are found")


def test_what_is_left_over_is_refused():
    refused(joined([97, 98])[:-1], 2, "8 bits are left over and not zeros")
    refused(joined([97, 98])[:-1] + b"\x01", 2, "7 bits are left over and not zeros")
