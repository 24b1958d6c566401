"""What the steps of a recipe work with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from modelzip.core.base import Pass
from modelzip.core.running import call, evaluating
from modelzip.data.base import Splits, loader
from modelzip.data.checking import calibration_batches, check
from modelzip.errors import SettingError
from modelzip.recipe.keep_float import Serving
from modelzip.train.finetune import FineTune, training_steps
from modelzip.train.synthetic import Synthetic, synthetic_splits

Step = Pass | FineTune
_EXAMPLES = 8  # samples that passes and the exporter run the model on


@dataclass(frozen=True, kw_only=True)
class Workshop:
    """What steps work with, besides a model."""

    splits: Splits
    batch_size: int
    calibration: Sequence[Any]
    example_inputs: Any
    seed: int
    serving: Serving = field(default_factory=Serving)
    notes: tuple[str, ...] = ()  # for the report


def open_workshop(
    splits: Splits,
    *,
    batch_size: int,
    calibration: int | Synthetic,
    seed: int,
    serving: Serving | None = None,
    model: nn.Module | None = None,
) -> Workshop:
    """The data ready for steps: checked, and `calibration` training samples picked by `seed`.

    With `Synthetic` in their place, training and validation data are made from `model`, those
    of `splits` stay unread, and a note for the report says so.
    """
    notes: tuple[str, ...] = ()
    if isinstance(calibration, Synthetic):
        if model is None:
            raise SettingError("synthetic calibration is made from the model; pass model=")
        splits = synthetic_splits(model, splits, calibration, batch_size=batch_size, seed=seed)
        calibration = calibration.samples
        notes = (
            f"No training data were used: {calibration} samples were synthesised from the model's "
            "batch norms, and accuracies on validation are agreement with the original on such.",
        )
    check(splits)

    def pick(samples: int, size: int) -> list[Any]:
        return calibration_batches(splits, samples=samples, batch_size=size, seed=seed)

    return Workshop(
        splits=splits,
        batch_size=batch_size,
        calibration=pick(calibration, batch_size),
        example_inputs=pick(_EXAMPLES, min(_EXAMPLES, batch_size))[0][0],
        seed=seed,
        serving=serving or Serving(),
        notes=notes,
    )


def validation_accuracy(model: nn.Module, shop: Workshop) -> float:
    """Fraction of the validation slice whose largest output is its label, in PyTorch."""
    correct = total = 0
    with evaluating(model):
        for inputs, targets in loader(shop.splits.validation, batch_size=shop.batch_size):
            correct += int((call(model, inputs).argmax(dim=1) == targets).sum())
            total += len(targets)
    return correct / total


def steps_to_come(steps: Sequence[Step], shop: Workshop) -> int | None:
    """Optimizer steps of the next fine-tuning; None if there is none."""
    following = next((s for s in steps if isinstance(s, FineTune)), None)
    if following is None:
        return None
    return training_steps(following, shop.splits, batch_size=shop.batch_size)
