"""Parameters and multiply-accumulates of a model, now and at other widths."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop

from modelzip.core.channels.blocks import inside
from modelzip.core.channels.resize import PRUNABLE, Slot, parameter_count, weight_count, widths
from modelzip.core.running import call, evaluating

if TYPE_CHECKING:  # it counts these products while it follows channels
    from modelzip.core.channels.bundles import Bundle


def count_macs(model: nn.Module, inputs: Any) -> int:
    """Multiply-accumulates of matrix products and convolutions in one call with `inputs`.

    >>> count_macs(nn.Linear(3, 5), torch.ones(2, 3))
    30
    """
    counter = _Counter()
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is not counted
    try:
        with evaluating(model), counter:
            call(model, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return counter.total


class Cost:
    """What `model` costs once channels are gone, without removing them.

    `macs` are the multiply-accumulates now, of each module with what is inside it, "" being all.
    Every element of a layer's weight is used equally often, so its cost follows its size. What a
    module multiplies itself, as attention does queries and keys, follows the one of `bundles` that
    it lays out in heads.

    >>> model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1))
    >>> cost = Cost(model, {"": 12, "0": 8, "1": 4})
    >>> cost.macs({}), cost.params({}), cost.macs({Slot("0", "out"): 1, Slot("1", "in"): 1})
    (12, 17, 9)
    >>> cost.macs({}, dropped=["1"]), cost.params({}, dropped=["1"])
    (8, 12)
    """

    def __init__(
        self, model: nn.Module, macs: Mapping[str, int], bundles: Iterable[Bundle] = ()
    ) -> None:
        self._macs = macs
        self._parameters = sum(p.numel() for p in model.parameters())
        self._modules = dict(model.named_modules())
        # all of attention follows its heads
        self._layers = {
            n: macs.get(n, 0) for n, m in self._modules.items() if isinstance(m, PRUNABLE)
        }
        laid_out: dict[str, list[Slot]] = {}
        for bundle in bundles:
            for owner in bundle.owners:
                laid_out.setdefault(owner, []).append(next(iter(bundle.channels)))
        self._heads = {owner: slots[0] for owner, slots in laid_out.items() if len(slots) == 1}

    def macs(self, removed: Mapping[Slot, int], *, dropped: Sequence[str] = ()) -> int:
        """Multiply-accumulates with `removed[slot]` channels fewer, without `dropped` blocks."""
        total = float(self._macs[""] - sum(self._macs.get(name, 0) for name in dropped))
        for name, width in self._widths(removed, dropped).items():
            if name in self._layers:
                module = self._modules[name]
                left = weight_count(module, width) / weight_count(module, widths(module))
                total -= self._layers[name] * (1 - left)
        for owner, slot in self._heads.items():
            if slot in removed and not any(inside(slot.layer, block) for block in dropped):
                gone = removed[slot] / widths(self._modules[slot.layer])[slot.side]
                total -= self._own(owner) * gone
        return round(total)

    def params(self, removed: Mapping[Slot, int], *, dropped: Sequence[str] = ()) -> int:
        """Parameters with `removed[slot]` channels fewer, without `dropped` blocks."""
        total = self._parameters
        for name in dropped:
            total -= sum(p.numel() for p in self._modules[name].parameters())
        for name, width in self._widths(removed, dropped).items():
            module = self._modules[name]
            total += parameter_count(module, width) - parameter_count(module, widths(module))
        return total

    def _own(self, name: str) -> int:
        """Multiply-accumulates of a module less those of what is inside it."""
        prefix = f"{name}." if name else ""
        children = (child for child, _ in self._modules[name].named_children())
        return self._macs.get(name, 0) - sum(self._macs.get(prefix + c, 0) for c in children)

    def layer_macs(self, name: str) -> int:
        """Multiply-accumulates of one layer; 0 of one that has none or does not run."""
        return self._layers.get(name, 0)

    def _widths(
        self, removed: Mapping[Slot, int], dropped: Sequence[str]
    ) -> dict[str, dict[str, int]]:
        result: dict[str, dict[str, int]] = {}
        for (name, side), count in removed.items():
            if any(inside(name, block) for block in dropped):
                continue
            result.setdefault(name, dict(widths(self._modules[name])))[side] -= count
        return result


# attention on the CPU is not in torch's table
_FORMULAS = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop,
}


def products(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any) -> int:
    """Multiply-accumulates of one op by torch's own formulas; 0 of one that is no product.

    `torch.utils.flop_counter.FlopCounterMode` has them too, and loads torch's compiler for it.
    """
    count = _FORMULAS.get(func._overloadpacket)
    return 0 if count is None else int(count(*args, **kwargs, out_val=output)) // 2


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the `products` of all ops inside."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # by default the first op imports all of torch.compile, for some seconds

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        self.total += products(func, args, kwargs or {}, output)
        return output
