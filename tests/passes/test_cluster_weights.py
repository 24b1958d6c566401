"""Weight sharing: how many values, which train and how, what stays zero, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import modelzip as mz
from modelzip.core.surgery import all_attached
from modelzip.errors import ModelError, SelectionError, SettingError
from modelzip.export.onnx import export_onnx
from modelzip.measure.size import file_size
from modelzip.passes.cluster_weights import SharedValues


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 8, 1), nn.Flatten(1))


def clustered(model: nn.Module, **settings: Any) -> nn.Module:
    return mz.prepare(model, [mz.ClusterWeights(**settings)]).convert()


def values(tensor: Tensor) -> int:
    return len(set(tensor.flatten().tolist()))


def train(zipped: mz.Prepared, inputs: Tensor, *, steps: int = 5) -> None:
    optimizer = torch.optim.SGD(zipped.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for step in range(steps):
        (zipped.model(inputs) - float(step)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()


# values


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [16, 16]),
        ({"clusters": 10}, [10, 10]),
        ({"bits": 1}, [2, 2]),
        ({"bits": 6, "skip": ("2",)}, [64, 128]),
        ({"clusters": 4, "layer_clusters": {"2": 9}}, [4, 9]),
        ({"bits": 3, "layer_bits": {"type:Conv*": 5}}, [32, 32]),
        ({"layer_clusters": {"0": 7}, "layer_bits": {"*": 2}}, [7, 4]),
    ],
)
def test_each_layer_has_as_many_values_as_asked(settings: Any, expected: list[int]) -> None:
    small = clustered(net(), **settings)
    assert [values(small[i].weight) for i in (0, 2)] == expected


def test_weights_take_the_mean_of_their_cluster() -> None:
    layer = nn.Linear(6, 1)
    layer.weight.data = torch.tensor([[1.0, 5.0, 1.5, -2.0, 5.5, -2.5]])
    small = clustered(layer, clusters=3)
    assert small.weight.tolist() == [[1.25, 5.25, 1.25, -2.25, 5.25, -2.25]]
    assert torch.equal(small.bias, layer.bias)


@pytest.mark.parametrize(
    "layer",
    [nn.Conv1d(4, 8, 3), nn.ConvTranspose2d(8, 4, 3), nn.Linear(16, 8), nn.Embedding(40, 4)],
    ids=lambda layer: type(layer).__name__,
)
def test_every_kind_of_layer_is_clustered(layer: nn.Module) -> None:
    assert values(clustered(layer, clusters=5).weight) == 5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_stay(dtype: torch.dtype) -> None:
    small = clustered(nn.Linear(16, 8).to(dtype), clusters=4)
    assert (small.weight.dtype, values(small.weight)) == (dtype, 4)


# training


def test_the_gradient_of_a_centroid_is_the_mean_of_its_weights() -> None:
    layer = nn.Linear(4, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, 3.0, 1.0, 3.0]])
    layer.weight.data += torch.tensor([[0.1, 0.1, -0.1, -0.1]])
    zipped = mz.prepare(layer, [mz.ClusterWeights(clusters=2)])
    zipped.model(torch.tensor([[1.0, 10.0, 100.0, 1000.0]])).sum().backward()
    ((_, _, shared),) = all_attached(zipped.model, SharedValues)
    assert shared.centroids.grad is not None
    assert shared.centroids.grad.tolist() == [50.5, 505.0]


def test_training_moves_values_and_leaves_who_has_them() -> None:
    zipped = mz.prepare(net(), [mz.ClusterWeights()])
    before = zipped.convert()
    train(zipped, torch.randn(4, 3, 6, 6))
    after = zipped.convert()
    for i in (0, 2):
        old, new = before[i].weight.flatten().tolist(), after[i].weight.flatten().tolist()
        assert not torch.equal(before[i].weight, after[i].weight)
        assert len(set(zip(old, new, strict=True))) == 16


def test_convert_leaves_a_plain_layer() -> None:
    small = clustered(net())
    assert not any(parametrize.is_parametrized(m) for m in small.modules())
    assert set(small.state_dict()) == set(net().state_dict())


# zeros


def test_pruned_weights_stay_zero_and_zero_is_one_of_the_values() -> None:
    passes = [mz.MagnitudePrune(sparsity=0.6, scope="layer"), mz.ClusterWeights(clusters=8)]
    zipped = mz.prepare(net(), passes)
    train(zipped, torch.randn(4, 3, 6, 6))
    small = zipped.convert()
    pruned = mz.prepare(net(), passes[:1]).convert()
    for i in (0, 2):
        assert values(small[i].weight) == 8
        assert torch.equal(small[i].weight == 0, pruned[i].weight == 0)


def test_zeros_without_a_mask_stay_zero() -> None:
    model = net()
    model[0].weight.data[3] = 0
    small = clustered(model, clusters=4)
    assert torch.equal(small[0].weight == 0, model[0].weight == 0)
    assert [values(small[i].weight) for i in (0, 2)] == [4, 4]


def test_zeros_that_training_adds_are_one_of_the_values() -> None:
    prune = mz.MagnitudePrune(sparsity=0.5, schedule="cubic", begin=0.2, end=0.8, every=1)
    passes = [prune, mz.ClusterWeights(clusters=8)]
    zipped = mz.prepare(net(), passes, training_steps=6)
    assert values(zipped.convert()[0].weight) == 7
    train(zipped, torch.randn(4, 3, 6, 6), steps=6)
    small = zipped.convert()
    zeros = sum(int((small[i].weight == 0).sum()) for i in (0, 2))
    assert zeros == (432 + 128) // 2
    assert 4 <= values(small[0].weight) <= 8


# reports and files


def test_report_tells_values_and_bits() -> None:
    zipped = mz.prepare(net(), [mz.ClusterWeights(layer_clusters={"2": 20})])
    zipped.convert()
    rows = zipped.reports[0].layers
    assert [(r.name, r.kind, r.bits, r.note) for r in rows] == [
        ("0", "Conv2d", 4.0, "16 shared values"),
        ("2", "Conv2d", 5.0, "20 shared values"),
    ]
    assert (rows[0].parameters_before, rows[0].parameters_after) == (448, 448)


def test_the_file_holds_four_bits_a_weight(tmp_path: Path) -> None:
    model, x = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)), torch.randn(2, 64)
    small = export_onnx(clustered(model), x, tmp_path / "small.onnx")
    first = file_size(small).layers[0]
    assert first.bits == pytest.approx((4096 * 4 + 64 * 32) / 4160)
    plain = export_onnx(model, x, tmp_path / "plain.onnx").stat().st_size
    assert plain / 8 < small.stat().st_size < plain / 8 + 1200


def test_quantizing_comes_on_top() -> None:
    x = torch.randn(4, 3, 6, 6)
    for last in (mz.Int8(), mz.FakeQuantize(bits=6)):
        zipped = mz.prepare(
            net(), [mz.ClusterWeights(), last], example_inputs=(x,), calibration=[x]
        )
        converted = zipped.convert().get_submodule("0").weight
        assert converted.dtype == torch.int8
        assert max(values(row) for row in converted) <= 16


# refusals


def refused(error: type[Exception], match: str, model: nn.Module, **settings: Any) -> None:
    with pytest.raises(error, match=match):
        mz.prepare(model, [mz.ClusterWeights(**settings)])


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"clusters": 1}, "clusters must be an integer from 2 to 256, got 1"),
        ({"clusters": 257}, "clusters must be an integer from 2 to 256, got 257"),
        ({"bits": 9}, "bits must be an integer from 1 to 8, got 9"),
        ({"clusters": 8, "bits": 3}, "clusters=8 and bits=3 say the same twice; give one"),
        ({"layer_bits": 4}, "layer_bits must map layer names to numbers, got 4"),
        ({"layer_clusters": {"0": 1}}, r"layer_clusters\['0'\] must be an integer from 2 to 256"),
        ({"layer_bits": {"0": 0}}, r"layer_bits\['0'\] must be an integer from 1 to 8, got 0"),
    ],
)
def test_settings_out_of_range(settings: Any, match: str) -> None:
    with pytest.raises(SettingError, match=match):
        mz.ClusterWeights(**settings)


def test_a_pattern_that_names_no_layer() -> None:
    match = "layer_bits: 'conv' matches none of the 2 layers to cluster"
    refused(SelectionError, match, net(), layer_bits={"conv": 4})


def test_a_layer_is_clustered_once() -> None:
    passes = [mz.ClusterWeights(clusters=8), mz.ClusterWeights(targets=("0",))]
    with pytest.raises(SettingError, match="0 is clustered already; give cluster_weights once"):
        mz.prepare(net(), passes)


def test_layers_of_their_own_may_have_a_pass_each() -> None:
    passes = [mz.ClusterWeights(clusters=8, skip=("0",)), mz.ClusterWeights(targets=("0",))]
    zipped = mz.prepare(net(), passes)
    small = zipped.convert()
    assert [values(small[i].weight) for i in (0, 2)] == [16, 8]
    assert [[row.name for row in report.layers] for report in zipped.reports] == [["2"], ["0"]]


def test_few_different_weights_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.Linear(16, 8))
    zipped = mz.prepare(model, [mz.ClusterWeights()])
    zipped.convert()
    assert zipped.reports[0].protected == {"0": "its weights have 8 different values already"}
    refused(ModelError, r"would change nothing \(the model: its weights have 8", nn.Linear(4, 2))


def test_sparse_gradients_are_protected() -> None:
    model = nn.Sequential(nn.Embedding(40, 4, sparse=True), nn.Linear(4, 40))
    zipped = mz.prepare(model, [mz.ClusterWeights()])
    zipped.convert()
    assert "sparse" in zipped.reports[0].protected["0"]


def test_nan_is_refused() -> None:
    model = net()
    model[2].weight.data[0, 0] = torch.nan
    refused(ModelError, "2.weight holds NaN or infinity, which cannot be clustered", model)


def test_tied_weights_are_refused() -> None:
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8))
    model[1].weight = model[0].weight
    refused(ModelError, "cluster_weights would untie", model)


def test_weights_that_are_shared_cannot_be_scaled() -> None:
    x = torch.randn(4, 3, 6, 6)
    with pytest.raises(ModelError, match="equalize cannot change the weight of 0, which cluster_w"):
        mz.prepare(net(), [mz.ClusterWeights(), mz.Equalize()], example_inputs=x)
