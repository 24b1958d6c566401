"""Training from packed datasets: the same pipeline as in memory, read chunk by chunk."""

from __future__ import annotations

import pytest
import torch

from modelzip.data import (
    ArrayDataset,
    ChunkShuffled,
    PackedArrays,
    PackedDataset,
    Splits,
    calibration_batches,
    loader,
    pack,
)
from modelzip.data.base import Shuffled, set_epoch, shuffled
from modelzip.data.checking import check
from modelzip.data.corrupted import Corrupted
from modelzip.errors import DataError, SettingError

HOW = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "crop": 2, "seed": 3}


def images(count: int = 40) -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return ArrayDataset(pixels, torch.arange(count) % 7, **HOW)


@pytest.fixture
def packed(tmp_path):
    path = pack(images(), tmp_path / "a.mzd", chunk=4).path
    return PackedArrays(PackedDataset(path, cache=4), **HOW)


def test_batches_are_those_of_memory_augmented_and_normalised_alike(packed):
    held = images()
    for epoch in range(2):
        held.set_epoch(epoch)
        packed.set_epoch(epoch)
        for indices in ([3, 39, 0], [7]):
            for mine, theirs in zip(
                packed.__getitems__(indices), held.__getitems__(indices), strict=True
            ):
                assert torch.equal(mine, theirs)
    assert torch.equal(packed.plain()[5][0], held.plain()[5][0])
    assert not torch.equal(packed[5][0], packed.plain()[5][0])
    assert packed.mean == held.mean


def test_the_loader_reads_each_chunk_once_an_epoch(packed):
    batches = loader(packed, batch_size=5, shuffle=True, seed=1)
    assert isinstance(batches.sampler, ChunkShuffled)
    orders = []
    for epoch in range(2):
        set_epoch(batches, epoch)
        orders.append(torch.cat([y for _, y in batches]).tolist())
        assert sorted(orders[-1]) == sorted(i % 7 for i in range(40))
        assert packed.data._decoded <= 40 * (epoch + 1)
    assert orders[0] != orders[1]


def test_corrupted_samples_are_read_in_the_same_order(packed):
    corrupted = Corrupted(packed, {"bits": (4, 4)}, seed=1)
    order = shuffled(corrupted, seed=2)
    assert isinstance(order, ChunkShuffled)
    assert sorted(order) == list(range(40))


def test_shares_of_processes_are_what_one_process_reads(packed):
    whole = list(shuffled(packed, seed=1))
    shares = [shuffled(packed, seed=1, share=(index, 2)) for index in (0, 1)]
    assert [len(share) for share in shares] == [20, 20]
    assert [i for pair in zip(*shares, strict=True) for i in pair] == whole


def test_where_chunks_do_not_matter_the_order_is_wholly_random(tmp_path):
    pack(images(), tmp_path / "a.mzd", chunk=4, single=True)
    assert type(shuffled(PackedDataset(tmp_path / "a.mzd"), seed=0)) is Shuffled
    pack(images(), tmp_path / "b.mzd", chunk=8)
    assert type(shuffled(PackedDataset(tmp_path / "b.mzd"), seed=0)) is Shuffled
    assert type(shuffled(PackedDataset(tmp_path / "b.mzd", cache=2), seed=0)) is ChunkShuffled


def test_calibration_samples_are_those_of_memory(packed):
    def batches(train):
        return calibration_batches(
            Splits(train=train, validation=train, test=train, classes=7), samples=20, batch_size=8
        )

    for mine, theirs in zip(batches(packed), batches(images()), strict=True):
        assert torch.equal(mine[0], theirs[0])
        assert torch.equal(mine[1], theirs[1])


def test_data_of_many_chunks_are_checked_and_calibrated_from(tmp_path):
    held = ArrayDataset(torch.arange(30_000)[:, None], torch.arange(30_000) % 7)
    path = pack(held, tmp_path / "a.mzd", codec="store").path
    packed = PackedArrays(PackedDataset(path))
    splits = Splits(train=packed, validation=packed, test=packed, classes=7)
    for _ in range(4):
        check(splits)
        found = calibration_batches(splits, samples=600, batch_size=128)
    assert [len(targets) for _, targets in found] == [128, 128, 128, 128, 88]
    order = torch.randperm(30_000, generator=torch.Generator().manual_seed(0))[:600]
    assert torch.cat([inputs for inputs, _ in found]).flatten().tolist() == order.tolist()
    with pytest.raises(DataError, match="samples were decoded to read"):
        [packed[i] for _ in range(4) for i in range(0, 30_000, 128)]


def test_every_label_of_packed_data_is_checked(tmp_path):
    labels = torch.zeros(600, dtype=torch.int64)
    labels[599] = 7
    path = pack(ArrayDataset(images(600).inputs, labels), tmp_path / "a.mzd").path
    packed = PackedArrays(PackedDataset(path))
    with pytest.raises(DataError, match="the label of train item 599 is 7; with 2 classes"):
        check(Splits(train=packed, validation=packed, test=packed, classes=2))


def test_each_chunk_may_be_decoded_once_in_any_order(tmp_path):
    data = ArrayDataset(torch.arange(4000)[:, None], torch.zeros(4000).long())
    packed = PackedDataset(pack(data, tmp_path / "a.mzd", chunk=4).path, cache=1)
    assert [int(packed[i][0]) for i in range(0, 4000, 4)] == list(range(0, 4000, 4))


def test_what_makes_no_batch_or_does_not_fit_is_refused(tmp_path):
    rows = pack([(torch.arange(n), 0) for n in (1, 2)], tmp_path / "a.mzd").path
    with pytest.raises(DataError, match="samples differ in length, and make no batch"):
        PackedArrays(PackedDataset(rows))
    pack(images(), tmp_path / "b.mzd")
    with pytest.raises(SettingError, match="mean has 1 values and std 0; give one a channel"):
        PackedArrays(PackedDataset(tmp_path / "b.mzd"), mean=[0.5])
