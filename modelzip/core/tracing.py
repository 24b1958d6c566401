"""fx's tracer, fitted to models in training: whole layers, arguments left out, and modes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from modelzip.errors import SettingError

_DROPOUTS = {F.dropout: nn.Dropout, F.dropout1d: nn.Dropout1d, F.dropout2d: nn.Dropout2d}


class Tracer(fx.Tracer):
    """fx's tracer, with subclasses of torch's own layers kept whole as well.

    With `arguments`, the graph takes those of forward's arguments alone; the others keep their
    defaults, so that `if mask is None` is decided once and for all.
    """

    def __init__(self, arguments: Collection[str] | None = None) -> None:
        super().__init__()
        self.arguments = arguments

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if super().is_leaf_module(m, module_qualified_name) or isinstance(m, nn.MultiheadAttention):
            return True
        return not list(m.children()) and isinstance(
            m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, nn.Embedding, nn.LayerNorm)
        )

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, dict) and is_dataclass(a):  # fx would make a plain dict of it
            values = {field.name: self.create_arg(getattr(a, field.name)) for field in fields(a)}
            return self.create_node("call_function", type(a), (), values)
        return super().create_arg(a)

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,
        concrete_args: dict[str, Any] | tuple[Any, ...] | None = None,
    ) -> tuple[Any, list[Any]]:
        if self.arguments is None:
            return super().create_args_for_root(root_fn, is_module, concrete_args)
        positional: list[Any] = [self.root]
        keywords: dict[str, Any] = {}
        by_keyword = False  # what follows an argument that is left out
        for parameter in list(inspect.signature(root_fn).parameters.values())[1:]:
            by_keyword |= parameter.kind is parameter.KEYWORD_ONLY
            if parameter.name not in self.arguments:
                by_keyword = True
                continue
            given = self._placeholder(parameter)
            if parameter.kind is parameter.VAR_POSITIONAL:
                positional += list(given)
            elif parameter.kind is parameter.VAR_KEYWORD:
                keywords |= {key: given[key] for key in list(given.keys())}
            elif by_keyword:
                keywords[parameter.name] = given
            else:
                positional.append(given)
        return lambda: root_fn(*positional, **keywords), []

    def _placeholder(self, parameter: inspect.Parameter) -> Any:
        kinds = (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        stars = "*" * (kinds.index(parameter.kind) + 1) if parameter.kind in kinds else ""
        target = stars + parameter.name
        return self.create_proxy("placeholder", target, (), {})


def given_arguments(model: nn.Module, inputs: Any) -> dict[str, Any]:
    """The values of forward's arguments, by name, when `call` gives it `inputs`.

    >>> given_arguments(nn.Linear(1, 1), 3)
    {'input': 3}
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, dict):
        kwargs = inputs
    else:
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    try:
        return dict(inspect.signature(model.forward).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise SettingError(
            f"the inputs given do not fit {type(model).__name__}.forward: {error}; give one batch "
            "as a tensor, a tuple of arguments, or a dict of keywords"
        ) from error


class _Mode(int):
    """False, recognisable: what `self.training` is while a model is traced."""


MODE = _Mode(0)


@contextmanager
def marked_mode(model: nn.Module) -> Iterator[None]:
    """`self.training` is MODE inside, so that `settle_modes` finds who asked for it."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = MODE  # type: ignore[assignment]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def settle_modes(traced: fx.GraphModule) -> None:
    """Replace MODE in the arguments of nodes: by a module for dropout, else by False."""
    for node in list(traced.graph.nodes):
        given = [*node.args, *node.kwargs.values()]
        if not any(value is MODE for value in given):
            continue
        if node.target in _DROPOUTS:
            settings = dict(zip(("input", "p", "training", "inplace"), node.args, strict=False))
            settings |= node.kwargs
            name = f"{node.name}_module"
            dropout = _DROPOUTS[node.target](settings.get("p", 0.5), settings.get("inplace", False))
            traced.add_submodule(name, dropout.train(traced.training))
            node.op, node.target = "call_module", name
            node.args, node.kwargs = (settings["input"],), {}
        else:
            node.args = tuple(False if value is MODE else value for value in node.args)
            node.kwargs = {k: False if v is MODE else v for k, v in node.kwargs.items()}
    traced.recompile()
