"""Layers as several smaller ones in a row: which can be, and building them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import skip_init

from modelzip.core import surgery
from modelzip.core.factors.geometry import KINDS, TRANSPOSED, Ranks, rank_limits, stored
from modelzip.core.factors.moments import Moments
from modelzip.core.running import call, evaluating
from modelzip.numerics import factors


class Factored(nn.Sequential):
    """Plain layers in a row that stand in for one, whose bias the last of them has."""


def whole_reasons(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """Why some of `layers` have to stay whole."""
    inner = {part for module in model.modules() if isinstance(module, Factored) for part in module}
    found = {name: whole_reason(layer) for name, layer in layers.items()}
    found |= {n: "a factor of an earlier low_rank" for n, layer in layers.items() if layer in inner}
    return {name: reason for name, reason in found.items() if reason is not None}


def whole_reason(layer: nn.Module) -> str | None:
    """Why a layer of `KINDS` has to stay whole, or None."""
    if isinstance(layer, TRANSPOSED):
        return "a transposed convolution"
    if isinstance(layer, _ConvNd) and layer.groups > 1:
        return f"a convolution of {layer.groups} groups is small already"
    if not any(type(layer).forward is kind.forward for kind in KINDS):
        return f"{type(layer).__name__} computes in a way of its own"
    if layer._parameters.get("weight") is None:
        return "its weight is computed, not stored"
    if layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks:
        return "it has hooks, which its factors would lack"
    return None


def unreplaceable(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any) -> dict[str, str]:
    """Those of `layers` that `model` reads more of than their outputs, with the error."""
    if not layers or _fails(model, layers, inputs) is None:
        return {}
    found = {name: _fails(model, {name: layer}, inputs) for name, layer in layers.items()}
    return {
        name: f"the model does not run with factors in its place: {error}"
        for name, error in found.items()
        if error is not None
    }


def _fails(model: nn.Module, layers: Mapping[str, nn.Module], inputs: Any) -> str | None:
    """What goes wrong when `layers` are replaced."""
    parts = {name: build(layer, (1,) * len(rank_limits(layer))) for name, layer in layers.items()}
    trial = replaced(surgery.clone(model, share=True), parts)
    try:
        with evaluating(trial):
            call(trial, inputs)
    except Exception as error:  # the model's own code may fail in any way
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def build(layer: nn.Module, ranks: Ranks) -> Factored:
    """Layers of zeros with the inputs and outputs of `layer` together, in its mode and type."""
    bias = layer._parameters.get("bias") is not None
    if isinstance(layer, nn.Linear):
        (rank,) = ranks
        parts = [_linear(layer, layer.in_features, rank, bias=False)]
        parts.append(_linear(layer, rank, layer.out_features, bias=bias))
    else:
        parts = _convolutions(layer, ranks, bias=bias)
    result = Factored(*parts)
    for parameter in result.parameters():
        parameter.detach().zero_()
        parameter.requires_grad_(stored(layer).requires_grad)
    return result.train(layer.training)


def factorize(layer: nn.Module, ranks: Ranks, moments: Moments | None) -> tuple[Factored, float]:
    """`layer` as a product of `ranks`, and the fraction of its energy that is kept.

    With `moments` the energy is that of its outputs, as far as neighbouring positions of a
    convolution's inputs do not vary together; without, that of its weight.
    """
    weight = stored(layer).detach().double()
    parts, kept = factors.factorize(weight, ranks, lower=input_root(layer, moments))
    result = build(layer, ranks)
    with torch.no_grad():
        for part, values in zip(result, parts, strict=True):
            stored(part).copy_(values.reshape(stored(part).shape))
        bias = layer._parameters.get("bias")
        if bias is not None:
            shift: Tensor | float = 0.0
            if moments is not None:
                shift = _response([weight], moments.mean) - _response(parts, moments.mean)
            cast(Any, result[-1]).bias.copy_(bias + shift)
    return result, kept


def input_root(layer: nn.Module, moments: Moments | None) -> Tensor | None:
    """The root of the moment of a layer's inputs: about their mean, if a bias takes that up."""
    if moments is None:
        return None
    biased = layer._parameters.get("bias") is not None
    return factors.root(moments.covariance if biased else moments.second)


def replaced(model: nn.Module, parts: Mapping[str, Factored]) -> nn.Module:
    """`model` with `parts` in place of the layers they are named after; itself the layer, or not.

    >>> linear = nn.Linear(4, 4)
    >>> replaced(linear, {"": build(linear, (2,))})
    Factored(
      (0): Linear(in_features=4, out_features=2, bias=False)
      (1): Linear(in_features=2, out_features=4, bias=True)
    )
    """
    for name, part in parts.items():
        if not name:
            return part
        surgery.replace(model, name, part)
    return model


def _response(parts: list[Tensor], mean: Tensor) -> Tensor:
    """What linear layers with weights `parts` in a row answer to a constant input."""
    for part in parts:
        mean = part.flatten(2).sum(2) @ mean if part.dim() > 2 else part @ mean
    return mean


def _linear(like: nn.Linear, inputs: int, outputs: int, *, bias: bool) -> nn.Module:
    weight = like.weight
    return _empty(nn.Linear, inputs, outputs, bias=bias, device=weight.device, dtype=weight.dtype)


def _empty(kind: type[nn.Module], *args: Any, **kwargs: Any) -> nn.Module:
    # drawing weights would take the caller's random numbers
    made: nn.Module = skip_init(kind, *args, **kwargs)  # type: ignore[no-untyped-call]
    return made


def _convolutions(layer: Any, ranks: Ranks, *, bias: bool) -> list[nn.Module]:
    """Convolutions 1 x 1 around one with the kernel, stride and padding of `layer`, if any."""
    kind = next(kind for kind in KINDS if isinstance(layer, kind))
    geometry = {
        name: getattr(layer, name)
        for name in ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    }
    widths = [layer.in_channels, *ranks, layer.out_channels]
    place = len(ranks) - 1  # of the one with the geometry: the first of two, the core of three
    sizes = list(itertools.pairwise(widths))
    kept = [
        index
        for index, (inputs, outputs) in enumerate(sizes)
        if index == place or len(ranks) == 1 or inputs != outputs
    ]
    return [
        _empty(
            kind,
            *sizes[index],
            **(geometry if index == place else {"kernel_size": 1}),
            bias=bias and index == kept[-1],
            device=layer.weight.device,
            dtype=layer.weight.dtype,
        )
        for index in kept
    ]
