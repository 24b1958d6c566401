import pytest
import torch
import torch.nn.functional as F
from torch import nn

import modelzip as mz
from modelzip.data.corruptions import PixelScale
from modelzip.errors import DataError, ModelError
from modelzip.measure.attacks import StraightThrough, attack

SCALE = PixelScale((0.5, 0.4), (0.25, 0.5))


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    head = [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)]
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), *head).eval()


def samples(count: int = 6):
    pixels = torch.rand(count, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    return SCALE.inputs(pixels), torch.arange(count) % 3


def test_one_step_is_the_sign_of_the_gradient():
    model, (inputs, labels) = net(), samples()
    pixels = SCALE.pixels(inputs).requires_grad_()
    F.cross_entropy(model(SCALE.inputs(pixels)), labels).backward()
    expected = SCALE.inputs((pixels + 0.03 * pixels.grad.sign()).clamp(0, 1).detach())
    found = attack(model, inputs, labels, scale=SCALE, epsilon=0.03)
    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("steps", [1, 5])
def test_the_bound_is_in_pixels_and_pixels_stay_in_range(steps):
    inputs, labels = samples()
    start = torch.Generator().manual_seed(0)
    found = attack(net(), inputs, labels, scale=SCALE, epsilon=0.1, steps=steps, generator=start)
    change = found * torch.tensor(SCALE.std).view(-1, 1, 1) - (
        inputs * torch.tensor(SCALE.std).view(-1, 1, 1)
    )
    assert float(change.abs().max()) == pytest.approx(0.1, abs=1e-5)
    pixels = SCALE.pixels(found)  # refuses what is out of range
    assert 0 <= float(pixels.min()) <= float(pixels.max()) <= 1


def test_more_steps_raise_the_loss_further():
    model, (inputs, labels) = net(), samples()

    def loss(of):
        return F.cross_entropy(model(of), labels).item()

    one = attack(model, inputs, labels, scale=SCALE, epsilon=0.1)
    many = attack(model, inputs, labels, scale=SCALE, epsilon=0.1, steps=20)
    assert loss(inputs) < loss(one) <= loss(many) + 1e-4


def test_an_integer_module_is_attacked_through_its_rounding():
    model, (inputs, labels) = net(), samples()
    integers = mz.prepare(
        model, [mz.Int8()], example_inputs=inputs, calibration=[(inputs, labels)]
    ).convert()
    with StraightThrough():
        assert torch.equal(integers(inputs), integers(inputs.clone()))
        through = integers(inputs)
    assert torch.equal(through, integers(inputs))  # the values are those without it
    found = attack(integers, inputs, labels, scale=SCALE, epsilon=0.1)
    before, after = (F.cross_entropy(integers(x), labels).item() for x in (inputs, found))
    assert after > before


def test_the_module_is_left_as_it_was():
    model, (inputs, labels) = net().train(), samples()
    attack(model, inputs, labels, scale=SCALE, epsilon=0.1)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


class Stuck(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, x):
        return self.how(x.flatten(1)[:, :3])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (torch.sign, "Stuck gives no gradients: they are all zero"),
        (lambda x: x.detach() * 2, "Stuck gives no gradients: element 0 of tensors does not"),
    ],
)
def test_a_module_without_gradients_is_refused(how, message):
    inputs, labels = samples()
    with pytest.raises(ModelError, match=message):
        attack(Stuck(how), inputs, labels, scale=SCALE, epsilon=0.1)


def test_what_are_no_images_are_refused():
    with pytest.raises(DataError, match="corruptions are for images"):
        attack(net(), torch.zeros(2, 3), torch.zeros(2).long(), scale=SCALE, epsilon=0.1)
