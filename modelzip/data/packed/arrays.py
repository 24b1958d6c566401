"""A packed dataset, normalised and augmented like data in memory."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from modelzip.data.base import Ordered, Shuffled
from modelzip.data.packed.dataset import PackedDataset
from modelzip.data.pipeline import Pipeline
from modelzip.errors import DataError


class PackedArrays(Pipeline, Ordered):
    """What `ArrayDataset` is, of a packed dataset: a batch is read, augmented and normalised.

    `modelzip.data.loader` reads it chunk by chunk. Arguments after `data` are those of
    `ArrayDataset`. DataError where samples differ in length, since they make no batch.

    >>> import tempfile, torch
    >>> from modelzip.data import ArrayDataset, pack
    >>> images = torch.full((4, 1, 2, 2), 255, dtype=torch.uint8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pack(ArrayDataset(images, torch.arange(4)), f"{folder}/a.mzd", bits=1).path
    ...     data = PackedArrays(PackedDataset(file), mean=[0.25], std=[0.5])
    ...     inputs, targets = data.__getitems__([1, 3])
    >>> round(float(inputs.max()), 3), targets.tolist()  # (192 / 255 - 0.25) / 0.5
    (1.006, [1, 3])
    """

    def __init__(
        self,
        data: PackedDataset,
        *,
        mean: Sequence[float] = (),
        std: Sequence[float] = (),
        crop: int = 0,
        seed: int = 0,
    ) -> None:
        if data.form.shape is None:
            raise DataError(f"{data.path}: samples differ in length, and make no batch")
        self.data = data
        shape = (len(data), *data.form.shape)
        super().__init__(shape, data.labels, mean=mean, std=std, crop=crop, seed=seed)

    def plain(self) -> PackedArrays:
        """The same data without augmentation, which may be read in any order: for a look at them.

        Nothing is copied.
        """
        same = super().plain()
        same.data = self.data.in_any_order()
        return same

    def _raw(self, chosen: Tensor) -> Tensor:
        return self.data.batch(chosen.tolist())[0]

    def shuffled(self, *, seed: int, share: tuple[int, int] = (0, 1)) -> Shuffled:
        """The order of the packed dataset itself."""
        return self.data.shuffled(seed=seed, share=share)
