"""The model of the context coder, compiled where numba is installed, and how it reads words.

**Words.** The state x of a block starts as its first two words, the first being the upper half.
A symbol is the entry s with start[s] <= x mod 2**15 < start[s + 1] in a table of 16; x becomes
(start[s + 1] - start[s]) * (x >> 15) + x mod 2**15 - start[s]. Raw bits are the lowest of x, which
is shifted right by as many. After either, while x < 2**31, x becomes x * 2**32 + the next word.
At the end of a block x is 2**31. (Asymmetric numeral systems, Duda 2013,
https://arxiv.org/abs/1311.2540.)

**Tables.** A table holds start[s] * 2**12 as integers, 0 to 2**27, of which start[s] is rounded
down, and adapts after each symbol s: with n the symbols it saw before, 1023 at most, and r =
`RATES[n]`, or `FINE_RATES[n]` if it is of the second kind, an entry e becomes e + ((t - e) >> r),
rounded down, where t is from `TARGETS[s]`. Entries stay 2**12 apart, so every symbol keeps a
frequency. `make_tables` says what they start from. Tables are kept from tensor to tensor, for each
limit apart.

**Values.** A symbol is 7 + b or, for negatives, 7 - b: b is 0 for 0, 1 to 7 a bucket of
magnitudes, and 8 an escape, with magnitude limit + 1. Of an integer's place in a bucket of 2**n
magnitudes the upper 3 bits (or n, if less) are a symbol of a second table, and the rest are raw.

**Contexts.** The first table is chosen by a scale, 0 to 31, and by a prediction, 0 to 10; the
second by the scale, the bucket, and whether the sign is as predicted. The scale is the logarithm,
in half octaves, of the mean magnitude to expect: row's mean times column's over that of all rows,
with what was seen of the kernel. A prediction is a weighted sum of the taps to the left and above,
by its sign and its size against the scale. `code_rows` defines each in integers: means are of 256,
in logarithms of 1/8 octave of 1/32; a tensor's means start from 51 * limit + 8.

Importing this module imports numba, which takes half a second: import it where the coder is used.
What is compiled stays in this one module with its constants, as numba knows by the file's time
whether code that it kept is still good. It checks no bounds: whatever the words are, every index
is bounded, if arrays have the sizes that `code_rows` asks for.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from modelzip.archive.integers.jit import jit, jit_or

PRECISION = 15  # bits of a frequency
SPARE = 12  # bits more that tables keep, so that small changes add up
TOTAL = 1 << (PRECISION + SPARE)
SYMBOLS = 16
ZERO = 7  # the symbol of 0; buckets of magnitudes are so far from it, negative ones below
FINE_BITS = 3  # of a place in a bucket that adapt; further ones are raw

SCALES = 32
LEVELS = 11  # of the neighbours' prediction: none, or one of 5 with one of two signs
AGREEMENTS = 3
FINE_CONTEXT = SCALES * LEVELS
CONTEXTS = FINE_CONTEXT + SCALES * AGREEMENTS * (ZERO + 1)

LEFT, UP, UP_LEFT, UP_RIGHT = 32, 24, -10, 4  # weights of neighbours in a prediction, of 64
PRIOR_TAPS = 8  # of a kernel, that count as much as what is known before it
SMALLEST = 8  # mean magnitude, of 256


def _rates(offset: int, slowest: int = 9, length: int = 1024) -> Any:
    """How far a table moves at its n-th symbol: the nearest 1 / 2**r to 1 / (n + offset)."""
    rates = [0] * length
    for count in range(length):
        while (count + offset) ** 2 > 2 << 2 * rates[count]:
            rates[count] += 1
    return np.array([min(max(rate, 1), slowest) for rate in rates])


_EIGHTHS = [65536, 71468, 77936, 84990, 92682, 101070, 110218, 120194]  # 2**(i / 8 + 16)
LOG2 = np.array([0] + [(n**8).bit_length() - 1 for n in range(1, 4096)], np.int32)  # of 1/8
EXP2 = np.array([_EIGHTHS[n % 8] << n // 8 >> 16 for n in range(96)])
SHARES = np.array([65536 // min(n + 8, 256) for n in range(249)])  # of the n-th in a mean, of 65536
RATES = _rates(3)
FINE_RATES = _rates(4)
TARGETS = np.array(  # where entries go after a symbol: it has all but 1 for each other
    [
        [(n << SPARE) + (TOTAL - (SYMBOLS << SPARE)) * (n > symbol) for n in range(SYMBOLS)]
        for symbol in range(SYMBOLS)
    ],
    np.int32,
)

_I = np.int64
_U = np.uint64
START = 1 << 31  # the state that encoding starts from, and the least between symbols
_LOW = _U(START)  # constants are typed: int64 with uint64 would be float64
_HALF = _U(32)
_HALF_MASK = _U(0xFFFFFFFF)
_PRECISION = _U(PRECISION)
_SLOTS = _U((1 << PRECISION) - 1)


def make_tables(bits: Any) -> Any:
    """Where symbols start, times 2**SPARE, in each context before any: all that occur alike.

    `bits`: of a place in each bucket.
    """
    tables = np.empty((CONTEXTS, SYMBOLS + 1), np.int32)
    tables[:FINE_CONTEXT] = _even(SYMBOLS - 1)
    for bucket, places in enumerate(bits):
        tables[FINE_CONTEXT + bucket :: ZERO + 1] = _even(1 << min(int(places), FINE_BITS))
    return tables


def _even(symbols: int) -> list[int]:
    share = (TOTAL - (SYMBOLS << SPARE)) // symbols
    starts = [min(n, symbols) * share + (n << SPARE) for n in range(SYMBOLS)]
    return [*starts, TOTAL]


@jit
def _word(words: Any, at: Any) -> Any:
    return _U(words[min(at, words.size - 1)])  # where they are cut off, the last again and again


@jit
def _refill(state: Any, words: Any, at: Any) -> Any:
    low = state < _LOW
    fuller = (state << _HALF) | _word(words, at)  # needed or not: quicker than a branch
    return (fuller if low else state), at + _I(low)


def _count_to_by_numpy(table: Any, last: Any) -> Any:
    return table.searchsorted(last, "right")


@jit_or(_count_to_by_numpy)
def _count_to(table: Any, last: Any) -> Any:
    """How many entries are at most `last`."""
    count = np.int32(0)
    for entry in range(SYMBOLS):
        count += np.int32(table[entry] <= last)
    return count


@jit
def _take_symbol(state: Any, words: Any, at: Any, table: Any) -> Any:
    slot = _I(state & _SLOTS)
    last = np.int32(((slot + 1) << SPARE) - 1)
    after = _count_to(table, last)
    start = _I(table[after - 1]) >> SPARE
    end = _I(table[after]) >> SPARE
    state = _U(end - start) * (state >> _PRECISION) + _U(slot - start)
    state, at = _refill(state, words, at)
    return _I(after) - 1, state, at


@jit
def _symbol_record(table: Any, symbol: Any) -> Any:
    """What `put_words` has to know of a symbol: where it starts, and its frequency, never 0."""
    start = _I(table[symbol]) >> SPARE
    end = _I(table[symbol + 1]) >> SPARE
    return np.uint32((start << 16) | (end - start))


@jit
def _raw_record(value: Any, bits: Any) -> Any:
    return np.uint32((value << 21) | (bits << 16))  # its frequency reads as 0


def _adapt_by_numpy(tables: Any, counts: Any, context: Any, symbol: Any, rates: Any) -> None:
    table = tables[context, :SYMBOLS]
    table += TARGETS[symbol] - table >> np.int32(rates[counts[context]])
    counts[context] = min(counts[context] + 1, rates.size - 1)


@jit_or(_adapt_by_numpy)
def _adapt(tables: Any, counts: Any, context: Any, symbol: Any, rates: Any) -> None:
    count = counts[context]
    rate = np.int32(rates[count])
    table = tables[context]
    target = TARGETS[symbol]
    for entry in range(SYMBOLS):
        step = np.int32(np.int32(target[entry] - table[entry]) >> rate)
        table[entry] = np.int32(table[entry] + step)
    counts[context] = count + (count < rates.size - 1)


@jit
def _predict(values: Any, at: Any, tap: Any, width: Any) -> Any:
    """What the taps before this one in its kernel suggest, times 64."""
    x = tap % width
    guess = _I(0)
    if x > 0:
        guess += LEFT * _I(values[at - 1])
    if tap >= width:
        guess += UP * _I(values[at - width])
        if x > 0:
            guess += UP_LEFT * _I(values[at - width - 1])
        if x < width - 1:
            guess += UP_RIGHT * _I(values[at - width + 1])
    return guess


@jit
def code_rows(
    encoding: Any,
    values: Any,
    words: Any,
    at: Any,
    records: Any,
    taps: Any,
    width: Any,
    buckets: Any,
    bases: Any,
    bits: Any,
    tables: Any,
    counts: Any,
    columns: Any,
    means: Any,
) -> Any:
    """Fill `records` from `values` or, not encoding, `values` from `words`; then adapt alike.

    values   int16 [rows, columns, taps], flat
    words    uint32, read from index `at`
    records  uint32, 3 a value
    taps, width  of a kernel, and how many are in a row of it
    buckets  int64, of each magnitude;  bases, bits  int64 [9], smallest magnitude and extra bits
             of each bucket
    tables   int32 [CONTEXTS, SYMBOLS + 1];  counts  int64 [CONTEXTS], of symbols seen
    columns  int64 [columns], mean magnitudes of 256;  means  int64 [2]: the running mean of
             rows, and the number of rows that were

    Returns (index after the words read or records made, the state at the end, and whether a
    magnitude came out that no encoder writes).
    """
    state = _LOW
    made = 0
    wrong = False
    if not encoding:
        state = (_word(words, at) << _HALF) | _word(words, at + 1)
        at += 2
    limit = bases[ZERO + 1] - 1
    place = 0
    for _ in range(values.size // (columns.size * taps)):
        typical = max(means[0], SMALLEST)
        row_mean = typical
        share = SHARES[min(means[1] if taps == 1 else 2 * means[1], SHARES.size - 1)]
        for column in range(columns.size):
            known = columns[column]
            prior = LOG2[row_mean >> 3] + _I(LOG2[known >> 3]) - LOG2[typical >> 3]
            prior = min(max(prior, 0), EXP2.size - 1)
            weight = EXP2[prior] * PRIOR_TAPS * 8
            total = _I(0)
            for tap in range(taps):
                scale = prior
                level = 0
                sign = 1
                if taps > 1:
                    mean = ((total << 8) + weight) * (65536 // (tap + PRIOR_TAPS)) >> 19
                    scale = _I(LOG2[min(mean, LOG2.size - 1)])
                    guess = _predict(values, place, tap, width) if tap > 0 else _I(0)
                    sign = 1 if guess >= 0 else -1
                    size = LOG2[min(abs(guess) >> 1, LOG2.size - 1)] - scale + 32
                    level = _I(size >= 8) + _I(size >= 16) + _I(size >= 24)
                    level += _I(size >= 30) + _I(size >= 36)
                scale = min(scale >> 2, SCALES - 1)
                context = scale * LEVELS + (level if sign > 0 or level == 0 else level + 5)
                magnitude = _I(0)
                if encoding:
                    magnitude = abs(_I(values[place]))
                    bucket = buckets[magnitude]
                    symbol = ZERO + bucket if values[place] >= 0 else ZERO - bucket
                    records[made] = _symbol_record(tables[context], symbol)
                    made += 1
                else:
                    symbol, state, at = _take_symbol(state, words, at, tables[context])
                    bucket = abs(symbol - ZERO)
                    magnitude = bases[bucket]
                _adapt(tables, counts, context, symbol, RATES)
                if bits[bucket] > 0:
                    agreement = 0
                    if level > 1:
                        agreement = 1 if (symbol > ZERO) == (sign > 0) else 2
                    fine = FINE_CONTEXT + (scale * AGREEMENTS + agreement) * (ZERO + 1) + bucket
                    raw_bits = max(bits[bucket] - FINE_BITS, 0)
                    offset = magnitude - bases[bucket]
                    raw = offset & ((1 << raw_bits) - 1)
                    symbol_of_fine = offset >> raw_bits
                    if encoding:
                        records[made] = _symbol_record(tables[fine], symbol_of_fine)
                        made += 1
                    else:
                        symbol_of_fine, state, at = _take_symbol(state, words, at, tables[fine])
                        wrong |= symbol_of_fine >> (bits[bucket] - raw_bits) > 0
                    _adapt(tables, counts, fine, symbol_of_fine, FINE_RATES)
                    if not encoding:  # none of 0 bits is quicker than a branch
                        raw = _I(state) & ((1 << raw_bits) - 1)
                        state, at = _refill(state >> _U(raw_bits), words, at)
                    elif raw_bits > 0:
                        records[made] = _raw_record(raw, raw_bits)
                        made += 1
                    magnitude = bases[bucket] + (symbol_of_fine << raw_bits) + raw
                if not encoding:
                    values[place] = magnitude if symbol >= ZERO else -magnitude
                total += min(magnitude, limit)
                place += 1
            mean = (total << 8) * (65536 // taps) >> 16
            row_mean += (mean - row_mean) * SHARES[min(column, SHARES.size - 1)] >> 16
            columns[column] = known + ((mean - known) * share >> 16)
        means[0] += (row_mean - means[0]) * SHARES[min(means[1], 15)] >> 16
        means[1] += 1
    return (made if encoding else at), state, wrong


@jit
def put_words(records: Any, made: Any, words: Any) -> Any:
    """Fill the end of `words` with what `code_rows` reads; returns the index of the first."""
    state = _LOW
    at = words.size
    for number in range(made - 1, -1, -1):
        record = _I(records[number])
        frequency = record & 0xFFFF
        if frequency > 0:
            if state >= _U(frequency) << _U(63 - PRECISION):
                at -= 1
                words[at] = np.uint32(state & _HALF_MASK)
                state >>= _HALF
            part = state // _U(frequency)
            slot = state - part * _U(frequency) + _U(record >> 16)
            state = (part << _PRECISION) + slot
        else:
            bits = (record >> 16) & 31
            if state >= _U(1) << _U(63 - bits):
                at -= 1
                words[at] = np.uint32(state & _HALF_MASK)
                state >>= _HALF
            state = (state << _U(bits)) | _U(record >> 21)
    words[at - 1] = np.uint32(state & _HALF_MASK)
    words[at - 2] = np.uint32(state >> _HALF)
    return at - 2
