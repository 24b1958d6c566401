"""Adversarial images: the change within a bound that a model's own gradients say hurts most."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from torch.overrides import TorchFunctionMode

from modelzip.core.running import evaluating
from modelzip.data.corruptions import PixelScale
from modelzip.errors import ModelError

_ROUNDING = {torch.round, torch.Tensor.round, torch.Tensor.round_}
_STRIDE = 2.5  # the steps together reach this many times as far as the bound


class StraightThrough(TorchFunctionMode):
    """Rounding inside passes gradients as if it were none, so that integer modules have some.

    Without it their gradients are zero almost everywhere, which would look like robustness.
    Athalye et al. 2018 (BPDA), https://arxiv.org/abs/1802.00420.

    >>> x = torch.tensor([1.6], requires_grad=True)
    >>> with StraightThrough():
    ...     y = x.round()
    >>> y.backward()
    >>> y.tolist(), x.grad.tolist()
    ([2.0], [1.0])
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in _ROUNDING:
            return func(*args, **(kwargs or {}))
        values = args[0]
        change = torch.round(values.detach(), **(kwargs or {})) - values.detach()
        return values.add_(change) if func is torch.Tensor.round_ else values + change


def attack(
    module: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    *,
    scale: PixelScale,
    epsilon: float,
    steps: int = 1,
    generator: Generator | None = None,
) -> Tensor:
    """`inputs` with every pixel changed by up to `epsilon`, to raise the loss of `module`.

    One step is FGSM, Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572; several, from a
    random start where a `generator` is given, are PGD, Madry et al. 2018,
    https://arxiv.org/abs/1706.06083.

    Args:
        module: a classifier [N, C, H, W] to [N, classes], attacked in eval mode.
        scale: of `inputs`; `epsilon` is in pixels, which stay in [0, 1].

    Raises:
        DataError: `inputs` are no images.
        ModelError: the module has no gradients to attack it by.

    >>> pixels = torch.tensor([[[[0.5, 0.99]]]])
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    >>> _ = net[1].weight.data.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> attack(net, pixels, torch.tensor([0]), scale=PixelScale(), epsilon=0.1).tolist()
    [[[[0.4000000059604645, 1.0]]]]
    """
    pixels = scale.pixels(inputs)
    low, high = (pixels - epsilon).clamp_min(0), (pixels + epsilon).clamp_max(1)
    stride = epsilon if steps == 1 else _STRIDE * epsilon / steps
    found = pixels
    if generator is not None:
        start = torch.rand(pixels.shape, generator=generator)
        found = torch.minimum(torch.maximum(pixels + epsilon * (2 * start - 1), low), high)
    for _ in range(steps):
        gradient = _gradient(module, found, labels, scale)
        found = found + stride * gradient.sign()
        found = torch.minimum(torch.maximum(found, low), high)
    return scale.inputs(found)


def _gradient(module: nn.Module, pixels: Tensor, labels: Tensor, scale: PixelScale) -> Tensor:
    asked = pixels.clone().requires_grad_()
    try:
        with evaluating(module), torch.enable_grad(), StraightThrough():
            loss = F.cross_entropy(module(scale.inputs(asked)).float(), labels, reduction="sum")
            found = torch.autograd.grad(loss, asked)[0]
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ModelError(f"{type(module).__name__} gives no gradients: {reason}") from error
    if not bool(found.any()):
        raise ModelError(f"{type(module).__name__} gives no gradients: they are all zero")
    return found
