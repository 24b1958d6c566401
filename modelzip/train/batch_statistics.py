"""How far a batch is from what batch norms saw in training, differentiable in the batch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from modelzip.core.batch_norm import has_statistics
from modelzip.errors import ModelError


class Gap:
    """The terms of one forward pass; `take` averages them and starts anew."""

    def __init__(self) -> None:
        self._terms: list[Tensor] = []

    def see(self, norm: nn.Module, args: tuple[Any, ...]) -> None:
        """Compare what `norm` is about to normalise, [N, C, ...], with its statistics."""
        if isinstance(norm, _BatchNorm):
            self._terms.append(distance(norm, args[0]))

    def take(self) -> Tensor:
        """The mean over the norms that ran since the last call; ModelError if none did."""
        if not self._terms:
            raise ModelError("no batch norm runs when the model does; its statistics are no guide")
        found = torch.stack(self._terms).mean()
        self._terms = []
        return found


def distance(norm: _BatchNorm, values: Tensor) -> Tensor:
    """Mean over channels of the squared errors of mean and deviation, in running deviations.

    ZeroQ (Cai et al. 2020, https://arxiv.org/abs/2001.00281) compares them as they are; relative
    to the running deviation no layer counts more than another for its scale.

    >>> norm = nn.BatchNorm1d(1).eval()
    >>> like, constant = torch.tensor([[-1.0], [1.0]]), torch.ones(2, 1)
    >>> [round(distance(norm, values).item(), 2) for values in (like, constant)]
    [0.0, 1.99]
    """
    dims = [d for d in range(values.dim()) if d != 1]
    found_var, found = torch.var_mean(values.float(), dims, correction=0)
    mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    deviation = (var + norm.eps).sqrt()
    shift = ((found - mean) / deviation).square()
    spread = ((found_var + norm.eps).sqrt() / deviation - 1).square()
    return (shift + spread).mean()


@contextmanager
def compared(model: nn.Module) -> Iterator[Gap]:
    """Inside, each forward pass of `model` leaves its distance from training in the `Gap`.

    Raises:
        ModelError: the model has no batch norm with running statistics, or none was ever trained.
    """
    norms = [module for module in model.modules() if has_statistics(module)]
    if not norms:
        raise ModelError(
            f"{type(model).__name__} has no batch norm with running statistics (or they are folded "
            "into its weights), and synthetic data are made from those; give the model from "
            "before folding, or calibrate on real samples, calibration: 512"
        )
    if all(_untrained(norm) for norm in norms):
        raise ModelError(
            f"no batch norm of {type(model).__name__} was ever trained (means 0, variances 1), and "
            "synthetic data are made from their statistics; load the trained weights"
        )
    gap = Gap()
    handles = [norm.register_forward_pre_hook(gap.see) for norm in norms]
    try:
        yield gap
    finally:
        for handle in handles:
            handle.remove()


def _untrained(norm: nn.Module) -> bool:
    mean, var = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
    return not bool(mean.any()) and bool((var == 1).all())
