"""Functions that numba compiles, where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

Function = TypeVar("Function", bound=Callable[..., Any])


def jit(function: Function) -> Function:
    """`function` compiled at its first call, or as it is where numba is not installed."""
    try:
        import numba
    except ImportError:
        return function
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:  # no folder in which to keep compiled code
        return cast(Function, numba.njit(nogil=True)(function))


def jit_or(plain: Function) -> Callable[[Function], Function]:
    """A decorator: compiled or, without numba, `plain`, the same in fewer steps of Python."""

    def choose(function: Function) -> Function:
        compiled = jit(function)
        return plain if compiled is function else compiled

    return choose
