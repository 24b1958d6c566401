import re

import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.errors import SettingError
from modelzip.runtime.session import load


def conv_net() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    model[1].running_var.fill_(0.5)
    model[-1].weight.data *= 50  # answers that differ
    return model.eval()


X = torch.randn(64, 3, 10, 10, generator=torch.Generator().manual_seed(1))


def squeezed(model: nn.Module, **settings: object) -> nn.Module:
    pass_ = mz.RateQuantize(**settings)
    return mz.prepare(model, [pass_], calibration=[X[:32], X[32:]]).convert()


def bits_of(model: nn.Module) -> float:
    """Of the integers, each layer by its own entropy."""
    total = 0.0
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.int8:
            counts = tensor.flatten().int().unique(return_counts=True)[1].double()
            total -= float((counts * (counts / counts.sum()).log2()).sum())
    return total


@pytest.mark.parametrize("size", [0.08, 0.1, 0.2])
def test_meets_a_size(size):
    model = conv_net()
    small = squeezed(model, size=f"{size}x")
    weights = sum(p.numel() for p in model.parameters())
    assert bits_of(small) <= size * 32 * weights
    assert bits_of(small) >= 0.4 * size * 32 * weights  # scales and biases count as well


def test_meets_a_divergence():
    model = conv_net()
    with torch.no_grad():
        exact = torch.log_softmax(model(X).double(), -1)
        for kl in (1e-3, 1e-2):
            answers = torch.log_softmax(squeezed(model, kl=kl)(X).double(), -1)
            found = float((exact.exp() * (exact - answers)).sum(1).mean())
            assert 0.5 * kl < found <= kl


def test_what_is_left_is_spent_better_than_on_even_bits():
    model = conv_net()
    weights = sum(p.numel() for p in model.parameters())
    even = mz.prepare(model, [mz.WeightOnly(bits=4)]).convert()
    small = squeezed(model, size=f"{bits_of(even) / 32 / weights:.3f}x")
    with torch.no_grad():
        errors = [float((m(X) - model(X)).square().mean()) for m in (even, small)]
    assert bits_of(small) < bits_of(even)
    assert errors[1] < errors[0]


def test_its_file_holds_the_integers_and_no_norm(tmp_path):
    small = squeezed(conv_net(), size="0.1x")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small.modules())
    session = load(mz.export_onnx(small, X[:2], tmp_path / "small.onnx"))
    answers = session.run({session.inputs[0].name: X[:2].numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(answers), small(X[:2]), rtol=1e-4, atol=1e-5)


def test_layers_that_run_twice_or_hold_indices_are_rounded_too():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.layer = nn.Embedding(50, 16), nn.Linear(16, 16)

        def forward(self, tokens):
            return self.layer(torch.tanh(self.layer(self.embedding(tokens)))).mean(1)

    tokens = torch.randint(50, (32, 7), generator=torch.Generator().manual_seed(0))
    pass_ = mz.RateQuantize(size="0.15x")
    small = mz.prepare(Twice(), [pass_], calibration=[tokens]).convert()
    assert {t.dtype for n, t in small.state_dict().items() if n.endswith(".weight")} == {torch.int8}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "rate_quantize needs size, such as 0.05x, or kl, got none"),
        ({"size": "0.1x", "kl": 0.1}, "rate_quantize needs size, such as 0.05x, or kl, got both"),
        ({"size": "2x"}, "size must be a ratio to the original such as 0.4x, got '2x'"),
        ({"kl": 0}, "kl must be above 0, got 0"),
        ({"size": "0.1x", "price": -1}, "price must be at least 0, got -1"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(SettingError, match=re.escape(message)):
        mz.RateQuantize(**settings)


def test_a_target_out_of_reach_says_the_least_there_is():
    with pytest.raises(SettingError, match=r"size=0\.0001x is out of reach: 0\.\d+x is the least"):
        squeezed(conv_net(), size="0.0001x")
