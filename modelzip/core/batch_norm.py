"""Running statistics of batch norms, taken again from data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from modelzip.core.base import Batch
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import DataError, ModelError


def has_statistics(module: nn.Module) -> bool:
    """Whether `module` is a batch norm that keeps a running mean and variance."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def reestimate(
    model: nn.Module, norms: Mapping[str, _BatchNorm], batches: Sequence[Batch]
) -> list[str]:
    """Make the running statistics of `norms` their averages over `batches`, by samples.

    All else is in eval mode meanwhile, so that nothing is dropped out. Returns the names of norms
    that did not run, which are as they were; after an error all of them are.

    Raises:
        DataError: a batch has one value a channel, of which there is no variance.
        ModelError: no norm ran, or a mean or variance is not finite.

    >>> model = nn.Sequential(nn.BatchNorm1d(1))
    >>> reestimate(model, {"0": model[0]}, [Batch(torch.tensor([[1.0], [3.0]]), None)])
    []
    >>> model[0].running_mean.item(), model[0].running_var.item()
    (2.0, 2.0)
    """
    before = {name: _batches_seen(norm) for name, norm in norms.items()}
    with evaluating(model), _whole_or_not_at_all(norms):
        for norm in norms.values():
            norm.train()
        samples = 0
        for batch in batches:
            count = next((len(t) for t in tensors(batch.inputs) if t.dim()), 1)
            samples += count
            for norm in norms.values():
                norm.momentum = count / samples  # a running mean; 1 forgets what was there
            _run(model, batch, count)
        idle = [name for name, norm in norms.items() if _batches_seen(norm) == before[name]]
        if len(idle) == len(norms):
            raise ModelError(f"the calibration data reach none of: {', '.join(idle)}")
        for name, norm in norms.items():
            if not all(bool(torch.isfinite(b).all()) for b in norm.buffers(recurse=False)):
                raise ModelError(
                    f"the statistics of {name} on the calibration data are NaN or infinite"
                )
    return idle


def _run(model: nn.Module, batch: Batch, count: int) -> None:
    try:
        call(model, batch.inputs)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise DataError(
            f"a calibration batch of {count} gives a batch norm one value a channel, of which "
            "there is no variance; give larger batches"
        ) from error


def _batches_seen(norm: _BatchNorm) -> int:
    return int(norm.get_buffer("num_batches_tracked"))


@contextmanager
def _whole_or_not_at_all(norms: Mapping[str, _BatchNorm]) -> Iterator[None]:
    """Afterwards momenta are as they were, and after an error statistics too."""
    buffers = [(b, b.clone()) for norm in norms.values() for b in norm.buffers(recurse=False)]
    momenta = [(norm, norm.momentum) for norm in norms.values()]
    try:
        yield
    except BaseException:
        for buffer, value in buffers:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum
