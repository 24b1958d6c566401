"""A recipe's `store`: how training data are kept before anything is trained on them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from modelzip.core import checks
from modelzip.data.base import Normalised, length
from modelzip.data.corruptions import scale_of
from modelzip.data.fewer import CHOICES, NEAR, coreset, take, unchanging, without_duplicates
from modelzip.data.packed import PackedArrays, PackedDataset, pack
from modelzip.data.packed.pack import PackedData
from modelzip.data.pipeline import Pipeline
from modelzip.errors import ArchiveError, DataError, OutputError, SettingError

DUPLICATES = ("exact", "near")
_OWN = ("duplicates", "coreset", "by", "path", "compare")
_TRIED = 8  # samples that show whether settings fit


@dataclass(frozen=True, kw_only=True)
class Store:
    """How training data are kept: fewer samples first, then `pack` with all settings it has.

    Args:
        codec, filters, level, chunk, single, bits, dtype, threshold, noise, jpeg, webp: of `pack`.
        duplicates: leave out "exact" ones, or "near" ones too (`without_duplicates`).
        coreset: keep this fraction of each class, chosen with the recipe's model.
        by: what a coreset is chosen by: "loss", "embedding" or "random".
        path: of the file, in place of train.mzd in the folder of the run; a packed dataset that is
            there is replaced.
        compare: carry out the steps on the original data as well, to tell what storing costs. It
            doubles the time of training.

    >>> Store(bits=5, coreset=50)
    Traceback (most recent call last):
    modelzip.errors.SettingError: coreset must be a fraction in (0, 1], got 50; for 50 % write 0.5
    """

    codec: str = "zstd"
    filters: str | Sequence[str] = "auto"
    level: int | None = None
    chunk: int = 256
    single: bool = False
    bits: int | None = None
    dtype: str | None = None
    threshold: float | None = None
    noise: bool = False
    jpeg: int | None = None
    webp: int | None = None
    duplicates: str | None = None
    coreset: float | None = None
    by: str = "loss"
    path: str | None = None
    compare: bool = True

    def __post_init__(self) -> None:
        if self.duplicates is not None:
            checks.choice("duplicates", self.duplicates, DUPLICATES)
        if self.coreset is not None:
            checks.fraction("coreset", self.coreset, zero=False, one=True)
        checks.choice("by", self.by, CHOICES)
        if self.coreset is None and self.by != "loss":
            raise SettingError(f"by={self.by} chooses a coreset; give coreset too, such as 0.5")
        checks.flag("compare", self.compare)
        if self.path is not None and not (isinstance(self.path, str) and self.path):
            raise SettingError(f"path must be the path of a file to write, got {self.path!r}")

    @property
    def uses_model(self) -> bool:
        """Whether a model has to look at the samples."""
        return self.coreset is not None and self.by != "random"

    def packing(self) -> dict[str, Any]:
        """The settings of `pack`."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _OWN}


class Kept(NamedTuple):
    """Training data as they are stored, and how many samples went before."""

    train: PackedArrays
    packed: PackedData
    duplicates: int
    left_out: int


def check_store(store: Store, train: Dataset[Any]) -> None:
    """Raise what `keep` would: a few samples are packed, and nothing is left behind.

    SettingError, DataError or MissingExtraError where the settings do not fit the data;
    OutputError where `path` is of something else.
    """
    whole = _whole(train)
    if isinstance(whole, PackedArrays):
        raise SettingError(f"store: the training data are packed already, {whole.data.path}")
    few = take(unchanging(train), range(min(_TRIED, length(train))))
    with tempfile.TemporaryDirectory() as scratch:
        PackedArrays(_packed(few, Path(scratch) / "few.mzd", store)[0])
    if store.duplicates == "near":
        without_duplicates(few, near=NEAR)
    if store.path is not None:
        _check_place(Path(store.path))


def keep(
    train: Dataset[Any], path: Path, store: Store, *, model: nn.Module, seed: int, progress: bool
) -> Kept:
    """Leave out samples, pack the others in random order into `path`, and read them from there.

    In random order, since chunks are shuffled but samples of far chunks do not meet in a batch.
    """
    chosen, total = train, length(train)
    if store.duplicates is not None:
        near = NEAR if store.duplicates == "near" else None
        chosen = without_duplicates(train, near=near)
    distinct = length(chosen)
    if store.coreset is not None:
        chosen = coreset(model, chosen, store.coreset, by=store.by, seed=seed)
    order = torch.randperm(length(chosen), generator=torch.Generator().manual_seed(seed))
    data, packed = _packed(take(unchanging(chosen), order.tolist()), path, store, progress=progress)
    return Kept(trainable(data, train), packed, total - distinct, distinct - packed.count)


def trainable(data: PackedDataset, train: Dataset[Any]) -> PackedArrays:
    """`data` normalised and augmented as `train`, which it was packed from."""
    whole = _whole(train)
    if isinstance(whole, Pipeline):
        how = {"crop": whole.crop, "seed": whole.seed}
        return PackedArrays(data, mean=whole.mean, std=whole.std, **how)
    if _has_pixels(train):
        scale = scale_of(train)
        return PackedArrays(data, mean=scale.mean, std=scale.std)
    return PackedArrays(data)


class _Pixels(Dataset[Any]):
    """The pixels of normalised images, uint8, which they must have been."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self._dataset, self._scale = dataset, scale_of(dataset)

    def __len__(self) -> int:
        return length(self._dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Any]:
        inputs, label = self._dataset[index]
        exact = self._scale.pixels(inputs[None])[0] * 255
        pixels = exact.round()
        if float((exact - pixels).abs().max()) > 0.01:
            raise DataError(
                f"image {index} has values between the 256 steps of uint8, as which images that "
                "are normalised are stored; give them as they are read from a file"
            )
        return pixels.byte(), label


def _has_pixels(dataset: Dataset[Any]) -> bool:
    whole = _whole(dataset)
    return isinstance(whole, Normalised) and not isinstance(whole, Pipeline)


def _whole(dataset: Dataset[Any]) -> Dataset[Any]:
    """What a `Subset` is of."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return dataset


def _packed(
    dataset: Dataset[Any], path: Path, store: Store, *, progress: bool = False
) -> tuple[PackedDataset, PackedData]:
    source = _Pixels(dataset) if _has_pixels(dataset) else dataset
    packed = pack(source, path, progress=progress, **store.packing())
    return PackedDataset(path), packed


def _check_place(path: Path) -> None:
    """OutputError where nothing can be written, or something of the user's would be lost."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        raise OutputError(
            f"store: cannot write {path}: it is a folder, or in one that is not there"
        )
    if not path.exists():
        return
    try:
        PackedDataset(path)
    except ArchiveError as error:
        raise OutputError(
            f"store: {path} is there, and no packed dataset; give another path"
        ) from error
