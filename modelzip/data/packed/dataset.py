"""Reading a packed dataset."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from modelzip.archive.codecs import codec
from modelzip.archive.container import Reader
from modelzip.core import checks
from modelzip.data.base import Ordered, Shuffled
from modelzip.data.packed import coding
from modelzip.data.packed.coding import Items
from modelzip.data.packed.form import VERSION, Form, read_form
from modelzip.data.packed.pack import INPUTS, LABELS
from modelzip.data.packed.sampler import WINDOW, ChunkShuffled
from modelzip.errors import ArchiveError, DataError, SettingError

FREE_CHUNKS = 64  # decoded again before anybody asks what for
WASTE = 16  # samples decoded again for one that is read
_MOST = 1 << 40  # samples


class PackedDataset(Ordered):
    """The samples of a file that `pack` wrote: (inputs, label), as they were, by any index.

    Inputs are tensors of the dtype they were packed from, or `bytes`. Use it with any DataLoader,
    and `ChunkShuffled` as its sampler; workers may be forked or spawned. The file is mapped, and
    must not be changed while it is open. What is damaged, or cut off, is an error that names its
    samples when they are read; others still are.

    Args:
        path: of the file.
        cache: decoded chunks that are kept.
        random_access: read chunks in any order, even where each is decoded for few samples.

    Raises:
        ArchiveError: there is no such file, or its header is damaged.
        DataError: samples are damaged, or are read in an order that decodes all again and again.
    """

    def __init__(self, path: str | Path, *, cache: int = 8, random_access: bool = False) -> None:
        self.path = Path(path)
        self.cache = checks.integer("cache", cache, low=1)
        self.random_access = checks.flag("random_access", random_access)
        self._open()

    def _open(self) -> None:
        self._reader = Reader(self.path, whole=False)
        try:
            self.form, self._count = _described(self._reader, self.path)
        except ArchiveError:
            self._reader.close()
            raise
        self._chunks: OrderedDict[int, Items] = OrderedDict()
        self._labels: dict[int, NDArray[np.int64]] = {}
        self._tables: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        self._seen: set[int] = set()
        self._decoded = self._again = self._served = 0

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> tuple[Tensor | bytes, int]:
        (item,) = self.__getitems__([index])
        return item

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor | bytes, int]]:
        """Several samples, each chunk of theirs decoded once; ready for torch's default_collate."""
        if self.form.shape is not None:
            inputs, labels = self.batch(indices)
            return list(zip(inputs.unbind(), labels.tolist(), strict=True))
        numbers = self._numbers(indices)
        rows: list[Any] = [None] * len(numbers)
        for place, items, at in self._located(numbers):
            for where, index in zip(place.tolist(), at.tolist(), strict=True):
                row = items.one(index)
                rows[where] = row.tobytes() if self.form.text else torch.from_numpy(row.copy())
        return list(zip(rows, self._labels_of(numbers).tolist(), strict=True))

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs [B, ...] and labels [B], int64; DataError where samples differ in length."""
        if self.form.shape is None:
            raise DataError(f"{self.path}: samples differ in length; read them one by one")
        numbers = self._numbers(indices)
        found = np.empty((len(numbers), *self.form.shape), self.form.dtype)
        for place, items, at in self._located(numbers):
            found[place] = items.values[at]
        return torch.from_numpy(found), torch.from_numpy(self._labels_of(numbers))

    @property
    def labels(self) -> Tensor:
        """All labels, int64 [N]; no inputs are read."""
        # chunk by chunk: so many as the file says may not be there
        return torch.from_numpy(np.concatenate([*map(self._labels_in, range(self.chunk_count))]))

    def shuffled(self, *, seed: int, share: tuple[int, int] = (0, 1)) -> Shuffled:
        """`ChunkShuffled`, where it matters: not where samples are coded one by one, or all kept.

        Arguments are those of `Shuffled`.
        """
        if self.form.single or self.chunk_count <= self.cache:
            return Shuffled(len(self), seed=seed, share=share)
        window = max(1, min(WINDOW, self.cache // 2))  # a batch may be of two windows
        return ChunkShuffled(self, seed=seed, share=share, window=window)

    def in_any_order(self) -> PackedDataset:
        """The same file, still open, with `random_access`: for a few samples from everywhere."""
        same = object.__new__(type(self))
        same.__dict__.update(self.__dict__, random_access=True)
        return same

    def chunk_of(self, chunk: int) -> range:
        """The numbers of a chunk's samples."""
        return range(chunk * self.form.chunk, min((chunk + 1) * self.form.chunk, len(self)))

    @property
    def chunk_count(self) -> int:
        """Chunks in the file."""
        return -(-len(self) // self.form.chunk)

    def damaged(self) -> Iterator[tuple[range, str]]:
        """Read everything: runs of samples that cannot be read, and why."""
        for chunk in range(self.chunk_count):
            samples = self.chunk_of(chunk)
            try:
                self._labels_in(chunk)
                if not self.form.single:
                    self._decode(chunk)
                    continue
                self._table(chunk)
            except DataError as error:
                yield samples, str(error)
                continue
            for number in samples:
                try:
                    self._decode_one(number)
                except DataError as error:
                    yield range(number, number + 1), str(error)

    def _numbers(self, indices: Sequence[int]) -> NDArray[np.int64]:
        numbers = np.asarray(indices, np.int64).reshape(-1)
        wrong = (numbers < -len(self)) | (numbers >= len(self))
        if wrong.any():
            raise IndexError(f"index {numbers[wrong][0]} is out of range for {len(self)} items")
        return np.where(numbers < 0, numbers + len(self), numbers)

    def _located(
        self, numbers: NDArray[np.int64]
    ) -> Iterator[tuple[NDArray[np.int64], Items, NDArray[np.int64]]]:
        """For each chunk, or single sample: places in the batch, items, and indices in them."""
        if self.form.single:
            zero = np.zeros(1, np.int64)
            for index, number in enumerate(numbers.tolist()):
                yield zero + index, self._decode_one(number), zero
            return
        self._served += len(numbers)
        of = numbers // self.form.chunk
        for chunk in np.unique(of).tolist():
            (place,) = np.nonzero(of == chunk)
            yield place, self._cached(chunk), numbers[place] - chunk * self.form.chunk

    def _cached(self, chunk: int) -> Items:
        if chunk in self._chunks:
            self._chunks.move_to_end(chunk)
            return self._chunks[chunk]
        if chunk in self._seen:
            self._check_order()
        found = self._decode(chunk)
        self._decoded += len(found)
        self._again += len(found) * (chunk in self._seen)
        self._seen.add(chunk)
        self._chunks[chunk] = found
        if len(self._chunks) > self.cache:
            self._chunks.popitem(last=False)
        return found

    def _check_order(self) -> None:
        allowed = FREE_CHUNKS * self.form.chunk + WASTE * self._served
        if self._again > allowed and not self.random_access:
            raise DataError(
                f"{self.path}: {self._decoded} samples were decoded to read {self._served}, as "
                f"each chunk is of {self.form.chunk} and {self.cache} are kept; use "
                "ChunkShuffled(data) as the sampler, pack with single=True, or open with "
                f"cache={self.chunk_count}, which keeps all, or random_access=True"
            )

    def _decode(self, chunk: int) -> Items:
        samples = self.chunk_of(chunk)
        try:
            data = self._reader.blob(f"{INPUTS}{chunk}")
            return coding.decode(data, self.form, len(samples), first=samples.start)
        except ArchiveError as error:
            raise self._lost(samples, error) from error

    def _decode_one(self, number: int) -> Items:
        chunk, index = divmod(number, self.form.chunk)
        ends, sums = self._table(chunk)
        try:
            code = self._reader.part(f"{INPUTS}{chunk}", int(ends[index]), int(ends[index + 1]))
            if zlib.crc32(code) != sums[index]:
                raise ArchiveError("its CRC-32 is wrong, or the file is cut short before its end")
            return coding.decode_one(code, self.form, number=number)
        except ArchiveError as error:
            raise self._lost(range(number, number + 1), error) from error

    def _table(self, chunk: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if chunk not in self._tables:
            samples, name = self.chunk_of(chunk), f"{INPUTS}{chunk}"
            try:
                head = self._reader.part(name, 0, coding.table_bytes(len(samples)))
                size = self._reader.blobs[name].size
                self._tables[chunk] = coding.read_table(head, len(samples), size)
            except ArchiveError as error:
                raise self._lost(samples, error) from error
        return self._tables[chunk]

    def _labels_of(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        of, found = numbers // self.form.chunk, np.empty(len(numbers), np.int64)
        for chunk in np.unique(of).tolist():
            here = of == chunk
            found[here] = self._labels_in(chunk)[numbers[here] - chunk * self.form.chunk]
        return found

    def _labels_in(self, chunk: int) -> NDArray[np.int64]:
        if chunk not in self._labels:
            samples = self.chunk_of(chunk)
            try:
                data = self._reader.blob(f"{LABELS}{chunk}")
                raw = codec("zlib").decode(data, 8 * len(samples))
            except ArchiveError as error:
                raise self._lost(samples, error, "labels of ") from error
            self._labels[chunk] = np.frombuffer(raw, "<i8")
        return self._labels[chunk]

    def _lost(self, samples: range, error: ArchiveError, what: str = "") -> DataError:
        which = f"samples {samples[0]} to {samples[-1]} are"
        if len(samples) == 1:
            which = f"sample {samples[0]} is"
        reason = str(error).removeprefix(f"{self.path} is ")
        return DataError(f"{self.path}: {what}{which} lost, the others are not: {reason}")

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "cache", "random_access")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)  # a process that was spawned maps the file itself
        self._open()


def _described(reader: Reader, path: Path) -> tuple[Form, int]:
    """What the spec says of samples, and their number."""
    said = reader.spec.get("dataset")
    if not isinstance(said, dict):
        raise ArchiveError(f"{path} holds no dataset; modelzip list shows what an archive holds")
    if said.get("version") != VERSION:
        raise ArchiveError(
            f"{path}: version {str(said.get('version'))[:20]} of a dataset is not {VERSION}, which "
            "this modelzip reads; upgrade modelzip"
        )
    try:
        count = checks.integer("count", said.get("count"), low=1, high=_MOST)
        form = read_form(said)
    except (SettingError, TypeError) as error:
        raise ArchiveError(f"{path} does not say how its samples are kept: {error}") from error
    chunks = -(-count // form.chunk)
    kinds = (INPUTS, LABELS)
    if len(reader.blobs) != 2 * chunks or not all(  # first: a count may be a lie
        f"{kind}{chunk}" in reader.blobs for kind in kinds for chunk in range(chunks)
    ):
        raise ArchiveError(f"{path} says {chunks} chunks, and has {len(reader.blobs)} blobs")
    return form, count
