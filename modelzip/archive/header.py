"""The header of a safetensors file, read within bounds.

A safetensors file is: the length of its header, 8 bytes, little-endian; the header, a JSON object
padded with spaces; the data. https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from modelzip.errors import ArchiveError, first_line

PREFIX = 8
MAX_HEADER = 32 << 20  # a hundred thousand tensors need about half of it
MAX_DEPTH = 32


def has_header(view: memoryview) -> bool:
    """Whether a file starts like safetensors: a length that fits in it, and a brace.

    >>> has_header(memoryview(b"\\x02\\0\\0\\0\\0\\0\\0\\0{}"))
    True
    >>> has_header(memoryview(b"\\x08\\x0a\\x12\\x07pytorch"))
    False
    """
    length = int.from_bytes(view[:PREFIX], "little")
    return len(view) > PREFIX and length <= len(view) - PREFIX and view[PREFIX] == ord("{")


def read_header(view: memoryview) -> tuple[dict[str, Any], int]:
    """The header's entries, and the offset where data starts. ArchiveError where it is not one."""
    if len(view) < PREFIX:
        raise ArchiveError(f"the file ends at byte {len(view)}, inside the length of its header")
    length = int.from_bytes(view[:PREFIX], "little")
    if length > MAX_HEADER:
        raise ArchiveError(
            f"its header claims {length} bytes, and at most {MAX_HEADER} are read: it is another "
            "kind of file, or damaged"
        )
    if length > len(view) - PREFIX:
        raise ArchiveError(
            f"its header claims {length} bytes, and the file ends {len(view) - PREFIX} bytes on"
        )
    text = bytes(view[PREFIX : PREFIX + length])
    if not text.startswith(b"{"):
        raise ArchiveError(f"byte {PREFIX} is not {{, as a header's first is")
    header: dict[str, Any] = parse_json(text, "its header")
    return header, PREFIX + length


def parse_json(text: bytes, what: str) -> Any:
    """The value of UTF-8 JSON from anywhere: no duplicate keys, NaN or deep nesting.

    >>> parse_json(b'{"a": 1, "a": 2}', "the spec")
    Traceback (most recent call last):
    modelzip.errors.ArchiveError: the spec is no readable JSON: 'a' appears twice in an object
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ArchiveError(f"{what} is no readable JSON: {first_line(error)}") from error
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
    if level:
        raise ArchiveError(f"{what} nests values more than {MAX_DEPTH} deep")
    return value


def is_text(name: str) -> bool:
    """Whether a string is Unicode: half a surrogate pair is not, and no other program reads it."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"{twice[:100]!r} appears twice in an object")
    return made


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")
