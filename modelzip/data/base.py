"""What a data source gives, and batches of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler, default_collate

from modelzip.core import imports
from modelzip.errors import DataError, SettingError


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Three map-style datasets whose items are (inputs, label), and the number of classes.

    `inputs` is a tensor, a tuple of tensors (positional arguments) or a dict of them (keywords);
    a label is an integer in [0, classes). `validation` is a slice that the source cut off the
    training data, un-augmented; `test` is for final figures alone.

    A dataset may define `__getitems__(indices)` that returns one collated (inputs, targets) pair,
    which is much faster in memory, and `set_epoch(epoch)` (see `Augmented`).

    `names` are those of the classes, in order, for the report. `files` are texts, by file name,
    that a run leaves beside the exported model since its user needs them, such as a tokenizer's.
    """

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    classes: int
    names: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.names and len(self.names) != self.classes:
            raise DataError(f"there are {len(self.names)} names for {self.classes} classes")
        for name in self.files:
            if not name or Path(name).name != name:
                raise DataError(f"files: {name!r} must be a file's name, without a folder")


class Augmented(Dataset[Any]):
    """A dataset whose random augmentation depends on the epoch alone, so that runs resume.

    Called with the epoch, counted from 0, before each pass over the data.
    """

    def set_epoch(self, epoch: int) -> None:
        """Draw the augmentation of `epoch`."""
        raise NotImplementedError


class Normalised(Dataset[Any]):
    """A dataset of images that says how they were normalised: (pixels in [0, 1] - mean) / std.

    `mean` and `std` have a value a channel; both are empty where inputs are the pixels themselves.
    """

    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()


class Texts(Dataset[Any]):
    """A dataset that cuts texts into tokens itself: `texts` are as they were written, one a sample.

    Its texts can then be corrupted where tokens could not.
    """

    texts: tuple[str, ...] = ()

    def rewritten(self, indices: Sequence[int], texts: Sequence[str]) -> Dataset[Any]:
        """The samples at `indices`, with `texts` in place of their own."""
        raise NotImplementedError


class Shuffled(Sampler[int]):
    """Indices below `size` in an order that depends on the seed and the epoch alone.

    Args:
        share: this process's number and the count of processes; of each run of `count` indices
            it takes one, so the batches of all processes together are those of one process.
    """

    def __init__(self, size: int, *, seed: int, share: tuple[int, int] = (0, 1)) -> None:
        self.size = size
        self.seed = seed
        self.share = share
        self.epoch = 0

    def __len__(self) -> int:
        return self.size // self.share[1]

    def __iter__(self) -> Iterator[int]:
        index, count = self.share
        order = torch.randperm(self.size, generator=generator_for(self.seed, self.epoch))
        return iter(order[: len(self) * count][index::count].tolist())


class Ordered(Dataset[Any]):
    """A dataset that is read much faster in some random orders than in others."""

    def shuffled(self, *, seed: int, share: tuple[int, int] = (0, 1)) -> Shuffled:
        """The random order that suits it; arguments as of `Shuffled`."""
        raise NotImplementedError


def shuffled(dataset: Dataset[Any], *, seed: int, share: tuple[int, int] = (0, 1)) -> Shuffled:
    """A random order of `dataset`: its own where it has one."""
    if isinstance(dataset, Ordered):
        return dataset.shuffled(seed=seed, share=share)
    return Shuffled(length(dataset), seed=seed, share=share)


def generator_for(*numbers: int) -> torch.Generator:
    """A CPU generator whose stream belongs to these numbers, such as a seed and an epoch.

    >>> generator_for(0, 1).initial_seed() == generator_for(1, 0).initial_seed()
    False
    """
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def length(dataset: Dataset[Any]) -> int:
    """The number of items; DataError for a dataset that has none to tell."""
    try:
        return len(dataset)  # type: ignore[arg-type]  # torch leaves __len__ off Dataset
    except TypeError as error:
        raise DataError(
            f"{type(dataset).__name__} has no length; data must be map-style, with __len__"
        ) from error


def loader(
    dataset: Dataset[Any],
    *,
    batch_size: int,
    shuffle: bool = False,
    seed: int = 0,
    drop_last: bool = False,
    share: tuple[int, int] = (0, 1),
) -> DataLoader[Any]:
    """Batches (inputs, targets) of a map-style dataset; targets are int64, shape [N].

    The order with `shuffle` depends on `seed` and on the epoch, which `set_epoch` sets; `share`
    then leaves one of several processes its part (see `Shuffled`). It is the dataset's own where
    it has one: a packed dataset is read chunk by chunk.

    >>> data = [(torch.ones(2), 1), (torch.zeros(2), 0)]
    >>> inputs, targets = next(iter(loader(data, batch_size=2)))
    >>> inputs.shape, targets
    (torch.Size([2, 2]), tensor([1, 0]))
    """
    size = length(dataset)
    if size == 0:
        raise DataError(f"{type(dataset).__name__} is empty; there is nothing to load")
    if batch_size < 1:
        raise SettingError(f"batch_size must be at least 1, got {batch_size}")
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=shuffled(dataset, seed=seed, share=share) if shuffle else None,
        drop_last=drop_last,
        collate_fn=collate,
    )


def set_epoch(batches: DataLoader[Any], epoch: int) -> None:
    """Set the order, and the augmentation where the dataset has one, of the next pass."""
    if isinstance(batches.sampler, Shuffled):
        batches.sampler.epoch = epoch
    if isinstance(batches.dataset, Augmented):
        batches.dataset.set_epoch(epoch)


def collate(batch: Any) -> tuple[Any, Tensor]:
    """(inputs, targets), targets int64, of a list of items or of what is collated already."""
    # a list holds single items, whether fetched one by one or through Subset.__getitems__
    inputs, targets = default_collate(batch) if isinstance(batch, list) else batch
    return inputs, torch.as_tensor(targets).long()


def build(target: str, /, *, beside: str | Path | None = None, **arguments: Any) -> Splits:
    """The `Splits` that the function `target`, "module:function", returns for `arguments`.

    Args:
        beside: a folder in which the module is looked for first, such as a recipe's own.

    Raises:
        SettingError: no such module, function or argument, or the result is not `Splits`.

    >>> build("modelzip.data:digits", sed=1)
    Traceback (most recent call last):
    modelzip.errors.SettingError: modelzip.data:digits has no argument 'sed'; did you mean 'seed'?
    """
    splits = imports.call(target, arguments, beside=beside)
    if not isinstance(splits, Splits):
        raise SettingError(f"{target} returned {type(splits).__name__}; it must return Splits")
    return splits
