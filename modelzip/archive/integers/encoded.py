"""What an integer codec makes of an array."""

from __future__ import annotations

from typing import Any, NamedTuple


class Encoded(NamedTuple):
    """An encoded array: JSON values that its decoder needs, beside shape and dtype, and bytes."""

    params: dict[str, Any]
    data: bytes
