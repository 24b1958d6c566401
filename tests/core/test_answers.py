"""Answers as log-probabilities, and their divergence."""

from __future__ import annotations

import math

import pytest
import torch

from modelzip.core.answers import Tally, log_probabilities
from modelzip.errors import ModelError


def test_logits_are_softened_at_a_temperature_of_three() -> None:
    found = log_probabilities(torch.tensor([[3.0, 0.0]])).exp()
    assert found[0, 0].item() == pytest.approx(math.e / (math.e + 1))


def test_the_first_floating_tensor_of_two_dimensions_is_read() -> None:
    logits = torch.tensor([[1.0, 2.0]])
    outputs = {"ids": torch.tensor([[1, 2]]), "loss": torch.tensor(1.0), "more": (logits,)}
    assert torch.equal(log_probabilities(outputs), log_probabilities(logits))


def test_every_position_is_an_answer() -> None:
    assert log_probabilities(torch.zeros(2, 5, 7)).shape == (10, 7)


def test_classes_lie_where_the_targets_have_no_axis() -> None:
    logits, targets = torch.randn(2, 3, 4, 5), torch.zeros(2, 4, 5, dtype=torch.long)
    expected = log_probabilities(logits.permute(0, 2, 3, 1))
    assert torch.equal(log_probabilities(logits, targets), expected)


def test_one_output_is_the_logit_of_the_second_of_two_classes() -> None:
    found = log_probabilities(torch.tensor([[6.0]])).exp()
    assert found.tolist()[0] == pytest.approx([1 / (1 + math.e**2), 1 / (1 + math.e**-2)])


def test_divergence_agreement_and_accuracy_by_hand() -> None:
    original = torch.tensor([[0.5, 0.5], [0.75, 0.25]], dtype=torch.float64).log()
    changed = torch.tensor([[0.25, 0.75], [0.75, 0.25]], dtype=torch.float64).log()
    tally = Tally()
    tally.add(original, changed, torch.tensor([1, 1]))
    assert tally.kl == pytest.approx((0.5 * math.log(2) + 0.5 * math.log(2 / 3)) / 2)
    assert (tally.agreement, tally.accuracy) == (0.5, 0.5)


@pytest.mark.parametrize("targets", [None, torch.tensor([0.5]), torch.tensor([0, 1, 1])])
def test_there_is_no_accuracy_without_a_label_for_each_answer(targets: torch.Tensor | None) -> None:
    answers = log_probabilities(torch.tensor([[1.0, 0.0]]))
    tally = Tally()
    tally.add(answers, answers, torch.tensor([0]))
    assert tally.accuracy == 1.0
    tally.add(answers, answers, targets)
    assert tally.accuracy is None


def test_outputs_that_are_no_answers_are_refused() -> None:
    with pytest.raises(ModelError, match="no output of floats with at least two dimensions"):
        log_probabilities((torch.ones(3), torch.ones(2, 2, dtype=torch.long)))
    with pytest.raises(ModelError, match="NaN or infinite on the calibration data"):
        log_probabilities(torch.tensor([[float("inf"), 0.0]]))
