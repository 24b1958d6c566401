import math

import numpy as np

from modelzip.archive.integers import kernels


def test_tables_of_logarithms_and_powers_are_rounded_down():
    for n in (1, 2, 3, 100, 1000, 4095):
        assert kernels.LOG2[n] == math.floor(8 * math.log2(n))
    for n in (0, 8, 20, 47, 95):
        assert kernels.EXP2[n] == math.floor(2 ** (n / 8))


def test_rates_halve_as_often_as_symbols_double():
    assert kernels.RATES[[0, 1023]].tolist() == [2, 9]
    assert (np.diff(kernels.RATES) >= 0).all()
    assert kernels.FINE_RATES.min() >= 1


def test_every_symbol_keeps_a_frequency_whatever_is_seen():
    rng = np.random.default_rng(0)
    tables = kernels.make_tables(np.array([0, 0, 1, 2, 3, 4, 5, 6, 0]))
    counts = np.zeros(len(tables), np.int64)
    for context in (0, kernels.CONTEXTS - 1):
        for symbol in (*[15] * 300, *[0] * 3000, *rng.integers(0, 16, 300), *[7] * 6000):
            kernels._adapt(tables, counts, context, symbol, kernels.RATES)
            assert np.diff(tables[context]).min() >= 1 << kernels.SPARE
        assert (tables[context, 0], tables[context, -1]) == (0, kernels.TOTAL)
