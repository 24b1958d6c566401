from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from modelzip.archive.codecs.bits import BitWriter, read

PAIRS = st.integers(1, 16).flatmap(lambda w: st.tuples(st.integers(0, 2**w - 1), st.just(w)))


@given(st.lists(st.lists(PAIRS, max_size=30), max_size=4))
def test_integers_are_joined_and_come_back(parts):
    writer = BitWriter()
    for part in parts:
        values, widths = np.array(part, np.int64).reshape(-1, 2).T
        writer.write(values, widths)
    pairs = [pair for part in parts for pair in part]
    bits = "".join(f"{value:0{width}b}" for value, width in pairs)
    expected = int(bits + "0" * (-len(bits) % 8), 2) if bits else 0
    assert writer.data == expected.to_bytes((len(bits) + 7) // 8, "big")
    if pairs:
        values, widths = np.array(pairs).T
        found = read(memoryview(writer.data), np.cumsum(widths) - widths, widths)
        np.testing.assert_array_equal(found, values)
