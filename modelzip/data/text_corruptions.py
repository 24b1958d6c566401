"""What happens to texts on their way to a model: words and marks mistyped, left out, cut off."""

from __future__ import annotations

import string
import unicodedata
from collections.abc import Callable

import numpy as np

from modelzip.data.corruptions import Kind, check_level
from modelzip.data.typos import mistyped

_MARKS = ".,;:!?'-"  # what a mark turns into


def corrupt_text(text: str, kind: str, level: float, generator: np.random.Generator) -> str:
    """`text` corrupted.

    Words are apart at white space. Marks are Unicode's punctuation and ASCII's, such as $ and +.

    Args:
        kind: a name in `TEXTS`.
        level: what its `level` there says.

    Raises:
        SettingError: no such kind or level.

    >>> corrupt_text("Well, it's free!", "dropped_punctuation", 1.0, np.random.default_rng(0))
    'Well its free'
    """
    check_level(kind, level, kinds=TEXTS)
    return TEXTS[kind].apply(text, level, generator)


def _typos(text: str, share: float, generator: np.random.Generator) -> str:
    return mistyped(text, generator, typos=share)


def _dropped_words(text: str, share: float, generator: np.random.Generator) -> str:
    return mistyped(text, generator, dropped=share)


def _dropped_punctuation(text: str, share: float, generator: np.random.Generator) -> str:
    return _rewritten(text, share, generator, lambda mark: "")


def _noised_punctuation(text: str, share: float, generator: np.random.Generator) -> str:
    def other(mark: str) -> str:
        others = _MARKS.replace(mark, "")
        return others[int(generator.integers(len(others)))]

    return _rewritten(text, share, generator, other)


def _truncated(text: str, words: float, _: np.random.Generator) -> str:
    return " ".join(text.split()[: int(words)])


def _rewritten(
    text: str, share: float, generator: np.random.Generator, new: Callable[[str], str]
) -> str:
    draws = generator.random(len(text))
    return "".join(
        new(letter) if drawn < share and _is_mark(letter) else letter
        for letter, drawn in zip(text, draws, strict=True)
    )


def _is_mark(letter: str) -> bool:
    return letter in string.punctuation or unicodedata.category(letter).startswith("P")


TEXTS: dict[str, Kind[Callable[[str, float, np.random.Generator], str]]] = {
    "typos": Kind(_typos, 1e-6, 1, False, "share of words that are mistyped"),
    "dropped_words": Kind(_dropped_words, 1e-6, 0.999, False, "share of words left out"),
    "dropped_punctuation": Kind(_dropped_punctuation, 1e-6, 1, False, "share of marks left out"),
    "noised_punctuation": Kind(
        _noised_punctuation, 1e-6, 1, False, "share of marks that become others"
    ),
    "truncated": Kind(_truncated, 1, 10_000, True, "words that are left"),
}
