"""Figures and tables as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tabulate import tabulate

from modelzip.report.requirements import Outcome

Rows = Sequence[Sequence[object]]
OUTCOMES = ["required", "limit", "measured", "met"]


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


def section(title: str, rows: Rows, headers: Sequence[str]) -> str:
    """A table of a Markdown page under a heading; empty without rows."""
    return f"## {title}\n\n{table(rows, headers, form='github')}" if rows else ""


def headline(name: str, outcomes: Sequence[Outcome], *, passed: bool) -> str:
    """The first line of every rendering of a run.

    >>> headline("a", (), passed=True)
    'PASS: a, 0 of 0 requirements met'
    """
    met = sum(outcome.met for outcome in outcomes)
    return f"{'PASS' if passed else 'FAIL'}: {name}, {met} of {len(outcomes)} requirements met"


def outcome_rows(outcomes: Sequence[Outcome]) -> Rows:
    """Cells under the headers of `OUTCOMES`."""
    return [[o.name, o.required, o.measured, "yes" if o.met else "NO"] for o in outcomes]


def hash_section(hashes: Mapping[str, str]) -> str:
    """The files of a run, by name."""
    rows = [[name, f"`{sha256}`"] for name, sha256 in hashes.items()]
    return section("Files", rows, ["file", "SHA-256"])
