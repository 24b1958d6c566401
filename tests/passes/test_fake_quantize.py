"""Pseudo-quantization: what trains, what follows, and what it converts to."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.data import ArrayDataset, Splits
from modelzip.errors import ModelError, SettingError
from modelzip.quantization.fake import ActivationQuantizer, WeightQuantizer
from modelzip.quantization.integer import QuantizedConv, QuantizedLinear
from modelzip.train.finetune import finetune

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(32, 3, 8, 8, generator=GENERATOR)
Y = torch.randint(0, 4, (32,), generator=GENERATOR)


class Net(nn.Module):
    """A residual block with an option-A shortcut, a shared layer and dropout as a function."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv, self.one, self.two = (
            nn.Conv2d(16, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.BatchNorm2d(16),
        )
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = F.pad(x, (0, 0, 0, 0, 4, 4))
        y = F.relu(self.one(self.conv(x)))
        y = F.relu(self.two(self.conv(y)) + x)
        return self.head(F.dropout(F.avg_pool2d(y, y.size(3)).flatten(1), 0.1, self.training))


def prepared(*, model=None, x=X, **settings):
    return mz.prepare(model or Net(), [mz.FakeQuantize(**settings)], example_inputs=(x,))


def train(zipped, steps=15, lr=0.05):
    zipped.model.train()
    optimizer = torch.optim.SGD(zipped.model.parameters(), lr=lr, momentum=0.9)
    losses = []
    for _ in range(steps):
        # two forward passes before one backward, as when gradients are accumulated
        loss = F.cross_entropy(zipped.model(X[:16]), Y[:16]) + F.cross_entropy(
            zipped.model(X[16:]), Y[16:]
        )
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", ["straight_through", "lsq"])
@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.05), (4, 0.3), (2, None)])
def test_trains_and_converts_to_what_was_trained(method, bits, tolerance):
    zipped = prepared(bits=bits, method=method)
    before = {k: v.clone() for k, v in zipped.model.state_dict().items()}
    losses = train(zipped)
    after = zipped.model.state_dict()
    weight = "conv.parametrizations.weight.original"
    assert sum(losses[-3:]) < sum(losses[:3])
    assert not torch.equal(before[weight], after[weight])
    assert not torch.equal(before["norm.running_mean"], after["norm.running_mean"])
    zipped.model.eval()
    with torch.no_grad():
        trained, converted = zipped.model(X), zipped.convert()(X)
    if tolerance is None:  # one rounding that falls otherwise is a large step on a 2-bit grid
        assert (trained.argmax(1) == converted.argmax(1)).float().mean() > 0.8
    else:
        assert float((trained - converted).abs().max() / trained.abs().max()) < tolerance


def test_untrained_it_converts_to_the_integers_of_int8():
    model = Net().eval()
    ours = mz.prepare(model, [mz.FakeQuantize()], example_inputs=X, calibration=[X]).convert()
    theirs = mz.prepare(model, [mz.Int8()], calibration=[X]).convert()
    first, second = ours.state_dict(), theirs.state_dict()
    assert first.keys() == second.keys()
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    with torch.no_grad():
        assert torch.equal(ours(X), theirs(X))


@pytest.mark.parametrize("method", ["straight_through", "lsq"])
def test_training_that_ruins_8_bits_leaves_int8_where_the_start_counts(method):
    model = Net().eval()
    with torch.no_grad():
        validation = ArrayDataset(X, model(X).argmax(1))  # on which the start is good
    train = ArrayDataset(X, Y)
    splits = Splits(train=train, validation=validation, test=train, classes=4)
    zipped = mz.prepare(model, [mz.FakeQuantize(method=method)], example_inputs=X, calibration=[X])
    settings = mz.FineTune(epochs=2, lr=5.0, keep="best_or_start")
    report = finetune(zipped, splits, settings, batch_size=16, progress=False)
    assert report.kept.number == 0
    small = mz.prepare(model, [mz.Int8()], calibration=[X]).convert()
    with torch.no_grad():
        assert torch.equal(zipped.convert()(X), small(X))


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_and_activations_keep_to_their_bits(bits):
    zipped = prepared(bits=bits)
    zipped.model.eval()
    seen = {}
    for name, module in zipped.model.named_modules():
        if isinstance(module, ActivationQuantizer):
            module.register_forward_hook(
                lambda _, __, out, name=name: seen.update({name: out.unique().numel()})
            )
    with torch.no_grad():
        zipped.model(X)
    assert max(seen.values()) <= 2**bits
    assert max(seen.values()) > 2 ** (bits - 1)
    model = zipped.convert()
    for module in model.modules():
        if isinstance(module, (QuantizedConv, QuantizedLinear)):
            assert module.weight.unique().numel() <= 2**bits - 1


def test_activation_bits_may_differ_from_weight_bits():
    model = prepared(bits=4, activation_bits=8).model
    assert model.get_submodule("activation_quantizers.stem").bits == 8
    assert model.get_submodule("conv").parametrizations.weight[0].bits == 4


def test_lsq_gradient_of_a_weight_scale_is_that_of_the_paper():
    # Esser et al. 2020, equations 2 and 3, and the gradient scale of section 2.2
    torch.manual_seed(0)
    weight = torch.randn(3, 5)
    quantizer = WeightQuantizer(weight, bits=3, method="lsq")
    with torch.no_grad():
        quantizer.scale.mul_(0.7)  # so that some weights are clipped
    upstream = torch.randn(3, 5)
    (quantizer(weight) * upstream).sum().backward()
    ratio = weight / quantizer.scale.detach()[:, None]
    by_hand = torch.where(ratio.abs() < 3, ratio.round() - ratio, ratio.sign() * 3)
    assert (ratio.abs() > 3).any()
    expected = (by_hand * upstream).sum(1) / math.sqrt(3 * 5)
    torch.testing.assert_close(quantizer.scale.grad, expected)


def test_lsq_gradient_of_an_activation_scale_is_that_of_the_paper():
    quantizer = ActivationQuantizer(bits=4, form="relu", method="lsq")
    quantizer.set_range(0.0, 3.0)
    values = torch.rand(6, 7) * 4
    quantizer(values).sum().backward()
    ratio = values / 0.2
    by_hand = torch.where(ratio < 15, ratio.round() - ratio, 15.0)
    expected = by_hand.sum() / math.sqrt(15 * 7)
    torch.testing.assert_close(quantizer.scale.grad, expected, rtol=1e-4, atol=1e-4)


def test_a_learned_scale_that_turned_negative_still_deploys_a_positive_one():
    quantizer = ActivationQuantizer(bits=8, form="relu6", method="lsq")
    with torch.no_grad():
        quantizer.scale.fill_(-5.0)
    assert float(quantizer.grid()[0]) == pytest.approx(6 / 255)


def test_straight_through_ranges_follow_the_data_in_training_alone():
    quantizer = ActivationQuantizer(bits=8, form="any", method="straight_through")
    quantizer.set_range(-1.0, 1.0)
    wide = torch.tensor([-3.0, 5.0])
    quantizer.eval()(wide)
    assert (float(quantizer.low), float(quantizer.high)) == (-1.0, 1.0)
    quantizer.train()(wide)
    assert float(quantizer.low) == pytest.approx(-1 + 0.01 * -2)
    assert float(quantizer.high) == pytest.approx(1 + 0.01 * 4)


def test_straight_through_weight_scales_follow_the_weight():
    layer = prepared(model=nn.Sequential(nn.Linear(4, 2)), x=torch.randn(3, 4)).model.train()
    linear = layer.get_submodule("0")
    with torch.no_grad():
        linear.parametrizations.weight.original.mul_(3.0)
    peak = linear.parametrizations.weight.original.detach().abs().amax(1)
    assert torch.equal(linear.weight.detach().abs().amax(1), peak)
    torch.testing.assert_close(linear.parametrizations.weight[0].scale, peak / 127)


@pytest.mark.parametrize("training", [True, False])
def test_the_prepared_model_keeps_the_mode_of_the_original(training):
    model = prepared(model=Net().train(training)).model
    # parametrization lists have no mode of their own
    modes = {n: m.training for n, m in model.named_modules() if "parametrizations" not in n}
    assert set(modes.values()) == {training}


def test_dropout_functions_follow_the_mode():
    torch.manual_seed(0)
    model = prepared().model
    with torch.no_grad():
        model.eval()
        assert torch.equal(model(X), model(X))
        model.train()
        for module in model.modules():  # nothing else that changes from call to call
            module.training = isinstance(module, nn.Dropout)
        assert not torch.equal(model(X), model(X))


@pytest.mark.parametrize("method", ["straight_through", "lsq"])
def test_a_checkpoint_continues_and_converts_the_same(tmp_path: Path, method):
    zipped = prepared(bits=6, method=method)
    train(zipped, steps=3)
    zipped.save(tmp_path / "qat.safetensors")
    again = mz.load_prepared(Net, tmp_path / "qat.safetensors")
    assert again.steps == 3
    first, second = (z.convert().state_dict() for z in (zipped, again))
    assert [k for k in first if not torch.equal(first[k], second[k])] == []
    torch.manual_seed(5)
    losses = train(zipped, steps=2)
    torch.manual_seed(5)
    assert train(again, steps=2) == losses


@pytest.mark.parametrize("method", ["straight_through", "lsq"])
def test_pruned_weights_stay_zero_through_training_and_convert(method):
    passes = [mz.MagnitudePrune(sparsity=0.6), mz.FakeQuantize(bits=4, method=method)]
    zipped = mz.prepare(Net(), passes, example_inputs=X)
    train(zipped, steps=5)
    kept = {
        name: module.weight != 0
        for name, module in zipped.model.eval().named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
    }
    zeros = sum(int((~mask).sum()) for mask in kept.values())
    assert zeros >= 0.59 * sum(mask.numel() for mask in kept.values())
    model = zipped.convert()
    for name, mask in kept.items():
        frozen = model.get_submodule(f"{name}_call1" if name == "conv" else name)
        assert not frozen.weight[~mask].any()


def test_refuses_wrong_settings():
    with pytest.raises(SettingError, match="bits must be an integer from 2 to 8, got 9"):
        mz.FakeQuantize(bits=9)
    with pytest.raises(SettingError, match="activation_bits must be an integer from 2 to 8, got 1"):
        mz.FakeQuantize(activation_bits=1)
    with pytest.raises(SettingError, match="method has no choice 'lsqq'; did you mean 'lsq'"):
        mz.FakeQuantize(method="lsqq")
    with pytest.raises(SettingError, match="fake_quantize needs example inputs"):
        mz.prepare(Net(), [mz.FakeQuantize()])
    with pytest.raises(SettingError, match="fake_quantize: the model is quantized already"):
        mz.prepare(Net(), [mz.FakeQuantize(), mz.FakeQuantize()], example_inputs=X)


def test_refuses_example_inputs_that_are_not_finite():
    with pytest.raises(ModelError, match="activation 'x_in' is NaN or infinite"):
        prepared(x=X * float("nan"))
