"""Data that are not there, for those who may keep none to train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from torch.utils.data import Dataset

from modelzip.data.base import Splits
from modelzip.errors import DataError


class Absent(Dataset[Any]):
    """A dataset of which nothing is known: its length or an item is a DataError."""

    def __init__(self, split: str) -> None:
        self.split = split

    def __len__(self) -> int:
        self._refuse()

    def __getitem__(self, index: int) -> Any:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise DataError(
            f"there are no {self.split} data here, for evaluation alone; set calibration: "
            "synthetic, and data: generator where a finetune step is to train"
        )


def evaluation_only(test: Dataset[Any], *, classes: int, names: Sequence[str] = ()) -> Splits:
    """Splits of `test` alone, for `calibration: synthetic`; what else is read is a DataError.

    >>> from modelzip.data import digits
    >>> len(evaluation_only(digits().test, classes=10).train)
    Traceback (most recent call last):
    modelzip.errors.DataError: there are no training data here, for evaluation alone; set \
calibration: synthetic, and data: generator where a finetune step is to train
    """
    return Splits(
        train=Absent("training"),
        validation=Absent("validation"),
        test=test,
        classes=classes,
        names=tuple(names),
    )
