"""Figures and tables as text."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

Rows = Sequence[Sequence[object]]


def table(rows: Rows, headers: Sequence[str], *, form: str = "simple") -> str:
    """A table; without a first header the other columns are figures, and align right.

    >>> print(table([["file", "3 KB"]], ["", "size"]))
            size
    ----  ------
    file    3 KB
    """
    align = ["left"] + ["right"] * (len(headers) - 1) if rows and headers[0] == "" else None
    return tabulate(rows, headers=headers, tablefmt=form, disable_numparse=True, colalign=align)


def percent(fraction: float) -> str:
    """A fraction as a percentage.

    >>> percent(0.9173)
    '91.73 %'
    """
    return f"{100 * fraction:.2f} %"


def kilobytes(size_bytes: float) -> str:
    """A size in units of 1000 bytes.

    >>> kilobytes(1132400)
    '1132.4 KB'
    """
    return f"{size_bytes / 1000:.1f} KB"


def count(number: float) -> str:
    """A whole number with its thousands apart.

    >>> count(269034)
    '269,034'
    """
    return f"{number:,.0f}"


def times(new: float, old: float) -> str:
    """The ratio of `new` to `old`; empty where there is none.

    >>> times(1, 4), times(1, 0)
    ('0.250x', '')
    """
    return f"{new / old:.3f}x" if old else ""
