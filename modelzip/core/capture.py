"""Tracing along the path that example inputs take, for models fx cannot trace symbolically.

Every proxy has the value that the example inputs give it. A question that plain Python asks of it
(a condition, a length, a loop's range) is answered from that value, and the answers are kept: they
lead to the same graph again, later and without the data. Layers stay whole, and what was not
asked for stays open, so that the graph takes batches of any size.
"""

from __future__ import annotations

import inspect
import linecache
import operator
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate

from modelzip.core.running import evaluating
from modelzip.core.tracing import MODE, Tracer

_CONSTRUCTORS = ("arange", "empty", "eye", "full", "linspace", "ones", "tensor", "zeros")
_OPEN = (Tensor, torch.Size, torch.device)  # attributes that may differ from batch to batch
_SHOWN = 3  # places in a note


def assigned(values: Tensor, index: Any, new: Any) -> Tensor:
    """A copy of `values` in which `index` holds `new`: an assignment that a graph can hold.

    >>> assigned(torch.zeros(3), 1, 5.0).tolist()
    [0.0, 5.0, 0.0]
    """
    copied = values.clone()
    copied[index] = new
    return copied


class ExampleProxy(fx.Proxy):
    """A node and the value it has on the example inputs."""

    tracer: ExampleTracer

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.tracer.values[self.node], name)
        if callable(found):
            return lambda *args, **kwargs: self.tracer.create_proxy(
                "call_method", name, (self, *args), kwargs
            )
        if isinstance(found, _OPEN):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return found

    def __bool__(self) -> bool:
        return bool(self.tracer.ask(self, bool))

    def __int__(self) -> int:
        return int(self.tracer.ask(self, int))

    def __index__(self) -> int:
        return int(self.tracer.ask(self, operator.index))

    def __float__(self) -> float:
        return float(self.tracer.ask(self, float))

    def __len__(self) -> int:
        return int(self.tracer.ask(self, len))

    def __contains__(self, item: Any) -> bool:
        return bool(self.tracer.ask(self, lambda values: item in values))

    def __iter__(self) -> Iterator[Any]:
        return iter([self[i] for i in range(len(self))])  # type: ignore[index]

    def keys(self) -> Any:
        return self.tracer.ask(self, lambda values: list(values.keys()))

    def __setitem__(self, index: Any, new: Any) -> None:
        changed = self.tracer.create_proxy("call_function", assigned, (self, index, new), {})
        self.node = changed.node


class ExampleTracer(Tracer):
    """Traces while it computes; `answers` to replay take precedence over the values."""

    def __init__(self, arguments: Mapping[str, Any], *, answers: Sequence[Any] | None) -> None:
        super().__init__(list(arguments))
        self.values: dict[fx.Node, Any] = {}
        self.answers: list[Any] = []
        self.on_values: dict[str, None] = {}  # places, in order, that asked for a tensor's value
        self.on_shapes: dict[str, None] = {}
        self._asked: dict[fx.Node, None] = {}
        self._given = arguments
        self._recorded = None if answers is None else iter(answers)
        self._computing = False

    def proxy(self, node: fx.Node) -> ExampleProxy:
        return ExampleProxy(node, self)

    def create_node(
        self,
        kind: str,
        target: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str | None = None,
        type_expr: Any = None,
    ) -> fx.Node:
        value = self._compute(kind, target, self._concrete(args), self._concrete(kwargs))
        node = super().create_node(kind, target, args, kwargs, name, type_expr)
        self.values[node] = value
        return node

    def create_arg(self, a: Any) -> Any:
        return a.node if type(a) is ExampleProxy else super().create_arg(a)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if self._computing:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self._computing:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def ask(self, proxy: ExampleProxy, question: Callable[[Any], Any]) -> Any:
        """The answer of `proxy`'s value to `question`, or the one that is replayed."""
        value = self.values[proxy.node]
        answer = question(value) if self._recorded is None else next(self._recorded)
        self.answers.append(answer)
        self._asked[proxy.node] = None
        if question is len and isinstance(value, Tensor):
            self.on_shapes[_place()] = None
        elif question is not len:
            places = self.on_values if isinstance(value, Tensor) else self.on_shapes
            places[_place()] = None
        return answer

    def drop_answered(self) -> None:
        """Remove from the graph what was computed for the sake of a question alone."""
        left = self._asked
        while left:
            unused = [node for node in left if not node.users and node.op != "placeholder"]
            left = dict.fromkeys(n for node in unused for n in node.all_input_nodes)
            for node in unused:
                self.graph.erase_node(node)

    def _concrete(self, arguments: Any) -> Any:
        def value(leaf: Any) -> Any:
            if isinstance(leaf, fx.Node):
                return self.values[leaf]
            return False if leaf is MODE else leaf

        return map_aggregate(arguments, value)

    def _compute(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        self._computing = True
        try:
            if kind == "output":
                return None
            if kind == "placeholder":
                return map_aggregate(self._given[target.lstrip("*")], _cloned)
            if kind == "get_attr":
                return operator.attrgetter(target)(self.root)
            if kind == "call_method":
                return getattr(args[0], target)(*args[1:], **kwargs)
            if kind == "call_module":
                module = self.root.get_submodule(target)
                with evaluating(module):
                    return module(*args, **kwargs)
            return target(*args, **kwargs)
        finally:
            self._computing = False

    def note(self, reason: str) -> str:
        """What the graph is good for, in words for a report."""
        name = type(self.root).__name__
        if self.on_values:
            return (
                f"{name}.forward branches on values: captured along the path its example inputs "
                f"take ({_some(self.on_values)})"
            )
        if self.on_shapes:
            return (
                f"{name}.forward depends on shapes: captured for those of its example inputs "
                f"({_some(self.on_shapes)})"
            )
        return f"{name}.forward cannot be traced ({reason}): captured by running its example inputs"


@contextmanager
def recorded_builtins(tracer: ExampleTracer, model: nn.Module) -> Iterator[None]:
    """Inside, `len`, `isinstance` and torch's constructors take proxies in the model's code."""

    def kind_of(thing: Any, kinds: Any) -> bool:
        proxied = type(thing) is ExampleProxy
        return isinstance(tracer.values[thing.node] if proxied else thing, kinds)

    def length(thing: Any) -> Any:
        if type(thing) is ExampleProxy and kind_of(thing, Tensor):
            return thing.size(0)  # len() is a constant to an exporter
        return len(thing)

    def recorded(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if _has_proxy((args, kwargs)):
                return tracer.create_proxy("call_function", function, args, kwargs)
            return function(*args, **kwargs)

        return call

    changed: list[tuple[dict[str, Any], str, Any]] = []
    forwards = [inspect.unwrap(type(m).forward).__globals__ for m in model.modules()]
    for names in (n for n in forwards if not n["__name__"].startswith("torch.")):
        for name, new in (("len", length), ("isinstance", kind_of)):
            if name not in names:
                names[name] = new
                changed.append((names, name, None))
    for name in _CONSTRUCTORS:
        function = getattr(torch, name)
        changed.append((vars(torch), name, function))
        setattr(torch, name, recorded(function))
    try:
        yield
    finally:
        for names, name, old in changed:
            if old is None:
                del names[name]
            else:
                names[name] = old


def _has_proxy(arguments: Any) -> bool:
    found = []
    map_aggregate(arguments, lambda leaf: found.append(isinstance(leaf, fx.Proxy)))
    return any(found)


def _cloned(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf


def _place() -> str:
    """Source text, file and line of the innermost code that is neither torch's nor this file's."""
    frame = sys._getframe(1)
    while frame.f_back is not None:
        code = frame.f_code.co_filename
        if code != __file__ and "/torch/" not in code.replace("\\", "/"):
            break
        frame = frame.f_back
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip().rstrip(":")
    name = frame.f_code.co_filename.replace("\\", "/").rpartition("/")[2]
    return f"{line} at {name}:{frame.f_lineno}"


def _some(places: Mapping[str, None]) -> str:
    more = f" and {len(places) - _SHOWN} more" if len(places) > _SHOWN else ""
    return "; ".join(list(places)[:_SHOWN]) + more
