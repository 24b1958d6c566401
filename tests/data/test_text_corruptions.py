import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelzip.data.text_corruptions import TEXTS, corrupt_text
from modelzip.errors import SettingError

TEXT = "Well, it's free! Call 555-1234 now; reply (quickly) & win $500."
MARKS = sum(letter in ",'!-;()&$." for letter in TEXT)


def corrupted(kind: str, level: float, seed: int = 0, text: str = TEXT) -> str:
    return corrupt_text(text, kind, level, np.random.default_rng(seed))


@given(st.text(max_size=40), st.sampled_from(sorted(TEXTS)), st.integers(0, 99))
def test_any_text_is_corrupted_the_same_by_the_same_seed(text, kind, seed):
    level = 1 if TEXTS[kind].whole else 0.5
    assert corrupted(kind, level, seed, text) == corrupted(kind, level, seed, text)


def test_marks_are_left_out():
    assert corrupted("dropped_punctuation", 1.0) == (
        "Well its free Call 5551234 now reply quickly  win 500"
    )
    left = [len(corrupted("dropped_punctuation", 0.3, seed)) for seed in range(300)]
    assert len(TEXT) - np.mean(left) == pytest.approx(0.3 * MARKS, abs=0.3)


def test_marks_become_others_and_letters_stay():
    found = corrupted("noised_punctuation", 1.0)
    assert len(found) == len(TEXT)
    changed = [(a, b) for a, b in zip(TEXT, found, strict=True) if a != b]
    assert len(changed) == MARKS
    assert all(b in ".,;:!?'-" for _, b in changed)
    assert corrupted("noised_punctuation", 1.0, text="“a”")[1] == "a"


def test_the_first_words_are_left():
    assert corrupted("truncated", 3) == "Well, it's free!"
    assert corrupted("truncated", 100) == TEXT


def test_words_are_mistyped_or_left_out():
    assert len(corrupted("typos", 1.0).split()) == len(TEXT.split())
    assert corrupted("typos", 1.0) != TEXT
    assert len(corrupted("dropped_words", 0.5).split()) < len(TEXT.split())


@pytest.mark.parametrize(
    ("kind", "level", "message"),
    [
        ("typo", 0.5, "corruption .*'typo'.* did you mean 'typos'"),
        ("typos", 0, "typos: share of words that are mistyped must be a number from 1e-06 to 1"),
        ("truncated", 2.5, "truncated: words that are left must be an integer from 1 to 10000"),
    ],
)
def test_kinds_and_levels_are_checked(kind, level, message):
    with pytest.raises(SettingError, match=message):
        corrupted(kind, level)
