"""Fewer samples: what counts as a duplicate, and what a coreset keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Subset

from modelzip.data import ArrayDataset, PackedArrays, PackedDataset, coreset, pack
from modelzip.data import without_duplicates as distinct
from modelzip.data.base import Augmented
from modelzip.data.fewer import k_center_greedy
from modelzip.errors import DataError, SettingError


def photographs(count: int) -> torch.Tensor:
    """Smooth images [count, 3, 32, 32], each another."""
    steps = np.random.default_rng(0).normal(0, 6, (count, 3, 32, 32))
    return torch.from_numpy((128 + steps.cumsum(-1).cumsum(-2) / 4).clip(0, 255).astype(np.uint8))


def labels_of(dataset: object) -> list[int]:
    return [int(label) for _, label in dataset]  # type: ignore[attr-defined]


def test_exact_duplicates_of_a_label_go_and_the_first_stays():
    x = torch.tensor([[1, 2], [3, 4], [1, 2], [1, 2], [3, 4]])
    found = distinct(ArrayDataset(x, torch.tensor([0, 5, 0, 1, 5])))
    assert [(inputs.tolist(), label) for inputs, label in found] == [
        ([1, 2], 0),
        ([3, 4], 5),
        ([1, 2], 1),
    ]


def test_duplicates_among_bytes_rows_and_dicts():
    assert list(distinct([(b"a", 0), (b"b", 0), (b"a", 0)])) == [(b"a", 0), (b"b", 0)]
    rows = [(torch.arange(3), 0), (torch.arange(4), 0), (torch.arange(3), 0)]
    assert len(distinct(rows)) == 2
    pairs = [({"x": torch.ones(1), "y": torch.ones(2)}, 0), ({"x": torch.ones(3)}, 0)]
    assert len(distinct(pairs * 2)) == 2


def test_near_duplicates_are_found_whatever_their_brightness_and_noise():
    images = photographs(40)
    noise = torch.randint(-2, 3, images[:5].shape, generator=torch.Generator().manual_seed(0))
    again = ((images[:5].int() - 128) * 0.9 + 128 + noise).clamp(0, 255).byte()
    data = ArrayDataset(torch.cat([images, again]), torch.arange(45) % 5, crop=4)
    assert len(distinct(data)) == 45
    found = distinct(data, near=0.98)
    assert torch.equal(found.inputs, images)
    other = ArrayDataset(data.inputs, torch.tensor([0] * 40 + [1] * 5))
    assert len(distinct(other, near=0.98)) == 45
    assert found.crop == 4


def test_near_duplicates_do_not_chain():
    """b is like a, c like b and not like a: only b goes."""
    x = torch.linspace(-1, 1, 16)
    a, c = x.expand(1, 16, 16), (x + 1.2 * (torch.arange(16) % 4 - 1.5) / 5).expand(1, 16, 16)
    b = (a + c) / 2
    rows = [v.flatten() - v.mean() for v in (a, b, c)]
    ab, bc, ac = (
        torch.cosine_similarity(rows[i], rows[j], dim=0) for i, j in ((0, 1), (1, 2), (0, 2))
    )
    near = float(min(ab, bc)) - 1e-4
    assert ac < near
    found = distinct([(a, 0), (b, 0), (c, 0)], near=near)
    assert [inputs.equal(other) for (inputs, _), other in zip(found, (a, c), strict=True)] == [
        True,
        True,
    ]


def test_packed_samples_are_compared_too(tmp_path):
    images = photographs(6)
    twice = ArrayDataset(torch.cat([images, images]), torch.zeros(12).long())
    data = PackedArrays(PackedDataset(pack(twice, tmp_path / "a.mzd").path), crop=2)
    assert len(distinct(data)) == 6
    assert len(distinct(data, near=0.98)) == 6


class Fixed(nn.Module):
    """Outputs of which the first input is the second logit, of two."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([torch.zeros(len(x)), x[:, 0]], dim=1)


def logits(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None]


def test_a_coreset_by_loss_keeps_the_largest_errors_of_each_class():
    # the error of label 1 is sqrt(2) (1 - sigmoid(x)), large where x is low; of label 0 where high
    data = ArrayDataset(logits(3, -3, 1, -1, 3, -3, 1, -1), torch.tensor([1] * 4 + [0] * 4))
    found = coreset(Fixed(), data, 0.5)
    assert found.inputs.flatten().tolist() == [-3, -1, 3, 1]
    assert labels_of(found) == [1, 1, 0, 0]
    found = coreset(Fixed(), data, 0.5, skip=0.25)
    assert found.inputs.flatten().tolist() == [1, -1, 1, -1]


def test_errors_of_several_models_are_averaged():
    class Other(Fixed):
        def forward(self, x):
            return 100 * super().forward(x).flip(1)

    data = ArrayDataset(logits(3.0, -3.0, 0.1), torch.ones(3).long())
    # errors / sqrt(2): 0.05, 0.95, 0.48 of the first; 1, 0, 1 of the other
    assert coreset([Fixed(), Other()], data, 1 / 3).inputs.tolist() == [[pytest.approx(0.1)]]


def test_a_coreset_by_embedding_spreads_over_what_the_last_linear_layer_takes():
    model = nn.Sequential(nn.Flatten(), nn.Linear(1, 2), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0], [0.0]]))
    data = ArrayDataset(logits(0.0, 0.1, 0.2, 5.0, 9.0), torch.zeros(5).long())
    assert coreset(model, data, 0.6, by="embedding").inputs.flatten().tolist() == [0, 5, 9]
    assert coreset(Fixed(), data, 0.4, by="embedding").inputs.flatten().tolist() == [0, 5]


def test_k_center_greedy_takes_the_farthest_from_all_taken():
    points = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    chosen = k_center_greedy(points, 20).tolist()
    assert len(set(chosen)) == 20
    for count in range(1, 20):
        distances = torch.cdist(points, points[chosen[:count]]).min(dim=1).values
        assert distances[chosen[count]] == pytest.approx(float(distances.max()), abs=1e-3)
    assert sorted(k_center_greedy(torch.zeros(4, 2), 4).tolist()) == [0, 1, 2, 3]


def test_a_random_half_is_that_of_its_seed_and_keeps_every_class():
    data = ArrayDataset(torch.arange(40)[:, None], torch.arange(40) % 4)
    halves = [coreset(Fixed(), data, 0.5, by="random", seed=seed) for seed in (0, 0, 1)]
    rows = [half.inputs.flatten().tolist() for half in halves]
    assert rows[0] == rows[1] != rows[2]
    assert torch.bincount(halves[0].targets).tolist() == [5] * 4
    few = coreset(Fixed(), data, 0.01, by="random")
    assert sorted(few.targets.tolist()) == [0, 1, 2, 3]


def test_a_coreset_of_a_list_is_a_subset_of_it():
    items = [(torch.tensor([float(i)]), 1) for i in range(4)]
    assert [float(x) for x, _ in coreset(Fixed(), items, 0.5)] == [0, 1]


class Changing(Augmented):
    def set_epoch(self, epoch: int) -> None: ...

    def __len__(self) -> int:
        return 3


def test_what_cannot_be_chosen_from_is_refused():
    data = ArrayDataset(torch.zeros(4, 2), torch.zeros(4).long())
    with pytest.raises(
        SettingError, match=r"near must be a fraction in \(0, 1\], got 98; for 98 %"
    ):
        distinct(data, near=98)
    with pytest.raises(DataError, match=r"near compares images \[C, H, W\], and sample 0 is none"):
        distinct(data, near=0.98)
    mixed = [(torch.rand(3, 8, 8), 0), (torch.rand(1, 8, 8), 0)]
    with pytest.raises(DataError, match="images of as many channels, and these have different"):
        distinct(mixed, near=0.98)
    with pytest.raises(DataError, match="Changing augments its samples itself"):
        distinct(Changing())
    with pytest.raises(DataError, match="Changing augments its samples itself"):
        coreset(Fixed(), Subset(Changing(), range(2)), 0.5)
    with pytest.raises(SettingError, match=r"fraction must be a fraction in \(0, 1\], got 50; for"):
        coreset(Fixed(), data, 50)
    with pytest.raises(SettingError, match="by has no choice 'los'; did you mean 'loss'"):
        coreset(Fixed(), data, 0.5, by="los")
    with pytest.raises(SettingError, match=r"fraction 0\.75 and skip 0\.5 are together more"):
        coreset(Fixed(), data, 0.75, skip=0.5)
    with pytest.raises(SettingError, match="count must be an integer from 1 to 3, got 4"):
        k_center_greedy(torch.zeros(3, 1), 4)
    with pytest.raises(DataError, match="ArrayDataset is empty"):
        coreset(Fixed(), ArrayDataset(torch.zeros(0, 2), torch.zeros(0).long()), 0.5)
