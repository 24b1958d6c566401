import pytest
import torch
from torch import nn

from modelzip.data import ArrayDataset, Splits, calibration_batches, check
from modelzip.errors import DataError, ModelError, SettingError


def items(count: int = 4, **changes):
    found = [(torch.full((3,), float(i)), i % 2) for i in range(count)]
    for index, item in changes.get("at", {}).items():
        found[index] = item
    return found


def splits(**changes) -> Splits:
    return Splits(
        **({"train": items(), "validation": items(), "test": items(), "classes": 2} | changes)
    )


def memory(inputs=None, targets=None) -> ArrayDataset:
    inputs = torch.rand(4, 3) if inputs is None else inputs
    return ArrayDataset(inputs, torch.tensor([0, 1, 0, 1]) if targets is None else targets)


def test_good_data_pass_with_their_model():
    check(splits(), model=nn.Linear(3, 2))
    check(splits(train=memory(), validation=memory(), test=memory()), model=nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"validation": []}, "the validation data are empty"),
        ({"train": items(at={2: (torch.ones(3), 2)})}, "label of train item 2 is 2; .* 0 to 1"),
        ({"test": items(at={1: (torch.ones(3), -1)})}, "label of test item 1 is -1"),
        ({"train": items(at={0: (torch.ones(3), 0.5)})}, "item 0 is 0.5; it must be an integer"),
        ({"train": items(at={0: (torch.ones(3), "cat")})}, "item 0 is 'cat'; it must be"),
        (
            {"train": items(at={3: (torch.ones(4), 0)})},
            r"item 3 is float32 \[4\], and those before",
        ),
        ({"train": items(at={3: torch.ones(3)})}, "train item 3 is not a pair"),
        ({"train": items(at={1: (torch.full((3,), torch.nan), 0)})}, "train item 1 holds NaN"),
        ({"train": items(at={0: ([1.0], 0)})}, "inputs must be tensors, or tuples or dicts"),
        ({"test": memory(torch.rand(4, 5))}, r"test items are float32 \[5\], and train items"),
        ({"test": memory(targets=torch.tensor([0, 1, 2, 5]))}, "label of test item 2 is 2"),
        (
            {"test": memory(torch.tensor([[0.0], [0], [torch.inf], [0]]))},
            "test item 2 holds NaN or",
        ),
    ],
)
def test_bad_data_are_named(changes, message):
    with pytest.raises(DataError, match=message):
        check(splits(**changes))


def test_tuples_and_dicts_of_inputs_are_described():
    both = [({"a": torch.ones(2), "b": (torch.ones(1).long(),)}, 0)]
    other = [({"a": torch.ones(2), "b": (torch.ones(1),)}, 0)]
    with pytest.raises(
        DataError, match=r"test items are \{a: float32 \[2\], b: \(float32 \[1\]\)\}"
    ):
        check(splits(train=both, validation=both, test=other))


def test_a_model_of_another_input_shape_is_a_data_error():
    with pytest.raises(DataError, match=r"Linear does not take the data's items, float32 \[3\]"):
        check(splits(), model=nn.Linear(4, 2))


def test_a_model_of_another_output_is_a_model_error():
    with pytest.raises(ModelError, match=r"Linear returns shape \[2, 5\]; with 2 classes"):
        check(splits(), model=nn.Linear(3, 5))
    with pytest.raises(ModelError, match="LSTM returns tuple; wrap it so that it returns one"):
        check(splits(), model=nn.LSTM(3, 2))


def test_calibration_is_seeded_and_free_of_augmentation():
    images = torch.randint(256, (40, 1, 6, 6)).byte()
    train = ArrayDataset(images, torch.arange(40) % 2, crop=3)
    data = splits(train=train)
    batches = calibration_batches(data, samples=30, batch_size=16, seed=1)
    assert [len(x) for x, _ in batches] == [16, 14]
    plain = {tuple(i.float().div(255).flatten().tolist()) for i in images}
    assert all(tuple(i.flatten().tolist()) in plain for x, _ in batches for i in x)
    again = calibration_batches(data, samples=30, batch_size=16, seed=1)
    assert torch.equal(again[0][0], batches[0][0])
    other = calibration_batches(data, samples=30, batch_size=16, seed=2)
    assert not torch.equal(other[0][0], batches[0][0])


def test_calibration_takes_all_there_is_at_most():
    assert sum(len(y) for _, y in calibration_batches(splits(), samples=100)) == 4
    with pytest.raises(SettingError, match="samples must be at least 1, got 0"):
        calibration_batches(splits(), samples=0)
