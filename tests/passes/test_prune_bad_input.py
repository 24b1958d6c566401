"""PruneChannels given what it cannot take: one line that says what to do, and nothing changed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import modelzip as mz
from modelzip.errors import ModelError, ModelzipError, SelectionError, SettingError
from tests.architectures import build


class Failing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        raise RuntimeError("no weights for this camera\nmore about it")


def message(model: nn.Module, inputs: Any, kind: type[ModelzipError], **settings: Any) -> str:
    """What preparing raises; `model` must be as it was afterwards."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    with pytest.raises(kind) as caught:
        mz.prepare(model, [mz.PruneChannels(**settings)], example_inputs=inputs, inplace=True)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    return str(caught.value)


@pytest.mark.parametrize("value", [0, 1, 80, -0.5, "half", True, float("nan")])
def test_sparsity_must_be_a_fraction(value: Any) -> None:
    with pytest.raises(SettingError) as caught:
        mz.PruneChannels(sparsity=value)
    text = str(caught.value)
    assert text.startswith(("sparsity must be a fraction in (0, 1)", "sparsity must be a number"))
    assert text.endswith("for 80 % write 0.8" if value == 80 else f"got {value!r}")


@pytest.mark.parametrize("name", ["vgg", "mobilenet_v3", "bert"])
@pytest.mark.parametrize("target", [{"macs": "0.001x"}, {"params": "0.001x"}])
def test_a_target_out_of_reach_says_the_least(name: str, target: dict[str, str]) -> None:
    model, inputs = build(name)
    text = message(model, inputs, SettingError, **target, round_to=4)
    ((kind, value),) = target.items()
    assert text.startswith(f"{kind}={value} cannot be met: 0.")
    assert "x is the least with round_to=4, max_sparsity=0.9" in text
    assert "and these layers protected: " in text
    assert "\n" not in text
    least = text.split(": ")[1].split(" ")[0]
    mz.prepare(model, [mz.PruneChannels(**{kind: least}, round_to=4)], example_inputs=inputs)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            torch.ones(2, 4, 16, 16),
            "Vgg does not run on the example inputs: Given groups=1",
        ),
        ((torch.ones(2, 3, 16, 16),) * 2, "Vgg does not run on the example inputs: "),
        ({"image": torch.ones(2, 3, 16, 16)}, "Vgg does not run on the example inputs: "),
        (torch.ones(2, 3, 16, 16).long(), "Vgg does not run on the example inputs: "),
    ],
    ids=["channels", "too many", "keyword", "type"],
)
def test_example_inputs_that_do_not_fit(inputs: Any, text: str) -> None:
    found = message(build("vgg")[0], inputs, ModelError, sparsity=0.5)
    assert found.startswith(text)
    assert "\n" not in found


def test_a_model_that_fails_in_forward_shows_its_own_first_line() -> None:
    found = message(Failing(), torch.ones(2, 6), ModelError, sparsity=0.5)
    assert found == "Failing does not run on the example inputs: no weights for this camera"


def test_targets_that_are_all_protected_are_listed_with_reasons() -> None:
    model, inputs = build("detector")
    found = message(model, inputs, ModelError, sparsity=0.5, targets=("classes", "boxes"))
    assert found.startswith("prune_channels can prune none of the layers: ")
    assert "'classes' feeds the model's output; 'boxes' feeds the model's output" in found


def test_targets_that_match_nothing_list_the_layers() -> None:
    model, inputs = build("detector")
    found = message(model, inputs, SelectionError, sparsity=0.5, targets=("head",))
    assert found.startswith("targets=['head'] matches none of the 7 Conv")


def test_example_inputs_must_be_given() -> None:
    found = message(build("vgg")[0], None, SettingError, sparsity=0.5)
    assert "prune_channels needs example inputs" in found
