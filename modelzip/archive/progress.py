"""The progress bar of packing and unpacking."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]
_WAIT_S = 1.0  # before a bar is shown


@contextmanager
def advancing(what: str, total: int, *, shown: bool) -> Iterator[Advance]:
    """A function that is told of bytes done; after a second it shows how many on stderr.

    >>> with advancing("packing", 100, shown=False) as advance:
    ...     advance(50)
    """
    if not shown:
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    began = time.monotonic()
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task("", total=total)

    def advance(count: int) -> None:
        progress.advance(task, count)
        if not progress.live.is_started and time.monotonic() - began > _WAIT_S:
            progress.start()

    try:
        yield advance
        progress.update(task, completed=total)
    finally:
        progress.stop()
