"""Widths given by hand, cuts chosen by what they do to the answers, and whole blocks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.core.channels.cost import count_macs
from modelzip.errors import SettingError
from modelzip.export.onnx import export_onnx
from modelzip.passes.prune_channels import PruneChannels
from modelzip.runtime.session import load
from modelzip.zoo import resnet20

X = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    torch.manual_seed(0)
    return resnet20().eval()


def prune(**settings: Any) -> mz.Prepared:
    step = PruneChannels(**settings)
    return mz.prepare(net(), [step], example_inputs=X[:2], calibration=[X])


def test_layers_get_the_widths_that_are_given() -> None:
    small = prune(widths={"layer1.0.conv1": 5, "layer3.2.conv1": 32}).convert()
    assert small.layer1[0].conv1.out_channels == 5
    assert small.layer3[2].conv2.in_channels == 32
    assert small.layer2[0].conv1.out_channels == 32


def test_a_width_of_zero_drops_a_block() -> None:
    zipped = prune(widths={"layer2.1": 0, "layer3.1.conv1": 16})
    small = zipped.convert()
    assert isinstance(small.layer2[1], nn.Identity)
    whole = net()
    whole.layer2[1] = nn.Identity()
    rows = {row.name: row for row in zipped.reports[0].layers}
    gone = sum(p.numel() for p in net().layer2[1].parameters())
    assert (rows["layer2.1"].parameters_before, rows["layer2.1"].parameters_after) == (gone, 0)
    assert count_macs(small, X) < count_macs(whole, X) < count_macs(net(), X)


def test_the_record_counts_what_is_left() -> None:
    zipped = prune(widths={"layer2.1": 0, "layer3.1.conv1": 16})
    record = zipped.attached[0].context.record
    small = zipped.convert()
    assert record["macs"] == [count_macs(net(), X[:1]), count_macs(small, X[:1])]
    left = sum(p.numel() for p in small.parameters())
    assert record["params"] == [sum(p.numel() for p in net().parameters()), left]


def test_dropped_blocks_survive_a_checkpoint_and_an_export(tmp_path: Path) -> None:
    zipped = prune(widths={"layer2.1": 0, "layer2.2": 0})
    zipped.save(tmp_path / "small.safetensors")
    small = mz.load(net, tmp_path / "small.safetensors")
    expected = zipped.convert()(X)
    torch.testing.assert_close(small(X), expected, rtol=0, atol=1e-6)
    session = load(export_onnx(small, X, tmp_path / "small.onnx"))
    torch.testing.assert_close(
        torch.from_numpy(session.run(X)[0]), expected.detach(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("goal", [{"macs": "0.6x"}, {"params": "0.6x"}])
@pytest.mark.parametrize("blocks", [False, True])
def test_cuts_by_sensitivity_meet_the_goal(goal: dict[str, str], blocks: bool) -> None:
    small = prune(**goal, scope="sensitivity", blocks=blocks).convert()
    whole = net()
    if "macs" in goal:
        ratio = count_macs(small, X) / count_macs(whole, X)
    else:
        ratio = _parameters(small) / _parameters(whole)
    assert 0.5 < ratio <= 0.6


def _parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


class Two(nn.Module):
    """The answer hangs on the first branch alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.used = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        self.idle = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
        nn.init.normal_(self.idle[2].weight, std=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.used(x) + self.idle(x)
        return found


def test_cuts_go_where_the_answers_do_not_change() -> None:
    x = torch.randn(64, 8)
    step = PruneChannels(macs="0.6x", scope="sensitivity", round_to=4)
    small = mz.prepare(Two(), [step], example_inputs=x, calibration=[x]).convert()
    assert small.used[0].out_features == 32
    assert small.idle[0].out_features <= 8


def test_sensitivity_needs_calibration() -> None:
    step = PruneChannels(macs="0.5x", scope="sensitivity")
    with pytest.raises(SettingError, match="prune_channels needs calibration"):
        mz.prepare(net(), [step], example_inputs=X)


@pytest.mark.parametrize(
    ("widths", "text"),
    [
        ({"layer1.0.conv7": 8}, "'layer1.0.conv7' is no layer that can be narrowed; did you"),
        ({"linear": 5}, "widths: 'linear' feeds the model's output"),
        ({"layer1.0.conv1": 17}, "can have a multiple of 1 channels up to 16, got 17"),
        ({"layer2.0": 0}, "'layer2.0' cannot go whole: only residual blocks can"),
        ({"layer1.0.conv1": 16}, "widths removes no channel"),
        ({"layer1.0": 0, "layer1.0.conv1": 8}, "'layer1.0.conv1' lies in 'layer1.0', which goes"),
    ],
)
def test_widths_that_do_not_fit_are_refused(widths: dict[str, int], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        prune(widths=widths)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"widths": {"a": -1}}, "widths: a must be an integer of at least 0, got -1"),
        ({"widths": {}}, "widths must be a mapping from names to numbers"),
        ({"widths": {"a": 1}, "scope": "sensitivity"}, "needs macs, params or latency, got widths"),
        ({"sparsity": 0.5, "scope": "sensitivity"}, "macs, params or latency, got sparsity"),
        ({"macs": "0.5x", "blocks": True}, "blocks=True needs latency, or scope='sensitivity'"),
        ({"latency": "50%"}, "latency must be a ratio to the original such as 0.4x"),
        ({"macs": "0.5x", "normalize": "men"}, "normalize has no choice 'men'; did you mean"),
        ({"macs": "0.5x", "blocks": 1}, "blocks must be true or false"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingError, match=text):
        PruneChannels(**settings)
