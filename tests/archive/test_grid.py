from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from modelzip.archive.grid import Grid, find_grid, from_grid
from modelzip.errors import ArchiveError

TYPES = pytest.mark.parametrize("dtype", ["float32", "float64"])


def found(values: np.ndarray) -> Grid:
    grid = find_grid(values)
    assert grid is not None
    restored = from_grid(grid)
    assert restored.dtype == values.dtype
    assert restored.shape == values.shape
    assert restored.tobytes() == values.tobytes()
    return grid


def integers(shape: tuple[int, ...], most: int) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(0, most / 3, shape)
    return np.clip(np.rint(drawn), -most, most).astype(int)


def steps(count: int, dtype: str) -> np.ndarray:
    return np.random.default_rng(1).uniform(1e-3, 1, count).astype(dtype)


@TYPES
@pytest.mark.parametrize("most", [1, 7, 127, 2047])
def test_one_step_is_found(dtype: str, most: int) -> None:
    q, step = integers((40, 50), most), steps(1, dtype)
    grid = found(step * q.astype(dtype))
    assert grid.axis is None
    assert (grid.integers * grid.steps[0] / step[0]).round(3).tolist() == q.tolist()


@TYPES
@pytest.mark.parametrize("most", [1, 7, 127, 2047])
@pytest.mark.parametrize("axis", [0, 1])
def test_a_step_a_channel_is_found(dtype: str, most: int, axis: int) -> None:
    q, step = integers((16, 18, 3, 3), most), steps(16 + 2 * axis, dtype)
    along = step.reshape((-1, 1, 1, 1) if axis == 0 else (1, -1, 1, 1))
    grid = found(along * q.astype(dtype))
    assert grid.axis == axis
    assert grid.integers.tolist() == q.tolist()
    np.testing.assert_allclose(grid.steps, step, rtol=1e-6)


def test_a_step_is_found_though_no_value_is_one_step() -> None:
    q = np.array([[6, -10, 15, 0, 35, 21, 6, 10] * 8])
    grid = found(np.float32(0.017) * q.astype(np.float32))
    assert grid.integers.tolist() == q.tolist()


def test_channels_of_zeros_are_on_any_grid() -> None:
    q = integers((8, 100), 7)
    q[3] = 0
    assert found(steps(8, "float32")[:, None] * q.astype(np.float32)).integers[3].any() == 0
    assert found(np.zeros((4, 9), np.float32)).axis is None


def test_negative_zeros_come_back() -> None:
    step = np.float32(0.3)
    weights = np.random.default_rng(0).normal(0, 1, (8, 50)).astype(np.float32)
    grid = found(np.rint(weights / step) * step)
    assert grid.negative_zero
    assert (grid.integers == -1).sum() == ((weights < 0) & (weights >= -step / 2)).sum()


@TYPES
@settings(deadline=None)
@given(data=st.data())
def test_what_is_found_is_exact_and_nothing_is_raised(dtype: str, data: st.DataObject) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    q = data.draw(arrays.arrays("int8", shape))
    step = data.draw(arrays.arrays(dtype, shape[:1] + (1,) * (len(shape) - 1)))
    with np.errstate(all="ignore"):
        values = np.asarray(step * q.astype(dtype))
    if find_grid(values) is not None:
        found(values)


@pytest.mark.parametrize(
    "odd", [np.nan, np.inf, -np.inf, np.float32(1e-40), np.float32(0.1234567), np.float32(1e30)]
)
def test_one_value_off_the_grid_is_no_grid(odd: float) -> None:
    values = np.float32(0.75) * integers((4, 500), 7).astype(np.float32)
    assert find_grid(values) is not None
    values[0, 0] = odd
    assert find_grid(values) is None


def test_channels_too_far_apart_to_be_decoded_are_no_grid() -> None:
    near = np.array([[1.0], [2.0**990]]) * integers((2, 500), 7)
    near[0, :2] = 1, 100  # times the step of the other channel, 2**1020, is infinite
    assert find_grid(near) is not None
    assert find_grid(near * np.array([[1.0], [2.0**30]])) is None


def test_plain_floats_are_no_grid() -> None:
    drawn = np.random.default_rng(0).normal(size=(30, 40))
    for dtype in ("float16", "float32", "float64"):
        assert find_grid(drawn.astype(dtype)) is None
    assert find_grid(np.arange(60)) is None
    assert find_grid(drawn[:0].astype(np.float32)) is None


@settings(deadline=None, max_examples=200)
@given(
    arrays.arrays(st.sampled_from(["f2", "f4", "f8", "i4"]), st.integers(0, 3)),
    arrays.arrays(
        st.sampled_from(["i1", "i2", "i4"]), arrays.array_shapes(min_dims=0, max_dims=3, max_side=3)
    ),
    st.sampled_from([None, 0, 1, 2, -1, True, "0"]),
    st.booleans(),
)
@example(np.float32([1]), np.array(0, np.int8), None, True)
def test_any_grid_is_values_or_refused(
    steps: np.ndarray, integers: np.ndarray, axis: int | None, negative_zero: bool
) -> None:
    try:
        values = from_grid(Grid(steps, integers, axis, negative_zero))
    except ArchiveError:
        return
    assert values.shape == integers.shape
    assert np.isfinite(values).all()


def test_grids_that_cannot_be_are_refused() -> None:
    q, one = np.ones((2, 3), np.int8), np.ones(1, np.float32)

    def refused(text: str, steps: np.ndarray, integers: np.ndarray, axis: int | None) -> None:
        with pytest.raises(ArchiveError, match=text):
            from_grid(Grid(steps, integers, axis, False))

    refused("a grid has steps along axis 0, 1 or None of its own, not 2", one, q, 2)
    refused(r"a grid needs 2 float32 or float64 steps, got \(1,\)", one, q, 0)
    refused("a grid needs 1 float32 or float64 steps", one.astype("f2"), q, None)
    for step in (0, -1, np.nan, np.inf, 1e-40, 3e38):
        refused("a grid of steps .* has no values at", one * np.float32(step), 2 * q, None)
    refused("a grid has integers to 32766, not 40000 to 40000", one, 40000 * q.astype(int), None)


def test_magnitudes_of_all_sizes_are_no_grid():
    values = np.array([1.0, 1e307] * 20)
    assert find_grid(values) is None
