"""Operators that a runtime says it cannot run."""

from __future__ import annotations

import re
from pathlib import Path

from modelzip.errors import ExportError

_NAMED = (
    r"error: ([\w.:]+)\(-?\d+\) is not a registered",  # onnxruntime, a domain it does not know
    r"No Op registered for (\S+) with",  # onnxruntime, an operator it does not know
    r"implementation for (\w+)\(\d+\)",  # onnxruntime, a type it has no kernel for
    r"input parameter \(.*?\) of operator \(([\w.]+)\)",  # onnxruntime, a type ONNX does not allow
    r"No conversion rule found for operations: (.+)",  # OpenVINO
    r"Conversion is failed for: (.+)",  # OpenVINO
)


class UnsupportedError(ExportError):
    """A runtime cannot run the file `path` because it lacks `operators`."""

    def __init__(self, path: Path, runtime: str, operators: tuple[str, ...], reason: str) -> None:
        super().__init__(f"{path}: {runtime} cannot run {', '.join(operators)}: {reason}")


def refusal(path: Path, runtime: str, error: BaseException) -> ExportError:
    """What to raise where `runtime` did not load the file `path`: one line, operators by name."""
    if operators := unsupported(str(error)):
        return UnsupportedError(path, runtime, operators, one_line(error))
    return ExportError(f"{path}: {runtime} cannot load it: {one_line(error)}")


def unsupported(message: str) -> tuple[str, ...]:
    """Operators that a runtime's `message` names as those it cannot run; () for other messages.

    >>> unsupported("-- No conversion rule found for operations: acme.Blah, NonZero-21")
    ('acme.Blah', 'NonZero')
    """
    found = [names for pattern in _NAMED for names in re.findall(pattern, message)]
    names = [name.strip() for group in found for name in group.split(",")]
    return tuple(dict.fromkeys(re.sub(r"-\d+$", "", name) for name in names if name))


def one_line(error: BaseException) -> str:
    """The message of `error` on one line of at most 300 characters.

    >>> one_line(ValueError("a\\n  b"))
    'a b'
    """
    text = " ".join(str(error).split())
    return text if len(text) <= 300 else text[:297] + "..."
