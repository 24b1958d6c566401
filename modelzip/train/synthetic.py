"""Data made from a model alone: inputs whose batch statistics are those of its training."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam

from modelzip.core import checks
from modelzip.core.running import call, evaluating, frozen
from modelzip.data.arrays import ArrayDataset
from modelzip.data.base import Splits, generator_for, loader
from modelzip.data.checking import check_model, logits
from modelzip.errors import DataError, ModelError
from modelzip.train.batch_statistics import compared
from modelzip.train.loss import set_rate
from modelzip.train.processes import placed, uses_bfloat16

log = logging.getLogger(__name__)

_HELD_OUT = 0.25  # of `samples`, made besides them for validation


@dataclass(frozen=True, kw_only=True)
class Synthetic:
    """Settings of synthetic data, which a recipe gives as `calibration: {synthetic: {...}}`.

    Args:
        samples: that passes may look at; a quarter as many are made besides, for validation.
        steps: of Adam on each batch, with a cosine schedule to zero.
        lr: peak learning rate, in units of the inputs.

    >>> Synthetic(samples=0)
    Traceback (most recent call last):
    modelzip.errors.SettingError: samples must be an integer of at least 1, got 0
    """

    samples: int = 128
    steps: int = 60
    lr: float = 0.3

    def __post_init__(self) -> None:
        checks.integer("samples", self.samples, low=1)
        checks.integer("steps", self.steps, low=1)
        checks.positive("lr", self.lr)


def synthesize(
    model: nn.Module,
    example_inputs: Any,
    *,
    samples: int = 128,
    batch_size: int = 64,
    steps: int = 60,
    lr: float = 0.3,
    seed: int = 0,
) -> list[Tensor]:
    """Batches of inputs that look to `model` as its training data did; no sample is read.

    Each batch starts as Gaussian noise and descends on the distance of means and deviations before
    every batch norm from the running ones. "Distilled data" of ZeroQ: Cai et al. 2020,
    https://arxiv.org/abs/2001.00281. A pass takes them as `calibration=`.

    Args:
        model: with trained batch norms, not folded; it is untouched.
        example_inputs: one float tensor [N, ...], or a tuple of one, of which type, device and the
            shape of a sample are taken.
        samples: how many in all; the last batch has what is left, and joins the one before where
            that is under a quarter of `batch_size`, since statistics of a few samples are poor.
        steps, lr: as in `Synthetic`.
        seed: of the noise.

    Raises:
        ModelError: no trained batch norm, or the distance is not finite.
        DataError: the inputs are not one float tensor.

    >>> from modelzip.zoo import digits_cnn
    >>> net, x = digits_cnn(width=2), torch.rand(64, 1, 8, 8)
    >>> _ = net(x)  # in training mode: batch norms see the data
    >>> [tuple(batch.shape) for batch in synthesize(net, x, samples=96, steps=5)]
    [(64, 1, 8, 8), (32, 1, 8, 8)]
    """
    how = Synthetic(samples=samples, steps=steps, lr=lr)
    checks.integer("batch_size", batch_size, low=2)
    form = one_float_tensor(example_inputs)
    found = []
    with evaluating(model), frozen(model), placed(model, form.device), torch.enable_grad():
        for index, size in enumerate(_sizes(samples, batch_size)):
            noise = torch.randn(size, *form.shape[1:], generator=generator_for(seed, index))
            inputs = noise.to(form.device, form.dtype)
            found.append(_descend(model, inputs, how))
    return found


def synthetic_splits(
    model: nn.Module, splits: Splits, how: Synthetic, *, batch_size: int = 64, seed: int = 0
) -> Splits:
    """`splits` with synthetic training and validation data, labelled as `model` would; test stays.

    Of the data only the shape of a test sample is looked at. DataError and ModelError as
    `synthesize`, and where `model` and the test data do not fit.
    """
    example, _ = next(iter(loader(splits.test, batch_size=1)))
    check_model(model, splits.test, classes=splits.classes)
    held_out = max(1, round(_HELD_OUT * how.samples))
    log.info("making %d synthetic samples", how.samples + held_out)
    batches = synthesize(
        model,
        example,
        samples=how.samples + held_out,
        batch_size=max(2, min(batch_size, 64)),
        steps=how.steps,
        lr=how.lr,
        seed=seed,
    )
    with evaluating(model):
        outputs = [logits(call(model, b), model=model, classes=splits.classes) for b in batches]
    whole = ArrayDataset(torch.cat(batches), torch.cat(outputs).argmax(dim=1))
    return replace(
        splits,
        train=ArrayDataset(whole.inputs[held_out:], whole.targets[held_out:]),
        validation=ArrayDataset(whole.inputs[:held_out], whole.targets[:held_out]),
    )


def one_float_tensor(inputs: Any) -> Tensor:
    """The only tensor in a model's `inputs`; DataError where there are more, or it is not float."""
    if isinstance(inputs, (tuple, list)) and len(inputs) == 1:
        inputs = inputs[0]
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.ndim < 2:
        what = type(inputs).__name__
        if isinstance(inputs, Tensor):
            what = f"{str(inputs.dtype).removeprefix('torch.')} {list(inputs.shape)}"
        raise DataError(
            f"data are synthesised for models of one float tensor, N x ..., got {what}; tokens "
            "have no gradients to follow, so take real samples, such as calibration: 512"
        )
    return inputs


def _sizes(samples: int, batch_size: int) -> list[int]:
    whole, rest = divmod(samples, batch_size)
    sizes = [batch_size] * whole
    if not whole or rest >= batch_size / 4:
        return [*sizes, rest] if rest else sizes
    sizes[-1] += rest
    return sizes


def _descend(model: nn.Module, inputs: Tensor, how: Synthetic) -> Tensor:
    inputs.requires_grad_()
    optimizer = Adam([inputs], lr=how.lr)
    bfloat16 = uses_bfloat16("auto", inputs.device)
    with compared(model) as gap:
        for step in range(how.steps):
            set_rate(optimizer, how.lr * 0.5 * (1 + math.cos(math.pi * step / how.steps)))
            with torch.autocast(inputs.device.type, dtype=torch.bfloat16, enabled=bfloat16):
                call(model, inputs)
            distance = gap.take()
            if not bool(torch.isfinite(distance)):
                raise ModelError(
                    f"the batch statistics are not finite at step {step + 1} of {how.steps} of "
                    f"synthesising data; lower lr from {how.lr:g}"
                )
            optimizer.zero_grad()
            distance.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return inputs.detach()
