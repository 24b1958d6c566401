"""Patterns: what their names mean, what fits them, and how many zeros they make."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.errors import SettingError
from modelzip.numerics.patterns import Pattern, parse


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("unstructured", Pattern()),
        ("2:4", Pattern(columns=4, keep=2)),
        ("1:16", Pattern(columns=16, keep=1)),
        ("4x1", Pattern(rows=4)),
        ("8x2", Pattern(rows=8, columns=2)),
    ],
)
def test_names_of_patterns(text: str, pattern: Pattern) -> None:
    assert parse(text) == pattern


@pytest.mark.parametrize("text", ["4:4", "4:2", "0:4", "4x0", "2-4", "4x", "", "blocks", 4, None])
def test_other_names_are_refused(text: object) -> None:
    with pytest.raises(SettingError, match=r"pattern must be 'unstructured', N:M such as '2:4'"):
        parse(text)  # type: ignore[arg-type]


def test_only_nm_has_a_sparsity_of_its_own() -> None:
    assert [parse(t).sparsity for t in ("1:4", "4x1", "unstructured")] == [0.75, None, None]


def test_misfit_names_the_size() -> None:
    assert parse("2:4").misfit(10, 6) == "6 inputs are not a multiple of 4"
    assert parse("4x2").misfit(10, 6) == "10 outputs are not a multiple of 4"
    assert parse("4x2").misfit(12, 6) == ""


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.floats(0, 1))
def test_blocks_die_whole_and_in_the_number_asked(
    out_blocks: int, rows: int, columns: int, sparsity: float
) -> None:
    generator = torch.Generator().manual_seed(out_blocks)
    shapes = [(out_blocks * rows, 2 * columns, 3), (rows, columns)]
    weights = [torch.randn(shape, generator=generator) for shape in shapes]
    held = [torch.ones(shape, dtype=torch.bool) for shape in shapes]
    masks = Pattern(rows=rows, columns=columns).masks(weights, held, sparsity)
    blocks = out_blocks * 2 * 3 + 1
    zeros = sum(int((~m).sum()) for m in masks)
    assert zeros == round(sparsity * blocks) * rows * columns


def test_layers_are_ranked_together() -> None:
    weights = [torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0, 0.5]])]
    held = [torch.ones(1, 2, dtype=torch.bool) for _ in weights]
    masks = Pattern().masks(weights, held, 0.5)
    assert [m.tolist() for m in masks] == [[[False, True]], [[True, False]]]


def test_nm_pattern_grows_by_whole_weights_of_a_group() -> None:
    weight, held = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.ones(1, 4, dtype=torch.bool)
    counts = [
        int((~parse("1:4").masks([weight], [held], s)[0]).sum()) for s in (0.2, 0.3, 0.6, 0.75)
    ]
    assert counts == [0, 1, 2, 3]


def test_masks_stay_within_those_held() -> None:
    weight = torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    held = torch.tensor([[False, True, True, True]])
    for text in ("unstructured", "2:4", "1x2"):
        (mask,) = parse(text).masks([weight], [held], 0.5)
        assert not bool((mask & ~held).any())
        assert not bool(mask[0, 0])


def test_signed_masks_rank_by_value_and_blocks_by_their_sum() -> None:
    scores = torch.tensor([[-4.0, 3.0, 1.0, 1.0]])
    held = torch.ones(1, 4, dtype=torch.bool)
    for text, expected in [
        ("unstructured", [False, True, False, True]),
        ("1x2", [False, False, True, True]),
        ("2:4", [False, True, False, True]),
    ]:
        (mask,) = parse(text).masks([scores], [held], 0.5, signed=True)
        assert mask.tolist() == [expected], text
