"""Whether calibration data can stand for what the model will see."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from modelzip.core.base import Batch
from modelzip.core.running import tensors
from modelzip.errors import DataError

log = logging.getLogger(__name__)

_FAR = 3.0  # in deviations, or the ratio of two


def refuse_constant(batches: Sequence[Batch]) -> None:
    """DataError if every value of every batch is the same: no range follows from that.

    >>> refuse_constant([Batch(torch.zeros(4, 3), None)])
    Traceback (most recent call last):
    modelzip.errors.DataError: the calibration data are one constant, 0, in all 4 samples; give \
samples of what the model will see
    """
    given = [t for batch in batches for t in tensors(batch.inputs) if t.numel()]
    if not given or given[0].numel() == 1:
        return
    value = given[0].flatten()[0]
    if all(bool((t == value).all()) for t in given):
        samples = sum(len(next(tensors(batch.inputs))) for batch in batches)
        raise DataError(
            f"the calibration data are one constant, {value.item():g}, in all {samples} samples; "
            "give samples of what the model will see"
        )


@contextmanager
def compared_with_training(model: nn.Module) -> Iterator[None]:
    """Warn if what the first batch norm to run sees inside is far from its own statistics.

    Those come from training, so data on another scale, such as 0 to 255 in place of 0 to 1, show.
    """
    seen: list[tuple[str, nn.Module, Tensor]] = []
    handles = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) and module.track_running_stats:

            def see(norm: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                if not seen:
                    seen.append((name, norm, args[0].detach()))

            handles.append(module.register_forward_pre_hook(see))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
    for name, norm, values in seen:
        _compare(name, norm, values)


def _compare(name: str, norm: nn.Module, values: Tensor) -> None:
    mean, var = norm.running_mean, norm.running_var
    if not isinstance(mean, Tensor) or not isinstance(var, Tensor) or not bool(mean.any()):
        return  # never trained
    found_var, found = torch.var_mean(values.float(), [d for d in range(values.dim()) if d != 1])
    deviation = var.clamp_min(1e-12).sqrt()
    ratio = float((found_var.sqrt() / deviation).median())
    shift = float(((found - mean).abs() / deviation).median())
    if not (1 / _FAR < ratio < _FAR and shift < _FAR):
        log.warning(
            "the calibration data are unlike the training data: before %s the values have %.3g "
            "times the deviation of training and lie %.3g deviations off; check how the inputs "
            "are scaled",
            name,
            ratio,
            shift,
        )
