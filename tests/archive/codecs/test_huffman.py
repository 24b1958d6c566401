from __future__ import annotations

import heapq

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip.archive.codecs import codec
from modelzip.archive.codecs.huffman import code_lengths
from modelzip.errors import ArchiveError

# a has code 0, b 10, c 110, d 111: 97 bytes without, lengths 1, 2, 3, 3, and 155 bytes without
LENGTHS = bytes.fromhex("060 1233 09a".replace(" ", ""))
CODES = bytes([0b0000_1010, 0b110_111_1_0])


def refused(data, size, text):
    with pytest.raises(ArchiveError, match=rf"^huffman: {text}, in {len(data)} bytes that are"):
        codec("huffman").decode(data, size)


def test_codes_by_hand():
    assert codec("huffman").encode(b"aaaabbcd") == LENGTHS + CODES
    assert codec("huffman").decode(LENGTHS + CODES, 8) == b"aaaabbcd"


def test_a_byte_that_is_alone_takes_a_bit():
    assert len(codec("huffman").encode(bytes(80_000))) == 10_000 + 1 + 3  # 1 1 0 fd, and 1 bit


@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=40).filter(lambda c: sum(map(bool, c)) > 1)
)
def test_lengths_are_the_best_there_are(counts):
    heap = [count for count in counts if count]
    heapq.heapify(heap)
    best = 0  # bits by Huffman's own algorithm: each merge adds one to all below
    while len(heap) > 1:
        merged = heapq.heappop(heap) + heapq.heappop(heap)
        best += merged
        heapq.heappush(heap, merged)
    lengths = code_lengths(counts)
    assert int(np.dot(lengths, counts)) == best
    assert (lengths > 0).tolist() == [count > 0 for count in counts]


def test_lengths_are_at_most_12_and_complete():
    counts = [1, 1]
    while len(counts) < 24:
        counts.append(counts[-1] + counts[-2])
    lengths = code_lengths(counts)
    assert lengths.max() == 12
    assert sum(2.0 ** -int(length) for length in lengths) == 1


def test_size_is_within_a_tenth_of_a_bit_of_the_entropy():
    drawn = np.random.default_rng(0).normal(0, 20, 300_000).round().astype(np.int8)
    share = np.unique(drawn, return_counts=True)[1] / drawn.size
    coded = codec("huffman").encode(drawn.data)
    assert 8 * len(coded) / drawn.size < -(share * np.log2(share)).sum() + 0.1


@pytest.mark.parametrize("size", [2047, 2048, 2049, 4096, 65_537])
def test_parts_join(size):
    data = np.random.default_rng(0).integers(0, 256, size, np.uint8).tobytes()
    assert codec("huffman").decode(codec("huffman").encode(data), size) == data


def test_lengths_must_be_whole_and_complete():
    refused(LENGTHS[:3], 8, "data end within the lengths of codes")
    not_complete = "the lengths of codes are not those of a complete code"
    refused(bytes.fromhex("0601333 09a".replace(" ", "")) + CODES, 8, not_complete)
    refused(bytes.fromhex("0601111 09a".replace(" ", "")) + CODES, 8, not_complete)
    refused(bytes.fromhex("06012ff 09a".replace(" ", "")) + CODES, 8, not_complete)
    refused(bytes.fromhex("0601233 09b".replace(" ", "")) + CODES, 8, not_complete)  # 257 bytes


def test_codes_must_end_where_data_do():
    text = r"codes end at bit \d+ and not at the last that is 1"
    refused(LENGTHS + CODES, 7, text)
    refused(LENGTHS + CODES + b"\0", 8, text)
    refused(LENGTHS + CODES[:1] + b"\xdf", 8, text)
    refused(LENGTHS + CODES, 12, r"only \d+ bytes are found")
