"""Messages as people in a hurry write them: words left out, letters mistyped."""

from __future__ import annotations

import numpy as np

from modelzip.core import checks

_SHORTEST = 3  # letters of a word that is mistyped; a shorter one would be another word


def mistyped(
    text: str, generator: np.random.Generator, *, dropped: float = 0.0, typos: float = 0.0
) -> str:
    """`text` with each word left out with probability `dropped`, mistyped with that of `typos`.

    A typing error leaves a letter out, doubles it, or swaps it with the next, none of them the
    word's first. Words are apart at white space; of a text at least one stays, and `text` itself
    where both are 0. Wei & Zou 2019, https://arxiv.org/abs/1901.11196, without their synonyms.

    >>> mistyped("free entry to win", np.random.default_rng(1), typos=0.5)
    'free entry to wiin'
    """
    checks.fraction("dropped", dropped)
    checks.fraction("typos", typos, one=True)
    words = text.split()
    if not words or dropped == typos == 0:
        return text
    draws = generator.random((len(words), 2))
    kept = draws[:, 0] >= dropped
    kept[int(draws[:, 0].argmax())] = True
    return " ".join(
        _mistype(word, generator) if typed < typos and len(word) >= _SHORTEST else word
        for word, typed, stays in zip(words, draws[:, 1], kept, strict=True)
        if stays
    )


def _mistype(word: str, generator: np.random.Generator) -> str:
    at = int(generator.integers(1, len(word) - 1))
    before, letter, following, after = word[:at], word[at], word[at + 1], word[at + 2 :]
    errors = (following, letter * 2 + following, following + letter)
    return before + errors[int(generator.integers(len(errors)))] + after
