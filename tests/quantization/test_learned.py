"""Quantizers whose bits are learned."""

import pytest
import torch

from modelzip.quantization.learned import LearnedWidthQuantizer, SizePrice

WEIGHT = torch.randn(4, 50, generator=torch.Generator().manual_seed(0))


def quantizer(width, bits=4):
    made = LearnedWidthQuantizer(WEIGHT, bits=bits)
    made.start(width)
    made.choose(WEIGHT, bits=bits)
    return made


@pytest.mark.parametrize("width", [2.1, 4.0, 7.9])
def test_learns_from_the_width_it_starts_at(width):
    assert float(quantizer(width).width.detach()) == pytest.approx(width, abs=1e-4)


@pytest.mark.parametrize("width", [2.0, 8.0])
def test_starts_just_inside_the_ends_where_the_width_has_a_gradient(width):
    made = quantizer(width)
    made.width.backward()
    assert float(made.width.detach()) == pytest.approx(width, abs=0.1)
    assert abs(float(made.logit.grad)) > 0.1


def test_noise_in_training_shrinks_with_the_width_and_changes_each_time():
    torch.manual_seed(0)
    errors = []
    for width in (3.0, 5.0):
        made = quantizer(width).train()
        with torch.no_grad():
            errors.append(float((made(WEIGHT) - WEIGHT).square().mean()))
            assert not torch.equal(made(WEIGHT), made(WEIGHT))
    assert errors[1] < errors[0] / 8


def test_evaluation_and_settled_training_round_to_the_chosen_bits():
    made = quantizer(5.0, bits=3)
    with torch.no_grad():
        evaluated = made.eval()(WEIGHT)
        made.settled = True
        assert torch.equal(made.train()(WEIGHT), evaluated)
    for row in evaluated:
        assert row.unique().numel() <= 7
    integers, scale = made.integers(WEIGHT)
    torch.testing.assert_close(integers * scale[:, None], evaluated)


def test_width_gets_a_gradient_from_noise_and_the_scale_from_rounding():
    torch.manual_seed(0)
    made = quantizer(4.5).train()
    (made(WEIGHT) - WEIGHT).square().sum().backward()
    assert float(made.logit.grad) < 0  # more bits, less noise
    assert made.scale.grad is None
    made.logit.grad, made.settled = None, True
    made(WEIGHT).square().sum().backward()
    assert made.logit.grad is None
    assert made.scale.grad is not None


def test_state_carries_the_bits():
    source, target = quantizer(5.0, bits=3), quantizer(4.0, bits=6)
    source.settled = True
    target.load_state_dict(source.state_dict())
    assert (target.bits, target.settled) == (3, True)
    with torch.no_grad():
        assert torch.equal(target.eval()(WEIGHT), source.eval()(WEIGHT))


def test_price_follows_the_gap_once_a_step():
    price = SizePrice(settle_step=3)
    assert price.follow(2.0, step=1)
    assert not price.follow(2.0, step=1)
    assert float(price.value) == pytest.approx(0.1)
    assert price.follow(-1.0, step=2)
    assert float(price.value) == pytest.approx(0.05)
    assert not price.settled
    assert price.follow(0.0, step=3)
    assert price.settled


def test_penalty_pulls_by_the_price_and_the_gap():
    price = SizePrice(settle_step=9)
    price.value.fill_(0.3)
    gap = torch.tensor(0.2, requires_grad=True)
    term = price.penalty(gap)
    term.backward()
    assert float(term.detach()) == pytest.approx(0.3 * 0.2 + 0.02)
    assert float(gap.grad) == pytest.approx(0.3 + 0.2)
