"""The contract that every pass keeps, as one call: `check_pass`."""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from modelzip.core.base import Need, Pass
from modelzip.core.prepare import Prepared, load, prepare
from modelzip.core.running import call, evaluating, tensors
from modelzip.errors import ExportError, ModelzipError, SelectionError, SettingError


def check_pass(
    pass_: Pass,
    make_model: Callable[[], nn.Module],
    example_inputs: Any,
    *,
    calibration: Iterable[Any] | None = None,
    training_steps: int | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Check that `pass_` keeps the contract of every pass, on a small model.

    It is documented; rebuilds from its repr and its settings; leaves the caller's model alone;
    repeats itself; trains; does nothing the second time it is told of the same step; converts
    to a plain module with the same outputs; reports what a recount finds; comes back from a
    checkpoint; exports to a file with the same outputs; and refuses what it cannot do.

    Args:
        make_model: builds a small model that the pass changes; called often.
        example_inputs: a batch of at least 2, as `prepare` takes it.
        calibration: batches, where the pass needs them.
        training_steps: optimizer steps to take; 3 where it is None.
        tolerance: largest difference of outputs that count as equal, as a fraction of the largest
            output. The narrower the numbers of the pass, the more is needed.

    Raises:
        AssertionError: the contract is broken; the message says where.
        ModelzipError: the pass does not work on this model at all.

    >>> import modelzip as mz
    >>> check_pass(mz.MagnitudePrune(sparsity=0.5), lambda: nn.Linear(4, 2), torch.randn(2, 4))
    """
    batches = None if calibration is None else list(calibration)
    subject = _Subject(pass_, make_model, example_inputs, batches, training_steps, tolerance)
    for check in (_documented, _rebuilds, _leaves_the_model, _refuses, _works):
        check(subject)


@dataclass(frozen=True)
class _Subject:
    pass_: Pass
    make_model: Callable[[], nn.Module]
    example_inputs: Any
    calibration: list[Any] | None
    training_steps: int | None
    tolerance: float

    def prepare(self, model: nn.Module, pass_: Pass | None = None, **changes: Any) -> Prepared:
        arguments = {
            "example_inputs": self.example_inputs,
            "calibration": self.calibration,
            "training_steps": self.training_steps,
        }
        return prepare(model, [pass_ or self.pass_], **{**arguments, **changes})

    def outputs(self, model: nn.Module) -> list[Tensor]:
        with evaluating(model):
            return [t.float() for t in tensors(call(model, self.example_inputs))]

    def require(self, condition: bool, problem: str) -> None:
        if not condition:
            raise AssertionError(f"{self.pass_!r}: {problem}")

    def require_equal(self, ours: list[Tensor], theirs: list[Tensor], problem: str) -> None:
        self.require(len(ours) == len(theirs), f"{problem}: {len(ours)} and {len(theirs)} outputs")
        for a, b in zip(ours, theirs, strict=True):
            self.require(a.shape == b.shape, f"{problem}: shapes {list(a.shape)}, {list(b.shape)}")
            difference = float((a - b).abs().max())
            limit = self.tolerance * float(b.abs().max())
            self.require(
                difference <= limit,
                f"{problem}: they differ by {difference:.3g}, above {limit:.3g}",
            )


def _documented(s: _Subject) -> None:
    text = type(s.pass_).__doc__ or ""
    s.require(">>> " in text, "its docstring has no example")
    s.require("https://" in text, "its docstring names no source")


def _rebuilds(s: _Subject) -> None:
    kind = type(s.pass_)
    again = eval(repr(s.pass_), {kind.__name__: kind})  # noqa: S307 - of our own object's repr
    s.require(again == s.pass_, f"its repr gives back {again!r}")
    s.require(kind(**s.pass_.settings()) == s.pass_, "its settings() do not give it back")


def _leaves_the_model(s: _Subject) -> None:
    model = s.make_model()
    before, names = _snapshot(model), [n for n, _ in model.named_modules()]
    first, second = s.prepare(model), s.prepare(model)
    unchanged = _same(before, _snapshot(model)) and not _attached(model)
    s.require(unchanged and names == [n for n, _ in model.named_modules()], "it changed the model")
    repeated = zip(s.outputs(first.model), s.outputs(second.model), strict=True)
    s.require(all(torch.equal(a, b) for a, b in repeated), "it does not repeat itself")


def _refuses(s: _Subject) -> None:
    model = s.make_model()
    before = _snapshot(model)
    lost = dataclasses.replace(s.pass_, targets=("no_such_layer",))
    arguments = {
        Need.EXAMPLE_INPUTS: "example_inputs",
        Need.CALIBRATION: "calibration",
        Need.TRAINING: "training_steps",
    }
    attempts: list[tuple[str, type[ModelzipError], Callable[[], object]]] = [
        ("a selector that matches nothing", SelectionError, lambda: s.prepare(model, lost))
    ]
    for need, name in arguments.items():
        if need in s.pass_.requires:
            without: Callable[[], object] = lambda name=name: s.prepare(model, **{name: None})  # type: ignore[misc]  # noqa: E731
            attempts.append((f"being given no {name}", SettingError, without))
    for what, error, attempt in attempts:
        try:
            attempt()
        except error:
            s.require(_same(before, _snapshot(model)), f"{what} changed the model")
        else:
            s.require(False, f"{what} raises no {error.__name__}")


def _works(s: _Subject) -> None:
    """Training, converting, reporting, restoring and exporting, on one prepared model."""
    original = s.make_model()
    prepared = s.prepare(original)
    s.require_equal(
        s.outputs(prepared.convert()), s.outputs(prepared.model), "outputs before and after convert"
    )
    _trains(s, prepared)
    converted = prepared.convert()
    outputs = s.outputs(converted)
    s.require_equal(outputs, s.outputs(prepared.model), "trained, outputs before and after convert")
    left = sorted(_attached(converted) - _attached(original))
    s.require(not left, f"convert leaves something attached to {', '.join(left)}")
    _reports(s, prepared, original, converted)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint.safetensors"
        prepared.save(checkpoint)
        again = s.outputs(load(lambda: _scrambled(s.make_model()), checkpoint))
        same = all(torch.equal(a, b) for a, b in zip(again, outputs, strict=True))
        s.require(same, "a model loaded from its checkpoint has other outputs")
        _exports(s, converted, outputs, Path(folder) / "model.onnx")


def _trains(s: _Subject, prepared: Prepared) -> None:
    before = [p.detach().clone() for p in prepared.model.parameters()]
    optimizer = torch.optim.SGD(prepared.model.parameters(), lr=0.01, momentum=0.9)
    prepared.model.train()
    for _ in range(s.training_steps or 3):
        outputs = tensors(call(prepared.model, s.example_inputs))
        loss = sum((o.square().mean() for o in outputs), torch.zeros(())) + prepared.penalty()
        value = float(loss.detach())
        s.require(math.isfinite(value), f"the loss is {value} in training")
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
        prepared.step()
    after = list(prepared.model.parameters())
    moved = any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    s.require(moved, "training changes no parameter")
    state = _snapshot(prepared.model)
    s.pass_.step(prepared.model, prepared.steps)
    s.require(
        _same(state, _snapshot(prepared.model)), "the same step twice is not the same as once"
    )
    s.require(prepared.settled(), "it has not settled when training ends")


def _reports(s: _Subject, prepared: Prepared, original: nn.Module, converted: nn.Module) -> None:
    (report,) = prepared.reports
    s.require(report.name == s.pass_.name, f"its report is named {report.name!r}")
    s.require(bool(report.layers), "its report lists no layer")
    before, after = dict(original.named_modules()), dict(converted.named_modules())
    for row in report.layers:
        s.require(row.name in after, f"its report lists {row.name!r}, which is not in the model")
        said = (row.parameters_after, row.nonzero)
        found = _recount(after[row.name])
        s.require(said == found, f"{row.name} has {found} (non-zero) parameters, reported {said}")
        if row.name in before:
            was = _recount(before[row.name])[0]
            s.require(
                row.parameters_before == was,
                f"{row.name} had {was} parameters, reported {row.parameters_before}",
            )


def _exports(s: _Subject, converted: nn.Module, outputs: list[Tensor], path: Path) -> None:
    from modelzip.export.onnx import export_onnx
    from modelzip.runtime import session

    try:
        export_onnx(converted, s.example_inputs, path)
    except ExportError as error:
        s.require(False, f"it does not export: {error}")
    served = [torch.from_numpy(a).float() for a in session.load(path).run(s.example_inputs)]
    s.require_equal(served, outputs, "outputs of the ONNX file and of the module")


def _recount(module: nn.Module) -> tuple[int, int]:
    """Weights and biases of `module` itself, floats or integers, and how many are not 0."""
    prefixes = tuple(f"{name}." for name, _ in module.named_children())
    parameters = {name for name, _ in module.named_parameters(recurse=False)}
    found = [
        tensor
        for name, tensor in module.state_dict().items()
        if not (prefixes and name.startswith(prefixes))
        and (name in parameters or (name in ("weight", "bias") and not tensor.is_floating_point()))
    ]
    return sum(t.numel() for t in found), sum(int((t != 0).sum()) for t in found)


def _attached(model: nn.Module) -> set[str]:
    """Names of modules with a parametrization or a hook."""
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return {
        name or "the model"
        for name, module in model.named_modules()
        if parametrize.is_parametrized(module) or any(getattr(module, kind) for kind in kinds)
    }


def _snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a)


def _scrambled(model: nn.Module) -> nn.Module:
    """`model` with other weights, which a checkpoint must put right."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter))
    return model
