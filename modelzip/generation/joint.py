"""What training two networks together has in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from modelzip.data.base import Normalised, Splits, loader, set_epoch
from modelzip.errors import DataError, ModelError, SettingError
from modelzip.train.loop import epoch_steps
from modelzip.train.processes import Processes, placed, uses_bfloat16
from modelzip.train.progress import bar
from modelzip.train.randomness import own_randomness, seed_all
from modelzip.zoo.generation import ImageGenerator

_CHUNK = 1000
_SHAPE = [1, 28, 28]

Step = Callable[[Tensor, Tensor, float], Tensor]


def plain(inputs: Tensor, dataset: Dataset[Any]) -> Tensor:
    """Images [N, 1, 28, 28] of a dataset as pixels in [0, 1], however they are normalised.

    DataError for images of another shape, or values outside [0, 1] that no mean and std explain.
    """
    if list(inputs.shape[1:]) != _SHAPE:
        raise DataError(f"images are {list(inputs.shape[1:])}; these networks take {_SHAPE}")
    if not isinstance(dataset, Normalised) or not dataset.mean:
        low, high = inputs.aminmax()
        if low < 0 or high > 1:
            raise DataError(
                f"pixels are {low:.4g} to {high:.4g}, not in [0, 1]; leave them as they are, or "
                "have the dataset say how they were normalised (modelzip.data.base.Normalised)"
            )
        return inputs
    return (inputs * dataset.std[0] + dataset.mean[0]).clamp(0, 1)


def all_pixels(dataset: Dataset[Any]) -> Tensor:
    """Every image of a dataset, [N, 1, 28, 28] in [0, 1]."""
    return torch.cat([plain(inputs, dataset) for inputs, _ in loader(dataset, batch_size=_CHUNK)])


def generator(model: nn.Module, *, latent: int) -> ImageGenerator:
    """`model`, once it is known to fit a companion of `latent` values; else SettingError."""
    if not isinstance(model, ImageGenerator):
        raise SettingError(
            f"this companion trains modelzip.zoo:image_generator, got {type(model).__name__}"
        )
    if model.latent != latent:
        raise SettingError(f"the model has latent={model.latent}, its companion latent={latent}")
    return model


def train_jointly(
    networks: Sequence[nn.Module],
    step: Step,
    data: Splits,
    *,
    epochs: float,
    batch_size: int,
    seed: int,
    progress: bool,
) -> None:
    """Call `step` on (pixels, labels, share of the training that is over) for `epochs`.

    `step` trains `networks` and returns its loss; in bfloat16 where the processor computes it.
    ModelError where the loss is not finite. The networks are left in eval mode.
    """
    per_epoch = epoch_steps(data, batch_size)
    total = max(1, round(epochs * per_epoch))
    processes = Processes()
    with ExitStack() as stack:
        stack.enter_context(own_randomness(processes.device))
        for network in networks:
            stack.enter_context(placed(network.train(), processes.device))
        half = uses_bfloat16("auto", processes.device)
        autocast = torch.autocast(processes.device.type, dtype=torch.bfloat16, enabled=half)
        tell = stack.enter_context(
            bar(total=total, epochs=math.ceil(epochs), shown=progress, labelled=False)
        )
        for epoch in range(math.ceil(total / per_epoch)):
            seed_all(seed, epoch)
            batches = loader(
                data.train, batch_size=batch_size, shuffle=True, seed=seed, drop_last=True
            )
            set_epoch(batches, epoch)
            numbers = range(epoch * per_epoch, min((epoch + 1) * per_epoch, total))
            for number, batch in zip(numbers, batches, strict=False):
                inputs, labels = processes.moved(batch)
                with autocast:
                    loss = float(step(plain(inputs, data.train), labels, number / total).detach())
                if not math.isfinite(loss):
                    raise ModelError(
                        f"the loss is {loss} at step {number + 1} of {total}; lower lr"
                    )
                tell(step=number + 1, epoch=epoch + 1, loss=loss, accuracy=math.nan)
    for network in networks:
        network.eval().zero_grad(set_to_none=True)
