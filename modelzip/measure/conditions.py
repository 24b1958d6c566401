"""Which shifted data, attacks and faults two models are compared under."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from modelzip.core import checks
from modelzip.data.corruptions import KINDS, check_level
from modelzip.data.text_corruptions import TEXTS
from modelzip.errors import SettingError

ATTACKS = ("fgsm", "pgd")
FAULTS = "bit_flips"
CLEAN = "clean"
_OF = {"pgd_steps": ("pgd",), "attack_samples": ATTACKS, "draws": (FAULTS,)}
_IN_255THS = 1e-6  # how near a multiple of 1/255 an epsilon is one


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition, such as JPEG at quality 75.

    >>> print(Condition(kind="jpeg", level=75), Condition(kind="pgd", level=2 / 255), sep=", ")
    jpeg 75, pgd 2/255
    """

    kind: str
    level: float = 0.0

    def __str__(self) -> str:
        if self.kind == CLEAN:
            return CLEAN
        name, of_255 = self.kind.replace("_", " "), 255 * self.level
        if self.kind.startswith(ATTACKS) and abs(of_255 - round(of_255)) < _IN_255THS:
            return f"{name} {round(of_255)}/255"
        return f"{name} {self.level:g}"


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """The levels of each condition, and how many samples and draws.

    Args:
        samples: of the test data, evenly spread; fewer where there are fewer.
        jpeg, webp: qualities from 1 to 100. These and those up to brightness are of images.
        bits: a channel, from 1 to 8.
        gaussian: standard deviations of noise; pixels are in [0, 1].
        impulse: shares of values that turn black or white.
        blur: standard deviations in pixels.
        brightness: what is added to pixels in [0, 1].
        typos, dropped_words: shares of a text's words, mistyped or left out.
        dropped_punctuation, noised_punctuation: shares of its marks, left out or become others.
        truncated: how many of its first words are left.
        fgsm, pgd: largest changes of a pixel in [0, 1], also as "2/255", in one step along the
            gradient's sign, or in `pgd_steps` from a random start.
        attack_samples: how many of the samples are attacked, which takes gradients.
        bit_flips: chances that a bit of the file's weights is flipped; each in `draws` files.

    >>> [str(c) for c in Robustness(jpeg=[90, 75], fgsm=["1/255"]).conditions()]
    ['jpeg 90', 'jpeg 75', 'fgsm 1/255']
    """

    samples: int = 1000
    jpeg: tuple[int, ...] = ()
    webp: tuple[int, ...] = ()
    bits: tuple[int, ...] = ()
    gaussian: tuple[float, ...] = ()
    impulse: tuple[float, ...] = ()
    blur: tuple[float, ...] = ()
    brightness: tuple[float, ...] = ()
    typos: tuple[float, ...] = ()
    dropped_words: tuple[float, ...] = ()
    dropped_punctuation: tuple[float, ...] = ()
    noised_punctuation: tuple[float, ...] = ()
    truncated: tuple[int, ...] = ()
    fgsm: tuple[float, ...] = ()
    pgd: tuple[float, ...] = ()
    pgd_steps: int = 10
    attack_samples: int = 200
    bit_flips: tuple[float, ...] = ()
    draws: int = 5

    def __post_init__(self) -> None:
        for name in ("samples", "pgd_steps", "attack_samples", "draws"):
            checks.integer(name, getattr(self, name), low=1)
        for kinds in (KINDS, TEXTS):
            for kind in kinds:
                levels = [check_level(kind, level, kinds=kinds) for level in self._levels(kind)]
                self._set(kind, levels)
        for kind in ATTACKS:
            self._set(kind, [_epsilon(kind, level) for level in self._levels(kind)])
        rates = [checks.fraction(FAULTS, rate, zero=False) for rate in self._levels(FAULTS)]
        self._set(FAULTS, rates)
        if not any(True for _ in self.conditions()):
            raise SettingError("robustness names no condition; give one, such as jpeg: [75, 50]")
        self._check_used()

    def conditions(self) -> Iterator[Condition]:
        """Every condition asked for, the clean data aside."""
        for kind in (*KINDS, *TEXTS, *ATTACKS, FAULTS):
            for level in getattr(self, kind):
                yield Condition(kind=kind, level=level)

    def _check_used(self) -> None:
        """SettingError where a setting is given whose conditions are not."""
        for name, kinds in _OF.items():
            value = getattr(self, name)
            if value != getattr(Robustness, name) and not any(getattr(self, k) for k in kinds):
                raise SettingError(
                    f"{name} is {value}, and there is no {' or '.join(kinds)} that it is of; "
                    "leave it out"
                )

    def _levels(self, kind: str) -> list[Any]:
        found = getattr(self, kind)
        if not isinstance(found, (list, tuple)):
            raise SettingError(f"{kind} must be a list of levels, got {found!r}")
        return list(found)

    def _set(self, kind: str, levels: list[float]) -> None:
        object.__setattr__(self, kind, tuple(levels))


def _epsilon(kind: str, value: object) -> float:
    number = value
    if isinstance(value, str):
        try:
            number = float(Fraction(value))
        except (ValueError, ZeroDivisionError) as error:
            raise SettingError(f"{kind} must be a change such as 2/255, got {value!r}") from error
    return checks.fraction(kind, number, zero=False)
