import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.errors import DataError
from modelzip.runtime.inputs import InputSpec, as_array, match, resized

IDS = InputSpec(name="ids", dtype="int64", shape=(None, 4))
MASK = InputSpec(name="mask", dtype="float32", shape=(None, 4))
ids, mask = np.zeros((2, 4), np.int64), np.ones((2, 4), np.float32)


@pytest.mark.parametrize(
    "inputs",
    [(ids, mask), [ids, mask], {"mask": mask, "ids": ids}, (torch.from_numpy(ids), mask)],
)
def test_inputs_match_by_order_or_by_name(inputs: object) -> None:
    found = match([IDS, MASK], inputs)
    assert list(found) == ["ids", "mask"]
    np.testing.assert_array_equal(found["mask"], mask)


def test_one_array_is_the_only_input() -> None:
    assert match([MASK], mask)["mask"].shape == (2, 4)


def test_arrays_are_made_contiguous() -> None:
    turned = np.ones((4, 2), np.float32).T
    assert match([MASK], turned)["mask"].flags.c_contiguous


def test_a_scalar_stays_a_scalar() -> None:
    spec = InputSpec(name="t", dtype="float32", shape=())
    assert match([spec], np.float32(1))["t"].shape == ()


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (ids, r"1 inputs given; the model takes 2: ids, mask"),
        ({"ids": ids, "masks": mask}, r"the model has no input 'masks'; did you mean 'mask'\?"),
        ({"ids": ids}, r"input 'mask' is missing; the model takes ids, mask"),
        ((ids, ids), r"input mask is int64; the model takes mask: float32 \[any, 4\]"),
        ((ids[:, :3], mask), r"input ids has shape \[2, 3\]; the model takes ids: int64 \[any, 4"),
        ((ids[0], mask), r"input ids has shape \[4\]"),
        ((ids, None), r"input mask is object"),
    ],
)
def test_inputs_that_do_not_fit_are_named(inputs: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        match([IDS, MASK], inputs)


def test_bfloat16_becomes_float32() -> None:
    assert as_array(torch.ones(2, dtype=torch.bfloat16, requires_grad=True)).dtype == np.float32


@given(have=st.integers(1, 9), want=st.integers(1, 20))
def test_resized_cycles_through_the_samples(have: int, want: int) -> None:
    first, named = resized((np.arange(have), {"b": torch.arange(have)}), want)
    assert first.tolist() == [i % have for i in range(want)]
    assert named["b"].tolist() == first.tolist()


@pytest.mark.parametrize("value", [np.float32(1), np.zeros((0, 3))])
def test_resizing_nothing_is_refused(value: object) -> None:
    with pytest.raises(DataError, match="has no samples to make a batch of; give at least one"):
        resized(value, 2)
