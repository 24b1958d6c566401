import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from modelzip.train.loss import learning_rate, loss
from modelzip.train.settings import FineTune

OUTPUTS = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
TEACHER = torch.tensor([[2.0, 2.0, 0.0], [1.0, -1.0, 1.0]])
TARGETS = torch.tensor([1, 0])


def softmax(row: list[float], t: float = 1.0) -> list[float]:
    exponentials = [math.exp(v / t) for v in row]
    return [e / sum(exponentials) for e in exponentials]


def test_label_smoothing_by_hand():
    smoothing = 0.3
    expected = 0.0
    for row, target in zip(OUTPUTS.tolist(), TARGETS.tolist(), strict=True):
        wanted = [smoothing / 3 + (1 - smoothing) * (i == target) for i in range(3)]
        expected -= sum(w * math.log(p) for w, p in zip(wanted, softmax(row), strict=True)) / 2
    found = loss(OUTPUTS, TARGETS, FineTune(epochs=1, label_smoothing=smoothing))
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_distillation_by_hand():
    t, weight = 3.0, 0.7
    hard = soft = 0.0
    rows = zip(OUTPUTS.tolist(), TEACHER.tolist(), TARGETS.tolist(), strict=True)
    for row, taught, target in rows:
        hard -= math.log(softmax(row)[target]) / 2
        pairs = zip(softmax(taught, t), softmax(row, t), strict=True)
        soft += sum(p * math.log(p / q) for p, q in pairs) / 2
    settings = FineTune(epochs=1, distill=True, distill_weight=weight, temperature=t)
    found = loss(OUTPUTS, TARGETS, settings, teacher=TEACHER)
    assert float(found) == pytest.approx((1 - weight) * hard + weight * t * t * soft, rel=1e-5)


def test_a_perfect_pupil_has_no_distillation_loss():
    settings = FineTune(epochs=1, distill=True, distill_weight=1.0)
    assert float(loss(TEACHER, TARGETS, settings, teacher=TEACHER)) == pytest.approx(0, abs=1e-6)


def test_step_schedule_falls_at_half_and_at_three_quarters():
    settings = FineTune(steps=8, lr=1.0, schedule="step")
    rates = [learning_rate(settings, step, total=8) for step in range(1, 9)]
    assert rates == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])


@given(
    schedule=st.sampled_from(["cosine", "step", "constant"]),
    warmup=st.floats(0, 0.99),
    total=st.integers(1, 200),
)
def test_every_rate_is_above_zero_and_at_most_lr(schedule, warmup, total):
    settings = FineTune(steps=total, lr=0.3, schedule=schedule, warmup=warmup)
    rates = [learning_rate(settings, step, total=total) for step in range(1, total + 1)]
    assert all(0 < rate <= 0.3 * (1 + 1e-12) for rate in rates)
    rising = round(warmup * total)
    assert rates[rising:] == sorted(rates[rising:], reverse=True)
