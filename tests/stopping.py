"""Stopping a run at a checkpoint, as a kill would, but in this process."""

from contextlib import contextmanager

from modelzip.core import checkpoint


class Stopped(BaseException):
    """Stands for the kill."""


@contextmanager
def stop_after(count):
    """Raise Stopped right after checkpoint number `count` was written."""
    write, written = checkpoint.write, 0

    def counting(*arguments, **settings):
        nonlocal written
        write(*arguments, **settings)
        written += 1
        if written == count:
            raise Stopped

    checkpoint.write = counting
    try:
        yield
    finally:
        checkpoint.write = write
