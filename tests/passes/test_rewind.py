"""Rewinding: survivors go back, what was pruned stays pruned."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import modelzip as mz
from modelzip.core.channels.resize import from_record, resize
from modelzip.core.running import evaluating
from modelzip.errors import ModelError, SelectionError, SettingError
from tests.architectures import build

X = torch.linspace(-1, 1, 192).reshape(4, 3, 4, 4)


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    conv = nn.Conv2d(3, 16, 3, padding=1)
    return nn.Sequential(conv, nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1), nn.Flatten(1))


@pytest.fixture
def path(tmp_path: Path) -> str:
    """The weights of `net(1)`, with statistics of their own."""
    model = net(1)
    model(X)
    save_file(model.state_dict(), tmp_path / "early.safetensors")
    return str(tmp_path / "early.safetensors")


def train(zipped: mz.Prepared, steps: int = 3) -> None:
    optimizer = torch.optim.SGD(zipped.model.parameters(), lr=0.1, momentum=0.9)
    zipped.model.train()
    for _ in range(steps):
        (zipped.model(X).square().mean() + zipped.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()


def output(model: nn.Module, inputs: Tensor = X) -> Tensor:
    with evaluating(model):
        result: Tensor = model(inputs)
    return result


def test_without_pruning_it_is_the_early_model(path: str) -> None:
    model = net(1)
    model(X)
    zipped = mz.prepare(net(), [mz.Rewind(weights=path)])
    assert torch.equal(output(zipped.convert()), output(model))
    (report,) = zipped.reports
    assert [row.name for row in report.layers] == ["0", "1", "3"]
    assert {row.note for row in report.layers} == {f"back to {path}"}


@pytest.mark.parametrize("kind", [mz.MagnitudePrune, mz.MovementPrune])
def test_survivors_go_back_and_zeros_stay(path: str, kind: Any) -> None:
    zipped = mz.prepare(net(), [kind(sparsity=0.5)], training_steps=3)
    train(zipped)
    before = zipped.convert()
    zipped.add(mz.Rewind(weights=path))
    after, start = zipped.convert(), net(1)
    for i in (0, 3):
        kept = before[i].weight != 0
        assert torch.equal(after[i].weight, torch.where(kept, start[i].weight, 0.0))
    train(zipped)
    trained = zipped.convert()
    assert all(torch.equal(trained[i].weight != 0, after[i].weight != 0) for i in (0, 3))


def test_channels_that_were_removed_stay_away(path: str) -> None:
    zipped = mz.prepare(net(), [mz.PruneChannels(sparsity=0.5)], example_inputs=(X,))
    train(zipped)
    zipped.add(mz.Rewind(weights=path))
    ticket = net(1)
    ticket(X)
    resize(ticket, from_record(ticket, zipped.attached[0].context.record["layers"]))
    assert zipped.model[0].out_channels == 8
    assert torch.equal(output(zipped.convert()), output(ticket))


@pytest.mark.parametrize("name", ["resnet_a", "depthwise", "grouped", "transposed", "dense"])
def test_pruned_architectures_go_back(name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    (start, x), (model, _) = build(name), build(name)
    save_file(start.state_dict(), tmp_path / "early.safetensors")
    cut = mz.PruneChannels(sparsity=0.4, round_to=1)
    passes = [cut, cut, mz.Rewind(weights=str(tmp_path / "early.safetensors"))]
    zipped = mz.prepare(model, passes, example_inputs=x)
    for attached in zipped.attached[:2]:
        resize(start, from_record(start, attached.context.record["layers"]))
    assert torch.equal(output(zipped.convert(), x), output(start, x))


def test_checkpoint_of_the_pruned_model_rewinds_it(tmp_path: Path) -> None:
    passes = [mz.PruneChannels(sparsity=0.5), mz.MagnitudePrune(sparsity=0.5)]
    zipped = mz.prepare(net(), passes, example_inputs=(X,))
    zipped.save(tmp_path / "early.safetensors")
    before = output(zipped.convert())
    train(zipped)
    zipped.add(mz.Rewind(weights=str(tmp_path / "early.safetensors")))
    assert torch.equal(output(zipped.convert()), before)


def test_only_the_modules_named_go_back(path: str) -> None:
    small = mz.prepare(net(), [mz.Rewind(weights=path, targets=("3",))]).convert()
    assert torch.equal(small[3].weight, net(1)[3].weight)
    assert torch.equal(small[0].weight, net()[0].weight)


def test_checkpoint_needs_the_file_no_more(path: str, tmp_path: Path) -> None:
    zipped = mz.prepare(net(), [mz.MagnitudePrune(sparsity=0.5), mz.Rewind(weights=path)])
    train(zipped)
    zipped.save(tmp_path / "later.safetensors")
    Path(path).unlink()
    loaded = mz.load(net, tmp_path / "later.safetensors")
    assert torch.equal(output(loaded), output(zipped.convert()))


def test_gradients_and_the_type_of_the_model_stay(tmp_path: Path) -> None:
    halves = {name: tensor.half() for name, tensor in net(1).state_dict().items()}
    save_file(halves, tmp_path / "half.safetensors")
    zipped = mz.prepare(net(), [mz.Rewind(weights=str(tmp_path / "half.safetensors"))])
    assert zipped.model[0].weight.dtype == torch.float32
    assert zipped.model[0].weight.requires_grad


@pytest.mark.parametrize("weights", [None, "", 3])
def test_path_is_needed(weights: Any) -> None:
    with pytest.raises(SettingError, match="weights must be the path of a safetensors file, got"):
        mz.Rewind(weights=weights)


def test_model_is_whole_after_a_refusal(path: str) -> None:
    model = nn.Sequential(nn.Linear(3, 3))
    before = model[0].weight.clone()
    with pytest.raises(SettingError, match=r"does not fit the model: unexpected: 1.bias"):
        mz.prepare(model, [mz.Rewind(weights=path)], inplace=True)
    assert torch.equal(model[0].weight, before)
    with pytest.raises(SettingError, match=r"there is no weights file none.safetensors"):
        mz.prepare(model, [mz.Rewind(weights="none.safetensors")])


def test_computed_weights_and_models_without_any_are_refused(path: str) -> None:
    with pytest.raises(ModelError, match=r"rewind cannot change .*weight, which _WeightNorm"):
        mz.prepare(build("parametrized")[0], [mz.Rewind(weights=path)])
    with pytest.raises(SelectionError, match="has no Module layer"):
        mz.prepare(nn.Sequential(nn.ReLU()), [mz.Rewind(weights=path)])
