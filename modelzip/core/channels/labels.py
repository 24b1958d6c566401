"""Labels: beside a tensor, the number of the channel that each of its elements carries; 0 for none.

A label is a float64 tensor of the shape of what it describes, so that every op that moves elements
about moves labels just as well. Along axes where it is constant it is expanded, and takes no room.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_Place = tuple[tuple[int, ...], tuple[int, ...], int]  # shape, strides and offset in a storage
_FOLDED = "_folded"  # an attribute of labels that need no folding: they are made all the time


def along(numbers: Tensor, axis: int, shape: Sequence[int]) -> Tensor:
    """`numbers` laid along `axis` of a label of this shape.

    >>> along(torch.tensor([1.0, 2.0]), 0, (2, 3)).tolist()
    [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    """
    sizes = [1] * len(shape)
    sizes[axis] = len(numbers)
    return _folded(numbers.view(sizes).expand(tuple(shape)))


def line(label: Tensor, axis: int) -> Tensor:
    """What lies along `axis` of a label: the largest number at each place.

    >>> line(along(torch.tensor([1.0, 2.0]), 1, (3, 2, 3)), 1).tolist()
    [1.0, 2.0]
    """
    (small,) = compact(label)
    found = small.amax([other for other in range(small.dim()) if other != axis])
    return found.expand(label.shape[axis])


def spread(label: Tensor, shape: Sequence[int]) -> Tensor:
    """`label` expanded to `shape`."""
    if label.shape == shape:
        return label
    wide = label.expand(tuple(shape))
    return _folded(wide) if hasattr(label, _FOLDED) else wide


def broadcast(*labels: Tensor) -> list[Tensor]:
    """`labels` expanded to one shape."""
    return list(torch.broadcast_tensors(*labels))  # type: ignore[no-untyped-call]


def compact(*labels: Tensor) -> list[Tensor]:
    """`labels` broadcast together, cut to length 1 along the axes where all are expanded."""
    views = broadcast(*labels) if len(labels) > 1 else list(labels)
    strides = [view.stride() for view in views]
    shape = list(views[0].shape)
    for axis, size in enumerate(shape):
        if size > 1 and not any(stride[axis] for stride in strides):
            shape[axis] = 1
    if shape == list(views[0].shape):
        return views
    return [view.as_strided(shape, stride) for view, stride in zip(views, strides, strict=True)]


def fold(label: Tensor) -> Tensor | None:
    """`label`, expanded along every axis where it is constant; None if it is zero all over."""
    if hasattr(label, _FOLDED):
        return label
    (small,) = compact(label)
    for axis in range(small.dim()):
        if small.shape[axis] > 1:
            first = small.narrow(axis, 0, 1)
            if torch.equal(first, small.narrow(axis, 1, 1)) and bool((small == first).all()):
                small = first
    return _folded(small.expand(label.shape)) if bool(small.any()) else None


def _folded(label: Tensor) -> Tensor:
    setattr(label, _FOLDED, True)
    return label


def varying(label: Tensor) -> list[int]:
    """The axes along which a label is not constant.

    >>> varying(along(torch.tensor([1.0, 2.0]), 1, (3, 2, 3)))
    [1]
    """
    folded = fold(label)
    if folded is None:
        return []
    return [a for a in range(folded.dim()) if folded.shape[a] > 1 and folded.stride(a)]


def crossed(label: Tensor) -> bool:
    """Whether channels repeat along an axis along which others differ, as in a patchwork.

    >>> crossed(torch.tensor([[1.0, 2.0], [1.0, 2.0]])), crossed(torch.tensor([[1.0, 2.0], [3, 4]]))
    (False, False)
    >>> crossed(torch.tensor([[1.0, 2.0], [1.0, 4.0]]))
    True
    """
    (small,) = compact(label)
    lowest = torch.where(small > 0, small, torch.inf)  # zeros are no channels
    axes = range(small.dim())
    differ = [axis for axis in axes if bool((lowest.amin(axis) < small.amax(axis)).any())]
    alike = [axis for axis in axes if axis not in differ]
    numbers = small.amax(alike) if alike else small
    channels = numbers[numbers > 0].tolist()
    return len(differ) > 1 and len(set(channels)) < len(channels)


@dataclass
class _Record:
    """Labels of one storage: by place, or, once a part of it was overwritten, of every element."""

    storage: StorageWeakRef  # keeps no memory alive, only its address from being used again
    places: dict[_Place, Tensor] = field(default_factory=dict)
    flat: Tensor | None = None


class Labels:
    """The labels of the tensors alive, found again by where in which storage they lie.

    >>> labels, x = Labels(), torch.zeros(2, 2)
    >>> labels.set(x, along(torch.tensor([1.0, 2.0]), 1, x.shape))
    >>> labels.write(x[0], None)
    >>> labels.get(x).tolist()
    [[0.0, 0.0], [1.0, 2.0]]
    """

    def __init__(self) -> None:
        self._records: dict[int, _Record] = {}

    def get(self, tensor: Tensor) -> Tensor | None:
        """The label of `tensor`, or None if it carries no channel."""
        record = self._records.get(address(tensor))
        if record is None:
            return None
        if record.flat is not None:
            return fold(record.flat.as_strided(*_place(tensor)).clone())  # writes may follow
        return record.places.get(_place(tensor))

    def set(self, tensor: Tensor, label: Tensor | None) -> None:
        """Note the label of a new tensor or view."""
        if label is not None and (label := fold(label)) is not None:
            record = self._record(tensor)
            if record.flat is None:
                record.places[_place(tensor)] = label

    def _record(self, tensor: Tensor) -> _Record:
        key = address(tensor)
        if key not in self._records:
            storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
            self._records[key] = _Record(storage)
        return self._records[key]

    def write(self, tensor: Tensor, label: Tensor | None) -> None:
        """Note that `tensor` was overwritten, and with it all that shares its storage."""
        record = self._record(tensor)
        place = _place(tensor)
        size = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
        if record.flat is None and tensor.numel() == size and record.places.keys() <= {place}:
            record.places.clear()
            self.set(tensor, label)
            return
        if record.flat is None:
            record.flat = torch.zeros(size, dtype=torch.float64)
            for known, old in record.places.items():
                _put(record.flat, known, old)
        _put(record.flat, place, torch.zeros(()) if label is None else label)


def address(tensor: Tensor) -> int:
    """What stands for the storage of `tensor` while that is alive."""
    return int(tensor.untyped_storage()._cdata)


def _place(tensor: Tensor) -> _Place:
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset())


def _put(flat: Tensor, place: _Place, label: Tensor) -> None:
    """Write `label` at `place`, where elements may lie on top of each other."""
    index = torch.arange(len(flat)).as_strided(*place)
    flat[index.reshape(-1)] = label.to(flat).expand(index.shape).reshape(-1)
