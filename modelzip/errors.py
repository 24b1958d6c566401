"""Every error modelzip raises on purpose.

::

    ModelzipError
     ├─ SettingError        a setting, recipe or command is wrong (also a ValueError)
     ├─ SelectionError      a layer selector matches nothing
     ├─ ModelError          the model cannot be handled as it is
     ├─ DataError           data is missing, or of the wrong shape, type or range
     ├─ ExportError         the ONNX file could not be made, or no runtime here runs it
     ├─ OutputError         a result could not be written
     ├─ ArchiveError        an archive is damaged, unknown, or asks for more than it may
     └─ MissingExtraError   an optional dependency is absent; names the extra (also an ImportError)

Each says what is wrong, the value, where, and what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ModelzipError(Exception):
    """Base of all errors that modelzip raises on purpose."""


class SettingError(ModelzipError, ValueError):
    """A setting, recipe or command is wrong."""


class SelectionError(ModelzipError):
    """A layer selector matches nothing."""


class ModelError(ModelzipError):
    """The model cannot be handled as it is."""


class DataError(ModelzipError):
    """Data is missing, or of the wrong shape, type or range."""


class ExportError(ModelzipError):
    """The ONNX file could not be made, or no runtime here runs it."""


class OutputError(ModelzipError):
    """A result could not be written."""


class ArchiveError(ModelzipError):
    """An archive is damaged, of an unknown version, or asks for more than it may."""


class MissingExtraError(ModelzipError, ImportError):
    """An optional dependency is absent.

    >>> raise MissingExtraError("Pillow", extra="images", purpose="reading images")
    Traceback (most recent call last):
    modelzip.errors.MissingExtraError: reading images needs Pillow: pip install 'modelzip[images]'
    """

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs {package}: pip install 'modelzip[{extra}]'")


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Ending for an error about an unknown `name`: the nearest choice, or all of them.

    >>> did_you_mean("sparsty", ["sparsity", "scope"])
    "; did you mean 'sparsity'?"
    >>> did_you_mean("x", ["sparsity", "scope"])
    '; there are: scope, sparsity'
    """
    known = sorted(choices)
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(known)}"


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its class where it has none.

    >>> first_line(ValueError("no such file\\ntry another"))
    'no such file'
    """
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
