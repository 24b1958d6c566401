import pytest
import torch
from torch import nn

import modelzip as mz
from modelzip.data.absent import evaluation_only
from modelzip.errors import DataError, ModelError, SettingError
from modelzip.train.batch_statistics import compared
from modelzip.train.synthetic import Synthetic, one_float_tensor, synthesize, synthetic_splits

from . import tasks

SHAPE = (1, 6, 6)
EXAMPLE = torch.zeros(1, *SHAPE)


@pytest.fixture(scope="module")
def net():
    """Its batch norm has seen the task's images, shifted and scaled."""
    found = tasks.model()
    for _ in range(60):
        found(4 * tasks.images(64, seed=0).inputs + 1)
    return found


def far(net, batch):
    net.eval()
    with torch.no_grad(), compared(net) as gap:
        net(batch)
        return gap.take().item()


def test_synthetic_data_have_the_statistics_of_training(net):
    (batch,) = synthesize(net, EXAMPLE, samples=64, steps=60)
    noise = torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert far(net, batch) < 0.05 * far(net, noise)


def test_they_depend_on_the_seed_alone_and_leave_the_model_as_it_was(net):
    net.train()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    torch.manual_seed(5)
    first = synthesize(net, (EXAMPLE,), samples=8, steps=3)
    torch.manual_seed(6)
    again = synthesize(net, EXAMPLE, samples=8, steps=3)
    other = synthesize(net, EXAMPLE, samples=8, steps=3, seed=1)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], other[0])
    assert tasks.same(before, net.state_dict())
    assert net.training
    assert all(p.requires_grad and p.grad is None for p in net.parameters())
    assert not first[0].requires_grad


@pytest.mark.parametrize(
    ("samples", "sizes"), [(3, [3]), (8, [8]), (9, [9]), (10, [8, 2]), (17, [8, 9]), (16, [8, 8])]
)
def test_no_batch_is_too_small_for_statistics(net, samples, sizes):
    batches = synthesize(net, EXAMPLE, samples=samples, batch_size=8, steps=1)
    assert [len(batch) for batch in batches] == sizes


def test_int8_calibrates_on_them_better_than_on_noise(net):
    net.eval()
    images = 4 * tasks.images(32, seed=1).inputs + 1

    def error(batches):
        converted = mz.prepare(net, [mz.Int8()], calibration=batches).convert()
        with torch.no_grad():
            return (converted(images) - net(images)).abs().mean()

    noise = torch.randn(32, *SHAPE, generator=torch.Generator().manual_seed(0))
    assert error(mz.synthesize(net, EXAMPLE, samples=32, steps=60)) < 0.3 * error([noise])


def test_splits_keep_the_test_data_and_read_no_other(net):
    images = tasks.images(16, seed=2)
    given = evaluation_only(images, classes=2)
    made = synthetic_splits(net, given, Synthetic(samples=16, steps=2), batch_size=8)
    assert made.test is images
    assert (len(made.train), len(made.validation)) == (16, 4)
    inputs, labels = made.train.__getitems__(range(16))
    assert inputs.shape == (16, *SHAPE)
    assert torch.equal(net.eval()(inputs).argmax(dim=1), labels)


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (torch.zeros(2, 8, dtype=torch.int64), r"got int64 \[2, 8\]; tokens have no gradients"),
        ((EXAMPLE, EXAMPLE), "one float tensor, N x ..., got tuple"),
        ({"x": EXAMPLE}, "got dict"),
        (torch.zeros(2), r"got float32 \[2\]"),
    ],
)
def test_inputs_that_are_not_one_float_tensor_are_refused(inputs, text):
    with pytest.raises(DataError, match=text):
        one_float_tensor(inputs)


def test_a_model_without_batch_norm_is_refused():
    with pytest.raises(ModelError, match="has no batch norm with running statistics"):
        synthesize(nn.Flatten(), EXAMPLE, samples=4)


def test_statistics_that_are_not_finite_are_refused(net):
    broken = tasks.model()
    broken.load_state_dict(net.state_dict())
    with torch.no_grad():
        broken[0].weight.fill_(float("inf"))
    with pytest.raises(ModelError, match=r"not finite at step 1 of 5 .*; lower lr from 0.3"):
        synthesize(broken, EXAMPLE, samples=4, steps=5)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"samples": 0}, "samples must be an integer of at least 1, got 0"),
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"lr": 0}, "lr must be above 0, got 0"),
    ],
)
def test_settings_are_checked(settings, text):
    with pytest.raises(SettingError, match=text):
        Synthetic(**settings)


def test_a_batch_of_one_is_refused(net):
    with pytest.raises(SettingError, match="batch_size must be an integer of at least 2, got 1"):
        synthesize(net, EXAMPLE, batch_size=1)
