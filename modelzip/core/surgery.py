"""The one place that copies models, swaps modules and touches parametrizations."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import parametrize

from modelzip.core.base import Pass
from modelzip.errors import ModelError

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P", bound=nn.Module)

_OURS = "_attached_by_modelzip"  # tells our parametrizations from a user's


class Replacing(nn.Module):
    """A parametrization whose result follows values of its own, not those of the stored tensor."""

    owner: Pass


def clone(model: nn.Module, *, share: bool = False) -> nn.Module:
    """A deep copy of `model`; ModelError where it cannot be copied.

    With `share`, the copy has the same parameters and buffers, and takes no memory for them.

    >>> clone(nn.Linear(2, 2)) is not None
    True
    """
    shared = itertools.chain(model.parameters(), model.buffers()) if share else ()
    return clone_with(model, {id(tensor): tensor for tensor in shared})


def clone_with(model: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """A deep copy of `model` with `tensors[id(t)]` itself wherever the model holds `t`.

    ModelError where the model cannot be copied.

    >>> layer, bias = nn.Linear(1, 1), nn.Parameter(torch.ones(1))
    >>> clone_with(layer, {id(layer.bias): bias}).bias is bias
    True
    """
    try:
        copied = _deepcopy(model, dict(tensors))
    except Exception as error:  # any class of the user's may fail here in its own way
        raise ModelError(
            f"{type(model).__name__} cannot be copied ({error}); detach computed tensors from it, "
            "or call prepare(..., inplace=True) on a model you can rebuild"
        ) from error
    for module in copied.modules():
        if parametrize.is_parametrized(module):
            # the properties live on its class, where removing them would take the original's
            kind = type(module)
            module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
    return copied


_UNCHANGING = {int, float, bool, str, type(None), torch.dtype, torch.device}
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_COPYING = ("__deepcopy__", "__reduce_ex__", "__reduce__", "__getstate__")


def _deepcopy(module: M, memo: dict[int, Any]) -> M:
    """`copy.deepcopy`, several times as fast for modules that leave copying to it."""
    kind = type(module)
    if id(module) in memo or not _copies_plainly(kind):  # type: ignore[arg-type]
        return copy.deepcopy(module, memo)
    copied = kind.__new__(kind)
    memo[id(module)] = copied
    for key, value in vars(module).items():
        if _unchanging(value):
            new = value
        elif key not in _OF_EVERY_MODULE:
            new = copy.deepcopy(value, memo)
        elif not value:  # hooks, mostly
            new = type(value)()
        elif key == "_modules":
            new = type(value)(
                (n, None if m is None else _deepcopy(m, memo)) for n, m in value.items()
            )
        else:
            new = copy.deepcopy(value, memo)
        vars(copied)[key] = new
    vars(copied).pop("_compiled_call_impl", None)
    return copied


@functools.cache
def _copies_plainly(kind: type[nn.Module]) -> bool:
    own = any(getattr(kind, name, None) is not getattr(nn.Module, name, None) for name in _COPYING)
    restores = getattr(kind, "__setstate__", nn.Module.__setstate__)
    slots = any(vars(base).get("__slots__") for base in kind.__mro__)
    return not own and not slots and restores.__module__.startswith("torch.")


def _unchanging(value: object) -> bool:
    return type(value) in _UNCHANGING or (
        type(value) is tuple and all(type(each) in _UNCHANGING for each in value)
    )


def attach(module: nn.Module, parametrization: nn.Module, *, tensor: str = "weight") -> None:
    """Make `module.<tensor>` computed by `parametrization`, after any that are there already."""
    setattr(parametrization, _OURS, True)
    # unsafe: the shape check would run the parametrization once more for nothing
    parametrize.register_parametrization(module, tensor, parametrization, unsafe=True)


def attached(module: nn.Module, kind: type[P], *, tensor: str = "weight") -> P | None:
    """The parametrization of class `kind` on `module.<tensor>`, or None."""
    found = every_attached(module, kind, tensor=tensor)
    return found[0] if found else None


def every_attached(module: nn.Module, kind: type[P], *, tensor: str = "weight") -> list[P]:
    """The parametrizations of class `kind` on `module.<tensor>`, in the order they work in."""
    if not parametrize.is_parametrized(module, tensor):
        return []
    return [p for p in _chain(module, tensor) if isinstance(p, kind)]


def all_attached(model: nn.Module, kind: type[P]) -> Iterator[tuple[str, nn.Module, P]]:
    """Name, module and parametrization wherever a `weight` has one of class `kind`."""
    for name, module in model.named_modules():
        if (found := attached(module, kind)) is not None:
            yield name, module, found


def bake(module: nn.Module, kind: type[nn.Module], *, tensor: str = "weight") -> None:
    """Apply the parametrization of class `kind` to the stored values and detach it alone.

    It must be the first in the chain or commute with those before it, as masks do.
    """
    chain = _chain(module, tensor)
    found = next(p for p in chain if isinstance(p, kind))
    original = original_tensor(module, tensor=tensor)
    with torch.no_grad():
        original.copy_(found(original))
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=False)
    for other in chain:
        if other is not found:
            attach(module, other, tensor=tensor)


def detach(module: nn.Module, *, tensor: str = "weight") -> None:
    """Remove every parametrization from `module.<tensor>`, leaving the stored values."""
    parametrize.remove_parametrizations(module, tensor, leave_parametrized=False)


def detach_all(module: nn.Module) -> None:
    """Remove every parametrization of every tensor of `module`, leaving the stored values."""
    if parametrize.is_parametrized(module):
        for name in list(cast(nn.ModuleDict, module.parametrizations)):
            detach(module, tensor=name)


def original_tensor(module: nn.Module, *, tensor: str = "weight") -> torch.Tensor:
    """The trainable tensor below any parametrizations of `module.<tensor>`."""
    if parametrize.is_parametrized(module, tensor):
        found: torch.Tensor = getattr(module.parametrizations, tensor).original
        return found
    value: torch.Tensor = getattr(module, tensor)
    return value


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers of `module` itself by name, parametrized ones as it computes them."""
    found = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
    if parametrize.is_parametrized(module):
        names = cast(nn.ModuleDict, module.parametrizations)
        found |= {name: getattr(module, name) for name in names}
    return found


def parameter_counts(module: nn.Module) -> tuple[int, int]:
    """How many weights and biases `module` itself has, integer ones too, and how many are not 0.

    >>> parameter_counts(nn.Linear(3, 2, bias=False).requires_grad_(False))
    (6, 6)
    """
    buffers = dict(module.named_buffers(recurse=False))
    counted = [
        tensor
        for name, tensor in own_tensors(module).items()
        if name not in buffers or (name in ("weight", "bias") and not tensor.is_floating_point())
    ]
    return sum(t.numel() for t in counted), sum(int(torch.count_nonzero(t)) for t in counted)


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where the submodule `name` stands, under each of its aliases."""
    old = model.get_submodule(name)
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):  # named_children skips repeats
            if child is old:
                setattr(parent, child_name, new)


def tied_parameters(model: nn.Module) -> list[tuple[str, ...]]:
    """Groups of names that share one Parameter across different modules.

    >>> a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    >>> b.weight = a.weight
    >>> tied_parameters(nn.Sequential(a, b))
    [('0.weight', '1.weight')]
    """
    owners: dict[int, dict[str, None]] = {}
    for module_name, module in model.named_modules():  # visits a shared module once
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            full = f"{module_name}.{name}" if module_name else name
            owners.setdefault(id(parameter), {})[full] = None
    return [tuple(names) for names in owners.values() if len(names) > 1]


def refuse_tied(model: nn.Module, layers: dict[str, nn.Module], *, pass_name: str) -> None:
    """ModelError if the weight of one of `layers` is tied to another module's."""
    for group in tied_parameters(model):
        hit = [name for name in group if name.rpartition(".")[0] in layers]
        if hit:
            skip = ", ".join(name.rpartition(".")[0] for name in hit)
            raise ModelError(
                f"{pass_name} would untie {' and '.join(group)}; add skip: [{skip}] to leave "
                "the tied layers as they are"
            )


def refuse_replaced(layers: Mapping[str, nn.Module], *, pass_name: str) -> None:
    """ModelError if changing the stored weight of one of `layers` would change nothing."""
    for name, module in layers.items():
        found = attached(module, Replacing)
        if found is not None:
            raise ModelError(
                f"{pass_name} cannot change the weight of {name or 'the model'}, which "
                f"{found.owner.name} replaces by values of its own; put {pass_name} before it"
            )


def refuse_computed(layers: Mapping[str, nn.Module], *, pass_name: str) -> None:
    """ModelError if a tensor of one of `layers` is not a parameter but computed by the user."""
    for name, module in layers.items():
        foreign = {
            tensor: [type(p).__name__ for p in _chain(module, tensor) if _OURS not in vars(p)]
            for tensor in own_tensors(module)
            if parametrize.is_parametrized(module, tensor)
        }
        for tensor, kinds in foreign.items():
            if kinds:
                raise ModelError(
                    f"{pass_name} cannot change {name}.{tensor}, which {', '.join(kinds)} "
                    "computes; make it plain with torch.nn.utils.parametrize."
                    f"remove_parametrizations, or add skip: [{name}]"
                )


def _chain(module: nn.Module, tensor: str) -> list[nn.Module]:
    return list(getattr(module.parametrizations, tensor))
