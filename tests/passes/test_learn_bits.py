"""Learned bits: that they meet the size, go where they are needed, and are kept."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.core import surgery
from modelzip.errors import SettingError
from modelzip.quantization.learned import LearnedWidthQuantizer

X = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
STEPS = 60


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)
    )


def prepared(*, steps=STEPS, **settings):
    pass_ = mz.LearnBits(**settings)
    return mz.prepare(net(), [pass_], example_inputs=X, training_steps=steps)


def train(zipped, *, steps, lr=0.1):
    """Steps that keep the outputs where those of the original were."""
    with torch.no_grad():
        wanted = net()(X)
    optimizer = torch.optim.SGD(zipped.model.parameters(), lr=lr, momentum=0.9)
    zipped.model.train()
    for _ in range(steps):
        loss = F.mse_loss(zipped.model(X), wanted) + zipped.penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()
    return zipped


def bits(zipped):
    zipped.convert()
    return [layer.bits for layer in zipped.reports[0].layers]


def mean_bits(zipped):
    zipped.convert()
    layers = zipped.reports[0].layers
    counts = [96, 512, 512]  # weights, biases aside
    return sum(n * row.bits for n, row in zip(counts, layers, strict=True)) / sum(counts)


def quantizers(zipped):
    return [q for _, _, q in surgery.all_attached(zipped.model, LearnedWidthQuantizer)]


@pytest.mark.parametrize("target", [2, 3.2, 4.5, 8])
def test_bits_meet_the_target_before_training_and_after(target):
    zipped = prepared(bits=target)
    assert mean_bits(zipped) <= target
    assert target - 1 < mean_bits(train(zipped, steps=STEPS)) <= target


def test_bits_go_where_they_matter():
    zipped = prepared(settle=0.9, steps=200)
    quiet = zipped.model.get_submodule("2").parametrizations.weight.original
    with torch.no_grad():  # half of the last layer's inputs, and of this one's outputs, matter not
        quiet.mul_(0.01)
    optimizer = torch.optim.SGD([q.logit for q in quantizers(zipped)], lr=0.05, momentum=0.9)
    zipped.model.train()
    with torch.no_grad():
        wanted = zipped.model.eval()(X)
    zipped.model.train()
    for _ in range(150):
        (10 * F.mse_loss(zipped.model(X), wanted) + zipped.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        zipped.step()
    first, second, third = (float(q.width.detach()) for q in quantizers(zipped))
    assert second < first
    assert second < third
    mean = (96 * first + 512 * second + 512 * third) / 1120
    assert mean == pytest.approx(4.0, abs=0.3)


def test_price_follows_the_gap_to_the_target():
    zipped = prepared(settle=0.9)
    for quantizer in quantizers(zipped):
        quantizer.start(6.0)
    first = zipped.penalty()
    assert float(first.detach()) == pytest.approx(2.0, abs=0.01)  # 2 bits squared, halved
    zipped.step()
    assert float(zipped.penalty().detach()) == pytest.approx(2.0 + 0.05 * 2 * 2, abs=0.01)


def test_settles_into_whole_bits_and_learned_scales():
    zipped = prepared(settle=0.5)
    train(zipped, steps=29)
    assert not zipped.settled()
    assert not any(q.settled for q in quantizers(zipped))
    assert isinstance(zipped.penalty(), torch.Tensor)
    train(zipped, steps=1)
    assert zipped.settled()
    assert all(q.settled for q in quantizers(zipped))
    assert zipped.penalty() == 0.0
    before, scales = bits(zipped), [q.scale.detach().clone() for q in quantizers(zipped)]
    train(zipped, steps=20)
    assert bits(zipped) == before
    after = [q.scale.detach() for q in quantizers(zipped)]
    assert not any(torch.equal(a, b) for a, b in zip(scales, after, strict=True))


@pytest.mark.parametrize("done", [10, 40])
def test_a_checkpoint_goes_on_as_the_run_in_one_piece(tmp_path, done):
    zipped = train(prepared(), steps=done)
    zipped.save(tmp_path / "learn.safetensors")
    again = mz.load_prepared(net, tmp_path / "learn.safetensors")
    found = []
    for run in (zipped, again):
        torch.manual_seed(7)
        found.append(train(run, steps=STEPS - done).convert().state_dict())
    assert [k for k in found[0] if not torch.equal(found[0][k], found[1][k])] == []


def test_pruned_weights_stay_zero():
    passes = [mz.MagnitudePrune(sparsity=0.5), mz.LearnBits()]
    zipped = mz.prepare(net(), passes, example_inputs=X, training_steps=STEPS)
    train(zipped, steps=10)
    zeros = zipped.model.train().get_submodule("2").weight == 0
    assert int(zeros.sum()) >= 200
    train(zipped, steps=STEPS - 10)
    assert not zipped.convert().get_submodule("2").weight[zeros].any()


def test_refuses_wrong_settings():
    with pytest.raises(SettingError, match="bits must be a mean from 2 to 8, got 9"):
        mz.LearnBits(bits=9)
    with pytest.raises(SettingError, match="bits must be a number, got '4'"):
        mz.LearnBits(bits="4")
    with pytest.raises(SettingError, match="activation_bits must be an integer from 2 to 8, got 9"):
        mz.LearnBits(activation_bits=9)
    with pytest.raises(SettingError, match="settle must be a fraction in"):
        mz.LearnBits(settle=0)
    with pytest.raises(SettingError, match="learn_bits needs training"):
        mz.prepare(net(), [mz.LearnBits()], example_inputs=X)
