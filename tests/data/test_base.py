import pytest
import torch
from torch.utils.data import IterableDataset, Subset

from modelzip.data import ArrayDataset, Splits, build, loader
from modelzip.data.base import set_epoch
from modelzip.errors import DataError, SettingError


def pairs(count: int) -> list[tuple[torch.Tensor, int]]:
    return [(torch.tensor([float(i)]), i) for i in range(count)]


def order(batches) -> list[int]:
    return [int(y) for _, targets in batches for y in targets]


def test_items_and_collated_batches_come_out_alike():
    whole = ArrayDataset(torch.arange(5.0)[:, None], torch.arange(5))
    for dataset in (pairs(5), whole, Subset(whole, range(5)), Subset(pairs(5), range(5))):
        batches = list(loader(dataset, batch_size=2))
        assert [len(y) for _, y in batches] == [2, 2, 1]
        inputs, targets = batches[1]
        assert inputs.tolist() == [[2.0], [3.0]]
        assert targets.dtype == torch.int64
        assert targets.tolist() == [2, 3]


def test_several_inputs_are_collated_one_by_one():
    items = [({"a": torch.ones(2), "b": torch.zeros(1)}, 0)] * 3
    inputs, _ = next(iter(loader(items, batch_size=3)))
    assert inputs["a"].shape == (3, 2)
    inputs, _ = next(iter(loader([((torch.ones(2), torch.ones(1)), 1)] * 3, batch_size=2)))
    assert [i.shape for i in inputs] == [(2, 2), (2, 1)]


def test_the_order_depends_on_seed_and_epoch_alone():
    batches = loader(pairs(50), batch_size=8, shuffle=True, seed=3)
    first = order(batches)
    torch.rand(5)
    assert order(batches) == first
    set_epoch(batches, 1)
    second = order(batches)
    assert sorted(second) == sorted(first) == list(range(50))
    assert second != first
    assert order(loader(pairs(50), batch_size=8, shuffle=True, seed=4)) != first


def test_shares_of_several_processes_make_up_the_batches_of_one():
    alone = loader(pairs(23), batch_size=6, shuffle=True, drop_last=True)
    shares = [
        loader(pairs(23), batch_size=2, shuffle=True, drop_last=True, share=(i, 3))
        for i in range(3)
    ]
    whole = [set(y.tolist()) for _, y in alone]
    parts = [[set(y.tolist()) for _, y in share] for share in shares]
    assert [set.union(*step) for step in zip(*parts, strict=True)] == whole


def test_an_empty_dataset_is_refused():
    with pytest.raises(DataError, match="list is empty"):
        loader([], batch_size=2)


def test_a_batch_size_below_one_is_refused():
    with pytest.raises(SettingError, match="batch_size must be at least 1, got 0"):
        loader(pairs(2), batch_size=0)


def test_a_stream_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(DataError, match="Stream has no length; data must be map-style"):
        loader(Stream(), batch_size=2)


def test_build_returns_splits_and_nothing_else():
    assert isinstance(build("modelzip.data:digits", seed=1, limit=20), Splits)
    with pytest.raises(SettingError, match="builtins:dict returned dict; it must return Splits"):
        build("builtins:dict", a=1)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"names": ("ham",)}, "there are 1 names for 2 classes"),
        ({"files": {"../tokens.json": ""}}, "files: '../tokens.json' must be a file's name"),
        ({"files": {"": ""}}, "files: '' must be a file's name, without a folder"),
    ],
)
def test_names_and_files_of_splits_are_checked(more, message):
    with pytest.raises(DataError, match=message):
        Splits(train=pairs(2), validation=pairs(2), test=pairs(2), classes=2, **more)
