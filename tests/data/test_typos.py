import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip.data.typos import mistyped
from modelzip.errors import SettingError

TEXT = "free entry in a weekly competition to win final tickets"


def drawn(seed: int, **shares: float) -> str:
    return mistyped(TEXT, np.random.default_rng(seed), **shares)


def test_nothing_happens_at_no_share():
    assert mistyped("  as  it\tis ", np.random.default_rng(0)) == "  as  it\tis "
    assert mistyped("", np.random.default_rng(0), dropped=0.9, typos=0.9) == ""


def test_the_share_of_words_is_left_out():
    words = TEXT.split()
    left = [drawn(seed, dropped=0.3).split() for seed in range(300)]
    assert all(set(found) <= set(words) for found in left)
    share = 1 - np.mean([len(found) / len(words) for found in left])
    assert share == pytest.approx(0.3, abs=0.03)


@given(st.integers(0, 2**32 - 1))
def test_one_word_stays(seed):
    assert drawn(seed, dropped=0.999).split()[0] in TEXT


@given(st.integers(0, 2**32 - 1))
def test_every_error_is_a_letter_less_doubled_or_swapped(seed):
    for word, found in zip(TEXT.split(), drawn(seed, typos=1.0).split(), strict=True):
        if len(word) < 3:
            assert found == word
            continue
        assert found[0] == word[0]
        spots = range(1, len(word) - 1)
        less = {word[:i] + word[i + 1 :] for i in spots}
        doubled = {word[: i + 1] + word[i:] for i in spots}
        swapped = {word[:i] + word[i + 1] + word[i] + word[i + 2 :] for i in spots}
        assert found in less | doubled | swapped


def test_the_share_of_words_is_mistyped():
    changed = [
        sum(a != b for a, b in zip(TEXT.split(), drawn(seed, typos=0.2).split(), strict=True))
        for seed in range(300)
    ]
    # 8 of the 10 words have 3 letters or more; a swap of equal letters changes nothing
    assert np.mean(changed) == pytest.approx(0.2 * 8, abs=0.25)


def test_the_generator_alone_decides():
    assert drawn(3, dropped=0.2, typos=0.2) == drawn(3, dropped=0.2, typos=0.2)
    assert drawn(3, dropped=0.2, typos=0.2) != drawn(4, dropped=0.2, typos=0.2)


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ({"dropped": 1.0}, r"dropped must be a fraction in \[0, 1\), got 1.0"),
        ({"typos": 20}, r"typos must be a fraction in \[0, 1\], got 20; for 20 % write 0.2"),
    ],
)
def test_shares_out_of_range_are_refused(shares, message):
    with pytest.raises(SettingError, match=message):
        drawn(0, **shares)
