"""A model that computes in a narrow float type but for the modules that cannot."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn

from modelzip.core.precision import compute_in
from modelzip.core.ranges import Reach, reaches
from modelzip.numerics.floats import misfit

CARRIERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)  # they compute nothing of their own
_MARGIN = 8.0  # other data may reach further than those observed
# these read the weights of modules inside them
_UNITS = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def risks(model: nn.Module, inputs: Iterable[Any], dtype: torch.dtype) -> dict[str, str]:
    """Why modules cannot compute in `dtype`, by name, from runs in float32 on `inputs`.

    A value or a sum may come up to an eighth of the largest that `dtype` holds; and where the
    largest value of a tensor is below its smallest normal number, digits would be lost.

    >>> risks(nn.Sequential(nn.ReLU()), [torch.tensor([81234.0])], torch.float16)
    {'0': 'activations reach 81234, float16 holds 65504'}
    """
    found = {}
    for name, reach in reaches(model, inputs).items():
        reason = _risk(reach, dtype)
        if reason and not isinstance(model.get_submodule(name), CARRIERS):
            found[name] = reason
    return whole_units(model, found)


def whole_units(model: nn.Module, reasons: dict[str, str]) -> dict[str, str]:
    """`reasons`, and those for all of a composite module of torch of which a part is among them."""
    found = dict(reasons)
    for name, module in model.named_modules():
        inside = [n for n, _ in module.named_modules(prefix=name)]
        hit = next((n for n in inside if n in found), None)
        if isinstance(module, _UNITS) and hit is not None:
            found |= {n: f"{found[hit]} ({hit})" for n in inside if n not in found}
    return found


def compute_narrow(
    model: nn.Module, dtype: torch.dtype, *, wide: Collection[str], outside: torch.dtype
) -> None:
    """Make `model` compute in `dtype`, in float32 the modules named in `wide`, return `outside`."""
    seen: set[nn.Module] = set()

    def walk(module: nn.Module, name: str, around: torch.dtype) -> None:
        if module in seen:
            return
        seen.add(module)
        floating = [n for n, m in module.named_modules(prefix=name) if _has_floats(m)]
        narrow = [n for n in floating if n not in wide]
        own = torch.float32 if name in wide or (floating and not narrow) else dtype
        inner = around if isinstance(module, CARRIERS) else own
        for child_name, child in module.named_children():
            walk(child, f"{name}.{child_name}" if name else child_name, inner)
        if isinstance(module, CARRIERS):
            compute_in(module, outside=around)
        elif floating or name in wide:
            compute_in(module, inside=own, outside=around if around != own else None)

    walk(model, "", outside)


def _has_floats(module: nn.Module) -> bool:
    own = (*module.parameters(recurse=False), *module.buffers(recurse=False))
    return any(t.is_floating_point() for t in own)


def _risk(reach: Reach, dtype: torch.dtype) -> str:
    limits, name = torch.finfo(dtype), str(dtype).removeprefix("torch.")
    for what, value in (("activations", reach.largest), ("sums", reach.total)):
        if value * _MARGIN > limits.max:
            return f"{what} reach {value:.5g}, {name} holds {limits.max:.5g}"
    if reach.faintest < limits.smallest_normal:
        return f"a tensor {misfit(reach.faintest, dtype)}"
    return ""
