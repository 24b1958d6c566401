"""Running a pruned model against the masked original."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from modelzip.core import surgery
from modelzip.core.channels.attention import plain_attention
from modelzip.core.channels.attributes import Attributes
from modelzip.core.channels.jitter import perturbed, perturbed_inputs
from modelzip.core.channels.resize import resize
from modelzip.core.channels.slots import Slot, axes, widths
from modelzip.core.running import call, convert, evaluating, forked_rng, rows, tensors
from modelzip.errors import ModelError, first_line

Removed = Mapping[Slot, Tensor]
T = TypeVar("T")
_ROWS = 2  # of the example batch: enough to tell channels apart
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}  # of the largest output; coarser types 5 %
_SMALL = 20_000_000  # parameters that may be copied to float64


def kept_channels(model: nn.Module, removed: Removed) -> dict[Slot, list[int]]:
    """The channels of each slot in `removed` that stay, ascending."""
    kept = {}
    for slot, index in removed.items():
        stays = torch.ones(widths(model.get_submodule(slot.layer))[slot.side], dtype=torch.bool)
        stays[index] = False
        kept[slot] = stays.nonzero().flatten().tolist()
    return kept


class _Setup(NamedTuple):
    """Inputs to run on, and by `id` tensors that stand for some of the model's own."""

    given: Any
    values: Mapping[int, Tensor]


class Trial:
    """Compares `model` pruned with `model` masked, on copies, in eval mode.

    The copies share all tensors that are the same. Where rounding could explain a difference, small
    models are compared again in float64. With `jitter`, what could hide a wrong channel is
    perturbed, such as a scale still at zero. Without it, a pass in training mode is tried too, on a
    batch of another size where the original takes that.

    >>> model = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 1))
    >>> trial = Trial(model, torch.ones(1, 1))
    >>> trial.fault({Slot("0", "out"): torch.tensor([1]), Slot("1", "in"): torch.tensor([1])})
    >>> trial.fault({Slot("1", "in"): torch.tensor([1])})
    'pruned, it fails: mat1 and mat2 shapes cannot be multiplied (2x2 and 1x1)'
    """

    def __init__(self, model: nn.Module, inputs: Any, *, jitter: bool = False) -> None:
        self._model, self._jitter = model, jitter
        floats = [p for p in model.parameters() if p.is_floating_point()]
        self._small = sum(p.numel() for p in floats) <= _SMALL
        self._coarse = any(p.dtype not in _TOLERANCE for p in floats)
        self._setups = self._ways(inputs)
        self._setup = next(self._setups)
        self._settled = False  # whether the original is known to run as set up
        self._masked: tuple[Removed, list[Tensor]] | None = None

    def fault(self, removed: Removed, attributes: Attributes | None = None) -> str | None:
        """What is wrong with the model once the channels `removed` are gone; None if nothing.

        Args:
            attributes: integer attributes of modules that change with them.

        Raises:
            ModelError: the model does not run on the example inputs.
        """
        while True:
            problem = self._problem(removed, attributes or {})
            if problem is None or self._settled:
                return problem
            self._settle()

    def _ways(self, inputs: Any) -> Iterator[_Setup]:
        """Setups, the next one for when the model does not run in those before."""
        for given in (rows(inputs, _ROWS), inputs):
            for jitter in (True, False) if self._jitter else (False,):
                for double in (True, False) if self._coarse and self._small else (False,):
                    values = perturbed(self._model) if jitter else {}
                    changed = perturbed_inputs(given) if jitter else given
                    setup = _Setup(changed, values)
                    yield _in_float64(self._model, setup) if double else setup

    def _settle(self) -> None:
        """Make sure that the original runs as set up, or take the next setup."""
        error = _unfit(self._model, self._setup)
        if error is None:
            self._settled = True
            return
        following = next(self._setups, None)
        if following is None:
            name = type(self._model).__name__
            raise ModelError(f"{name} does not run on the example inputs: {error}")
        self._setup, self._masked = following, None

    def _problem(self, removed: Removed, attributes: Attributes) -> str | None:
        setup = self._setup
        try:
            pruned = _pruned(self._model, setup, removed, attributes)
            ours = _outputs(pruned, setup.given)
            problem = _difference(ours, self._masked_outputs(removed))
            if problem and self._small:  # rounding may be all there is to it
                problem = self._exactly(problem, removed, attributes)
            if problem is None and not self._jitter:
                problem = self._training(pruned)
        except Exception as error:  # the model's own code may raise anything
            return f"pruned, it fails: {first_line(error)}"
        return problem

    def _exactly(self, problem: str, removed: Removed, attributes: Attributes) -> str | None:
        """`problem`, or what is wrong in float64 if the original runs in it."""
        exact = _in_float64(self._model, self._setup)
        if _unfit(self._model, exact) is not None:
            return problem
        pruned = _pruned(self._model, exact, removed, attributes)
        masked = _masked_outputs(self._model, exact, removed)
        return _difference(_outputs(pruned, exact.given), masked)

    def _masked_outputs(self, removed: Removed) -> list[Tensor]:
        """Those of the masked model, remembered for as long as the same channels go."""
        if self._masked is None or self._masked[0] is not removed:
            self._masked = removed, _masked_outputs(self._model, self._setup, removed)
        return self._masked[1]

    def _training(self, pruned: nn.Module) -> str | None:
        """What is wrong in training mode, which `pruned` is left in."""
        pruned.train()
        for given in (rows(self._setup.given, _ROWS + 1), self._setup.given):
            if _attempt(pruned, given) is not None:
                return None
            if _attempt(_twin(self._model, self._setup.values).train(), given) is not None:
                return "pruned, it fails in training mode"
        return None


def faults(items: Sequence[T], fault: Callable[[Sequence[T]], str | None]) -> dict[T, str]:
    """The items to leave out so that `fault` of the rest is None, each with its reason.

    Halves the list where it fails, so that few faults take few trials.

    >>> faults([1, 2, 3, 4], lambda items: "odd" if 3 in items else None)
    {3: 'odd'}
    """
    if not items or (problem := fault(items)) is None:
        return {}
    found = _split(list(items), problem, fault)
    good = [item for item in items if item not in found]
    if good and fault(good) is not None:  # fine one by one, not together: add one at a time
        fine: list[T] = []
        for item in good:
            if problem := fault([*fine, item]):
                found[item] = problem
            else:
                fine.append(item)
    return found


def _split(
    items: list[T], problem: str, fault: Callable[[Sequence[T]], str | None]
) -> dict[T, str]:
    if len(items) == 1:
        return {items[0]: problem}
    found: dict[T, str] = {}
    middle = len(items) // 2
    for half in (items[:middle], items[middle:]):
        if (wrong := fault(half)) is not None:
            found.update(_split(half, wrong, fault))
    return found


def _twin(model: nn.Module, values: Mapping[int, Tensor]) -> nn.Module:
    """A copy of `model` with its parameters, or `values` instead, and buffers of its own."""
    shared: dict[int, Tensor] = {id(p): p for p in model.parameters()} | dict(values)
    for buffer in model.buffers():  # a forward may write into them
        shared[id(buffer)] = shared.get(id(buffer), buffer).clone()
    return surgery.clone_with(model, shared).eval()


def _pruned(model: nn.Module, setup: _Setup, removed: Removed, attributes: Attributes) -> nn.Module:
    twin = _twin(model, setup.values)
    resize(twin, kept_channels(model, removed), attributes)
    return twin


def _masked_outputs(model: nn.Module, setup: _Setup, removed: Removed) -> list[Tensor]:
    """What `model` returns with zeros for what layers read of the channels `removed`.

    Zeros are put into what layers are given, so that no weight is copied; or into the weights of
    layers that are never called as modules.
    """
    read = {
        slot.layer: index
        for slot, index in removed.items()
        if slot.side == "in" and "in" in axes(model.get_submodule(slot.layer)).get("weight", ())
    }
    called: set[str] = set()
    handles = [
        model.get_submodule(name).register_forward_pre_hook(_masking(name, index, called))
        for name, index in read.items()
    ]
    try:
        outputs = _outputs_with(model, setup.values, setup.given)
    finally:
        for handle in handles:
            handle.remove()
    if called == read.keys():
        return outputs
    values = dict(setup.values)
    for name, index in read.items():
        module = model.get_submodule(name)
        axis = axes(module)["weight"].index("in")
        weight = getattr(module, "weight")  # noqa: B009
        known = values.get(id(weight), weight)
        new = known.detach().index_fill(axis, index.to(known.device), 0.0)
        values[id(weight)] = nn.Parameter(new, requires_grad=known.requires_grad)
    return _outputs_with(model, values, setup.given)


def _masking(name: str, index: Tensor, called: set[str]) -> Callable[..., Any]:
    def hook(module: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not given:  # by keyword
            return given
        called.add(name)
        source, *rest = given
        axis = source.dim() - 1 - (len(module.kernel_size) if isinstance(module, _ConvNd) else 0)
        return source.index_fill(axis, index.to(source.device), 0.0), *rest

    return hook


def _outputs_with(model: nn.Module, values: Mapping[int, Tensor], given: Any) -> list[Tensor]:
    """What `model` returns in eval mode with `values` in place of some tensors, by `id`."""
    places: list[tuple[dict[str, Any], str, Tensor]] = []
    for module in model.modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and (id(tensor) in values or held is module._buffers):
                    places.append((cast(dict[str, Any], held), name, tensor))
    try:
        for store, name, tensor in places:
            new = values.get(id(tensor), tensor)
            store[name] = new if isinstance(new, nn.Parameter) else new.clone()
        with evaluating(model):
            return _outputs(model, given)
    finally:
        for store, name, tensor in places:
            store[name] = tensor


def _in_float64(model: nn.Module, setup: _Setup) -> _Setup:
    """`setup` with all floats wide, so that rounding hides nothing."""

    def wide(tensor: Tensor) -> Tensor:
        return tensor.double() if tensor.is_floating_point() else tensor

    values = {}
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        new = wide(setup.values.get(id(tensor), tensor).detach())
        parameter = isinstance(tensor, nn.Parameter)
        values[id(tensor)] = nn.Parameter(new, tensor.requires_grad) if parameter else new
    return _Setup(convert(setup.given, wide), values)


def _outputs(model: nn.Module, given: Any) -> list[Tensor]:
    """What `model` returns, in the mode it is in; `given` stays as it is."""
    with torch.no_grad(), plain_attention(), forked_rng(model):
        torch.manual_seed(0)  # layers that draw numbers even here draw the same each time
        return list(tensors(call(model, convert(given, torch.clone))))


def _attempt(model: nn.Module, given: Any) -> list[Tensor] | None:
    """What `model` returns; None if it fails."""
    try:
        return _outputs(model, given)
    except Exception:  # the model's own code may raise anything
        return None


def _unfit(model: nn.Module, setup: _Setup) -> str | None:
    """Why nothing can be compared in this setup; None if the original runs in it."""
    try:
        outputs = _outputs_with(model, setup.values, setup.given)
    except Exception as error:  # the model's own code may raise anything
        return first_line(error)
    finite = all(bool(torch.isfinite(output).all()) for output in outputs)
    return None if finite else "its outputs are not finite"


def _difference(pruned: list[Tensor], masked: list[Tensor]) -> str | None:
    for ours, theirs in zip(pruned, masked, strict=True):
        if ours.shape != theirs.shape:
            return f"pruned, an output is {list(ours.shape)} instead of {list(theirs.shape)}"
        if not ours.is_floating_point():
            if not torch.equal(ours, theirs):
                return "pruned, an integer output differs from the masked model's"
            continue
        if not ours.numel():
            continue
        scale = float(theirs.abs().max()) or 1.0
        relative = float((ours - theirs).abs().max()) / scale
        if not relative <= _TOLERANCE.get(ours.dtype, 0.05):
            return f"pruned, the outputs differ from the masked model's by {relative:.1%}"
    return None
