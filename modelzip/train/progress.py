"""The progress bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Tell(Protocol):
    """Takes the step, and what there is to say of it."""

    def __call__(self, *, step: int, epoch: int, loss: float, accuracy: float) -> None: ...


def _silent(*, step: int, epoch: int, loss: float, accuracy: float) -> None:
    pass


@contextmanager
def bar(*, total: int, epochs: int, shown: bool, labelled: bool = True) -> Iterator[Tell]:
    """A function to call after each step; shows loss, accuracy and time left on stderr.

    Without labels, `labelled=False`, there is no accuracy to show.

    >>> with bar(total=10, epochs=2, shown=False) as tell:
    ...     tell(step=1, epoch=1, loss=0.5, accuracy=0.9)
    """
    if not shown:
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("loss {task.fields[loss]:.4f}"),
        *([TextColumn("accuracy {task.fields[accuracy]:.2%}")] if labelled else []),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=total, epoch=0, epochs=epochs, loss=0.0, accuracy=0.0)

        def tell(*, step: int, epoch: int, loss: float, accuracy: float) -> None:
            progress.update(task, completed=step, epoch=epoch, loss=loss, accuracy=accuracy)

        yield tell
