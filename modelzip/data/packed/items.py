"""The samples of any map-style dataset as arrays, chunk by chunk, each checked."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from modelzip.data.arrays import ArrayDataset, in_hand
from modelzip.data.base import length
from modelzip.data.packed.coding import Items
from modelzip.data.packed.form import DTYPES
from modelzip.errors import DataError

Array = NDArray[Any]
Labels = NDArray[np.int64]


class Kind(NamedTuple):
    """What all samples of a dataset have in common; a shape of None is one row of any length."""

    dtype: str
    shape: tuple[int, ...] | None
    text: bool

    def __str__(self) -> str:
        shape = "[any length]" if self.shape is None else list(self.shape)
        return "bytes" if self.text else f"{self.dtype} {shape}"


class Source:
    """A dataset to be packed: its length, the kind of its samples, and chunks of them.

    Of an `ArrayDataset`, or a `Subset` of one, it is what is held in memory, before normalisation
    and augmentation.
    A dataset of rows, whose lengths may differ, is read twice.

    Raises:
        DataError: it is empty, or an item is no pair of inputs and a label like those before it.
    """

    def __init__(self, dataset: Dataset[Any] | Sequence[Any]) -> None:
        self.count = length(dataset)  # type: ignore[arg-type]  # a list is as good
        if not self.count:
            raise DataError(f"{type(dataset).__name__} is empty; there is nothing to pack")
        self._dataset = in_hand(dataset)
        self.kind = self._kind()

    def chunks(self, size: int) -> Iterator[tuple[Items, Labels]]:
        """Samples and labels, `size` at a time, and at the end those that are left."""
        for start in range(0, self.count, size):
            stop = min(start + size, self.count)
            if isinstance(self._dataset, ArrayDataset):
                held = self._dataset
                yield Items(held.inputs[start:stop].numpy()), held.targets[start:stop].numpy()
            else:
                yield self._read(start, stop)

    def _kind(self) -> Kind:
        if isinstance(self._dataset, ArrayDataset):
            inputs = self._dataset.inputs
            return self._kind_of(inputs[0], 0)
        first = self._kind_of(self._item(0)[0], 0)
        if first.text or first.shape is None or len(first.shape) != 1:
            return first
        for index in range(1, self.count):  # rows: are all as long?
            kind = self._kind_of(self._item(index)[0], index)
            if kind.shape != first.shape:
                return first._replace(shape=None)
        return first

    def _read(self, start: int, stop: int) -> tuple[Items, Labels]:
        rows, labels = [], []
        for index in range(start, stop):
            inputs, label = self._item(index)
            kind = self._kind_of(inputs, index)
            found = kind if self.kind.shape is not None else kind._replace(shape=None)
            if found != self.kind or (self.kind.shape is None and len(kind.shape or (0,)) != 1):
                raise DataError(
                    f"item {index} is {kind}, and those before it are {self.kind}; give all the "
                    "same size and type: only rows and bytes may differ in length"
                )
            rows.append(_array(inputs))
            labels.append(_label(label, index))
        if self.kind.shape is None:
            lengths = np.array([len(row) for row in rows], np.uint32)
            return Items(np.concatenate(rows)[None], lengths), np.array(labels, np.int64)
        return Items(np.stack(rows)), np.array(labels, np.int64)

    def _item(self, index: int) -> tuple[Any, Any]:
        item = self._dataset[index]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise DataError(
                f"item {index} is {type(item).__name__}; it must be a pair (inputs, label), and "
                "the label 0 where there is none"
            )
        return item[0], item[1]

    def _kind_of(self, inputs: Any, index: int) -> Kind:
        if isinstance(inputs, bytes):
            return Kind("uint8", None, True)
        if not isinstance(inputs, (Tensor, np.ndarray)):
            raise DataError(
                f"inputs of item {index} are {type(inputs).__name__}; they must be a tensor, an "
                "array or bytes (numpy.asarray makes an array of an image)"
            )
        dtype = str(inputs.dtype).removeprefix("torch.")
        if dtype not in DTYPES:
            raise DataError(f"inputs of item {index} are {dtype}; use one of {', '.join(DTYPES)}")
        return Kind(dtype, tuple(inputs.shape), False)


def _array(inputs: Any) -> Array:
    if isinstance(inputs, bytes):
        return np.frombuffer(inputs, np.uint8)
    return inputs.detach().cpu().numpy() if isinstance(inputs, Tensor) else np.asarray(inputs)


def _label(label: Any, index: int) -> int:
    value = label.item() if isinstance(label, Tensor) and label.numel() == 1 else label
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise DataError(f"the label of item {index} is {value!r:.60}; it must be an integer")
    return int(value)
