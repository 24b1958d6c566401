"""The values of NormalFloat4 and rounding to them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.numerics.codebook import look_up, nearest, normal_float

# as published with the paper
PUBLISHED = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
    *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
    *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
    *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
]


def test_values_are_those_published() -> None:
    torch.testing.assert_close(normal_float(), torch.tensor(PUBLISHED), rtol=0, atol=2e-7)


def test_ends_and_zero_are_exact() -> None:
    values = normal_float()
    assert [float(values[i]) for i in (0, 7, 15)] == [-1.0, 0.0, 1.0]


@given(st.lists(st.floats(-1.5, 1.5, width=32), min_size=1, max_size=20))
def test_nearest_is_no_farther_than_any_other(numbers: list[float]) -> None:
    values, codebook = torch.tensor(numbers), normal_float()
    distance = (values[:, None] - codebook).abs()
    chosen = distance.gather(1, nearest(values, codebook)[:, None])[:, 0]
    assert bool((chosen <= distance.amin(1) + 1e-7).all())


def test_every_value_is_nearest_to_itself() -> None:
    assert nearest(normal_float(), normal_float()).tolist() == list(range(16))


def test_an_entry_gets_the_mean_gradient_of_its_uses_alone() -> None:
    codebook = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    indices = torch.tensor([[0, 1, 1], [1, 0, 0]], dtype=torch.uint8)
    used = torch.tensor([[True, True, False], [True, True, False]])
    found = look_up(codebook, indices, used)
    assert found.tolist() == [[1.0, 2.0, 0.0], [2.0, 1.0, 0.0]]
    (found * torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0]])).sum().backward()
    assert codebook.grad is not None
    assert codebook.grad.tolist() == [8.5, 5.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_entries_of_other_types_get_gradients_of_theirs(dtype: torch.dtype) -> None:
    codebook = torch.tensor([1.0, 2.0], dtype=dtype, requires_grad=True)
    used = torch.tensor([True, True])
    look_up(codebook, torch.tensor([1, 1], dtype=torch.uint8), used).sum().backward()
    assert codebook.grad is not None
    assert (codebook.grad.dtype, codebook.grad.tolist()) == (dtype, [0.0, 1.0])
