"""Functions named as "module:function", and calling them with a user's keyword arguments."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from modelzip.errors import SettingError, did_you_mean


def resolve(target: str, *, beside: str | Path | None = None) -> Callable[..., Any]:
    """The function that `target`, "module:function", names.

    Args:
        target: an importable module, a colon, and the name of a function or class in it.
        beside: a folder to look for the module in first, as Python does for a script's own.
            It stays on `sys.path`, since the function may import its neighbours later.

    Raises:
        SettingError: the form is wrong, or the module or the function is missing.

    >>> resolve("math:sqrt")(9.0)
    3.0
    >>> resolve("math:sqr")
    Traceback (most recent call last):
    modelzip.errors.SettingError: module math has no function 'sqr'; did you mean 'sqrt'?
    """
    module_name, colon, name = target.partition(":") if isinstance(target, str) else ("", "", "")
    if not (colon and module_name and name):
        raise SettingError(f"build must be 'module:function', got {target!r}")
    module = _import(module_name, None if beside is None else Path(beside).resolve())
    try:
        found = getattr(module, name)  # also finds what a module exports lazily
    except AttributeError as error:
        public = [n for n in dir(module) if not n.startswith("_")]
        functions = [n for n in public if callable(getattr(module, n, None))]
        raise SettingError(
            f"module {module_name} has no function {name!r}{did_you_mean(name, functions)}"
        ) from error
    if not callable(found):
        raise SettingError(f"{target} is {found!r:.60}, which is not a function")
    function: Callable[..., Any] = found
    return function


def call(target: str, arguments: Mapping[str, Any], *, beside: str | Path | None = None) -> Any:
    """Call the function `target` names; SettingError where `arguments` do not fit its signature.

    >>> call("statistics:mean", {"dta": [1.0]})
    Traceback (most recent call last):
    modelzip.errors.SettingError: statistics:mean has no argument 'dta'; did you mean 'data'?
    """
    function = resolve(target, beside=beside)
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # some builtins have no signature to check against
        return function(**arguments)
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    known = [p.name for p in named]
    for name in arguments:
        if name not in known and not open_ended:
            hint = did_you_mean(name, known) if known else "; it takes none"
            raise SettingError(f"{target} has no argument {name!r}{hint}")
    missing = [p.name for p in named if p.default is p.empty and p.name not in arguments]
    if missing:
        raise SettingError(f"{target} needs {', '.join(missing)}")
    return function(**arguments)


def _import(name: str, folder: Path | None) -> ModuleType:
    if folder is not None and str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # the module is there; something that it imports is not
        where = f" in {folder} or" if folder is not None else ""
        raise SettingError(
            f"there is no module {name!r}{where} on Python's path (no {error.name!r}); "
            "put it beside the recipe or install its package"
        ) from error
    _refuse_namesake(name, module, folder)
    return module


def _refuse_namesake(name: str, module: ModuleType, folder: Path | None) -> None:
    """A module of the same name, loaded earlier from elsewhere, would be used in silence."""
    if folder is None or module.__file__ is None:
        return
    wanted = folder.joinpath(*name.split(".")).with_suffix(".py")
    if wanted.is_file() and Path(module.__file__).resolve() != wanted.resolve():
        raise SettingError(
            f"module {name!r} is already loaded from {module.__file__}, so {wanted} cannot be; "
            "rename one of them"
        )
