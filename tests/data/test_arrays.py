import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modelzip.data import ArrayDataset
from modelzip.data.arrays import split_off
from modelzip.errors import DataError, SettingError


def images(count: int = 6, side: int = 5) -> torch.Tensor:
    shape = (count, 3, side, side)
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(0)).byte()


def test_normalisation_by_hand():
    data = ArrayDataset(
        torch.tensor([[[[51]], [[255]]]], dtype=torch.uint8),
        torch.tensor([0]),
        mean=(0.1, 0.5),
        std=(0.1, 0.25),
    )
    assert torch.allclose(data[0][0].flatten(), torch.tensor([1.0, 2.0]))


def test_floats_come_out_unchanged_and_the_stored_ones_stay():
    stored = torch.tensor([[1.0], [2.0]])
    data = ArrayDataset(stored, torch.tensor([0, 1]), mean=(1.0,), std=(2.0,))
    assert data[1][0].item() == 0.5
    assert stored.tolist() == [[1.0], [2.0]]


def test_a_crop_is_a_window_of_the_padded_image_flipped_or_not():
    raw = images()
    data = ArrayDataset(raw, torch.arange(6), crop=2, seed=1)
    batch, _ = data.__getitems__(list(range(6)))
    for image, original in zip(batch.mul(255).round().byte(), raw, strict=True):
        padded = np.pad(original.numpy(), ((0, 0), (2, 2), (2, 2)))
        windows = [padded[:, i : i + 5, j : j + 5] for i in range(5) for j in range(5)]
        windows += [w[:, :, ::-1] for w in windows]
        assert any(np.array_equal(image.numpy(), w) for w in windows)


def test_augmentation_depends_on_seed_epoch_and_index_alone():
    def epoch(number: int, seed: int = 0, indices=(0, 1, 2, 3, 4, 5)) -> torch.Tensor:
        data = ArrayDataset(images(), torch.arange(6), crop=2, seed=seed)
        data.set_epoch(number)
        return data.__getitems__(list(indices))[0]

    assert torch.equal(epoch(1), epoch(1))
    assert torch.equal(epoch(1)[[4, 2]], epoch(1, indices=(4, 2)))
    assert not torch.equal(epoch(1), epoch(2))
    assert not torch.equal(epoch(1), epoch(1, seed=1))


def test_plain_has_no_augmentation_and_leaves_the_original_its_own():
    data = ArrayDataset(images(), torch.arange(6), crop=2)
    assert torch.equal(data.plain()[3][0], images()[3].float() / 255)
    assert not torch.equal(data.__getitems__(range(6))[0], images().float() / 255)


def test_an_index_out_of_range_ends_iteration():
    assert len(list(ArrayDataset(images(), torch.arange(6)))) == 6
    with pytest.raises(IndexError, match="index 6 is out of range for 6 items"):
        ArrayDataset(images(), torch.arange(6))[6]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"targets": torch.arange(5)}, DataError, "there are 6 inputs and 5 labels"),
        ({"targets": torch.ones(6)}, DataError, "labels must be integers, got torch.float32"),
        ({"mean": (0.5,)}, SettingError, "mean has 1 values and std 0; give one a channel"),
        ({"mean": (0.5,), "std": (1.0,)}, SettingError, "mean and std have 1 values"),
        ({"mean": 0.5}, SettingError, "mean must be a list of numbers, one a channel, got 0.5"),
        ({"std": ["a"]}, SettingError, r"std must be a list of numbers, .*, got \['a'\]"),
        ({"mean": (0,), "std": (0,)}, SettingError, r"std must be above 0, .*, got \[0\]"),
        ({"crop": 1.5}, SettingError, "crop must be an integer of at least 0, got 1.5"),
        ({"inputs": torch.ones(6, 2), "crop": 1}, SettingError, r"crop needs images .* \[6, 2\]"),
    ],
)
def test_what_does_not_fit_is_refused(changes, error, message):
    arguments = {"inputs": images(), "targets": torch.arange(6)} | changes
    with pytest.raises(error, match=message):
        ArrayDataset(arguments.pop("inputs"), arguments.pop("targets"), **arguments)


@settings(deadline=None)
@given(size=st.integers(2, 300), part=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_split_is_disjoint_and_whole(size, part, seed):
    held_out = round(part * size)
    if not 0 < held_out < size:
        return
    train, validation = split_off(size, validation=part, limit=None, seed=seed)
    assert len(validation) == held_out
    assert sorted([*train.tolist(), *validation.tolist()]) == list(range(size))


def test_a_limit_shortens_train_and_leaves_validation():
    whole, held_out = split_off(100, validation=10, limit=None, seed=0)
    few, same = split_off(100, validation=10, limit=7, seed=0)
    assert few.tolist() == whole[:7].tolist()
    assert same.tolist() == held_out.tolist()


@pytest.mark.parametrize("validation", [100, 500, 0.001])
def test_a_split_that_would_be_empty_is_refused(validation):
    with pytest.raises(SettingError, match=f"validation={validation} of 100 training samples"):
        split_off(100, validation=validation, limit=None, seed=0)


@pytest.mark.parametrize("arguments", [{"validation": 0}, {"validation": 5, "limit": 0}])
def test_counts_below_one_are_refused(arguments):
    with pytest.raises(SettingError, match="must be an integer of at least 1, got 0"):
        split_off(100, **({"limit": None, "seed": 0} | arguments))
