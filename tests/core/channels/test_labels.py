"""Labels lie where the values that they stand for lie."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from modelzip.core.channels.labels import Labels, along, compact, fold, varying

VIEWS = [
    lambda t: t[:2],
    lambda t: t[..., 1:],
    lambda t: t.transpose(0, -1),
    lambda t: t.flatten(),
    lambda t: t.unsqueeze(0).expand(2, *t.shape),
    lambda t: t[..., ::2],
]


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, len(VIEWS) - 1), st.booleans())))
def test_every_view_knows_what_was_written_through_another(
    steps: list[tuple[int, int, bool]],
) -> None:
    first = torch.arange(1.0, 13.0, dtype=torch.float64).view(3, 4)
    labels, tensors = Labels(), [first]
    labels.set(first, first.clone())
    for number, (source, kind, write) in enumerate(steps):
        tensor = tensors[source % len(tensors)]
        if write:
            if 0 in tensor.stride():
                continue
            values = torch.full(tensor.shape, 100.0 + number, dtype=torch.float64)
            tensor.copy_(values)
            labels.write(tensor, values)
        elif 0 < tensor.numel() < 100 and min(tensor.shape) > 1:
            view = VIEWS[kind](tensor)
            labels.set(view, view.clone())
            tensors.append(view)
    for tensor in tensors:
        label = labels.get(tensor)
        assert label is not None
        assert torch.equal(label, tensor)


def test_a_tensor_in_the_place_of_another_has_no_label() -> None:
    labels = Labels()
    tensor = torch.zeros(3)
    labels.set(tensor, torch.ones(3, dtype=torch.float64))
    del tensor
    assert labels.get(torch.zeros(3)) is None


def test_a_label_that_is_overwritten_by_none_is_gone() -> None:
    labels, tensor = Labels(), torch.zeros(3)
    labels.set(tensor, torch.ones(3, dtype=torch.float64))
    labels.write(tensor, None)
    assert labels.get(tensor) is None


@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_folding_keeps_values_and_finds_where_they_vary(
    shape: list[int], data: st.DataObject
) -> None:
    kept = [data.draw(st.booleans()) for _ in shape]
    sizes = [size if keep else 1 for size, keep in zip(shape, kept, strict=True)]
    small = torch.arange(1.0, 1 + torch.Size(sizes).numel()).view(sizes)
    label = small.expand(shape).contiguous()
    folded = fold(label)
    assert folded is not None
    assert torch.equal(folded, label)
    expected = [a for a, size in enumerate(sizes) if size > 1]
    assert varying(label) == expected
    assert [a for a, size in enumerate(compact(folded)[0].shape) if size > 1] == expected


def test_zeros_fold_to_none() -> None:
    assert fold(torch.zeros(2, 3)) is None
    assert varying(torch.zeros(2, 3)) == []


def test_along_takes_no_room() -> None:
    label = along(torch.arange(3.0), 1, (100, 3, 100))
    assert isinstance(label, Tensor)
    assert label.untyped_storage().nbytes() == 12
