import pytest
import torch

from modelzip.data import ArrayDataset, loader
from modelzip.data.base import set_epoch
from modelzip.data.corrupted import Corrupted
from modelzip.errors import SettingError

SIZE = 60


def plain(crop: int = 0) -> ArrayDataset:
    raw = torch.randint(256, (SIZE, 3, 8, 8), generator=torch.Generator().manual_seed(0)).byte()
    return ArrayDataset(raw, torch.arange(SIZE) % 2, mean=(0.5,) * 3, std=(0.25,) * 3, crop=crop)


def batch(data, indices=range(SIZE)):
    return data.__getitems__(list(indices))[0]


def changed(data) -> torch.Tensor:
    return (batch(data) != batch(data.dataset)).flatten(1).any(1)


def test_about_the_share_is_corrupted_and_the_rest_left():
    found = changed(Corrupted(plain(), {"gaussian": (0.1, 0.2)}, share=0.5))
    assert 0.3 < float(found.float().mean()) < 0.7
    assert bool(changed(Corrupted(plain(), {"gaussian": (0.1, 0.2)}, share=1.0)).all())


def test_it_depends_on_seed_epoch_and_index_alone():
    def epoch(number, *, seed=0, indices=range(SIZE)):
        data = Corrupted(plain(crop=2), {"gaussian": (0.05, 0.2), "bits": (2, 4)}, seed=seed)
        data.set_epoch(number)
        return batch(data, indices)

    assert torch.equal(epoch(1), epoch(1))
    assert torch.equal(epoch(1)[[7, 3]], epoch(1, indices=(7, 3)))
    assert not torch.equal(epoch(1), epoch(2))
    assert not torch.equal(epoch(1), epoch(1, seed=1))


def test_levels_come_from_the_whole_range():
    data = Corrupted(plain(), {"bits": (1, 3)}, share=1.0)
    values = [len(set(image.flatten().tolist())) for image in data._scale.pixels(batch(data))]
    assert set(values) == {2, 4, 8}


def test_single_items_and_batches_agree_and_labels_stay():
    data = Corrupted(plain(), {"impulse": (0.1, 0.3)})
    image, label = data[-1]
    assert torch.equal(image, batch(data, [SIZE - 1])[0])
    assert label == (SIZE - 1) % 2
    with pytest.raises(IndexError, match="index 60 is out of range for 60 items"):
        data[SIZE]


def test_a_loader_sets_its_epoch_and_that_of_the_data_inside():
    data = Corrupted(plain(crop=2), {"brightness": (-0.2, 0.2)})
    batches = loader(data, batch_size=SIZE)
    first = next(iter(batches))[0]
    set_epoch(batches, 3)
    assert not torch.equal(next(iter(batches))[0], first)
    expected = plain(crop=2)
    expected.set_epoch(3)
    assert torch.equal(batch(data.dataset), batch(expected))


def test_data_of_single_items_are_taken_too():
    pairs = [(torch.full((1, 2, 2), i / 4), i % 2) for i in range(4)]
    data = Corrupted(pairs, {"brightness": (0.1, 0.1)}, share=1.0)
    assert torch.allclose(data[1][0], torch.full((1, 2, 2), 0.35))


def test_the_share_is_checked():
    with pytest.raises(SettingError, match=r"share must be a fraction in \(0, 1\], got 0"):
        Corrupted(plain(), {"bits": (1, 2)}, share=0)
