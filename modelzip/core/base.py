"""What a pass is: a frozen set of settings, and four verbs over a model."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

from torch import Tensor, nn

from modelzip.core import checks


class Stage(enum.IntEnum):
    """When a pass may come: stages never go back within one list of passes."""

    STRUCTURE = 0  # changes shapes, so weights must still be plain parameters
    WEIGHT = 1  # changes weight values, through parametrizations
    ACTIVATION = 2  # quantizes activations and weights, on the traced graph
    PRECISION = 3  # changes the float type of what is left


class Need(enum.Flag):
    """What a pass needs besides the model."""

    NOTHING = 0
    EXAMPLE_INPUTS = enum.auto()
    CALIBRATION = enum.auto()
    TRAINING = enum.auto()


class Batch(NamedTuple):
    """Model inputs, as `call` takes them, and their labels where there are any."""

    inputs: Any
    targets: Tensor | None


@dataclass(frozen=True, kw_only=True)
class Context:
    """What a pass may use besides the model; what it `needs` is there, checked by `prepare`.

    `example_inputs` is one batch of inputs as `call` takes them, `calibration` a few batches of
    representative data, `training_steps` the number of optimizer steps that will follow.
    `record` is JSON that `prepare` may leave for `convert` and, through checkpoints, `restore`;
    `earlier` are names and records of the passes attached before, in order, for `prepare` alone.
    """

    example_inputs: Any = None
    calibration: Sequence[Batch] = ()
    training_steps: int | None = None
    seed: int = 0
    record: dict[str, Any] = field(default_factory=dict)
    earlier: Sequence[tuple[str, Mapping[str, Any]]] = ()


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What a pass did to one layer: counts of its own weights and biases, zeros included.

    `nonzero` are those that are not 0 afterwards, `bits` those a weight is stored in. `replaces`
    is the layer that this one took the place of, if any; `parameters_before` are then that one's.
    """

    name: str
    kind: str
    parameters_before: int
    parameters_after: int
    nonzero: int
    bits: float = 32.0
    note: str = ""
    replaces: str | None = None


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """What a pass changed, layer by layer, and which layers it left alone and why.

    `notes` are what else a reader must know, such as how the model was traced.
    """

    name: str
    settings: Mapping[str, Any]
    layers: tuple[LayerReport, ...]
    protected: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Pass:
    """A compression pass. Its fields are its settings; all state lives on the model.

    A subclass is a frozen keyword-only dataclass that sets `name`, `stage`, `needs` and `kinds`,
    validates its settings in `__post_init__` (calling `super().__post_init__()`), and defines
    `prepare` and `convert`. `targets` and `skip` are globs over module names, or "type:Conv2d".
    One that changes nothing but values sets `attaches` to False: earlier stages may follow it.
    """

    name: ClassVar[str]
    stage: ClassVar[Stage]
    needs: ClassVar[Need] = Need.NOTHING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (nn.Module,)
    attaches: ClassVar[bool] = True

    targets: tuple[str, ...] = ("*",)
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self._set("targets", checks.names("targets", self.targets))
        self._set("skip", checks.names("skip", self.skip))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)  # normalisation inside __post_init__ alone

    @property
    def requires(self) -> Need:
        """What this pass needs with these settings; at least `needs`."""
        return self.needs

    def settings(self) -> dict[str, Any]:
        """Settings that differ from their defaults, as YAML would hold them."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value != defaults[name]
        }

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        """Attach to `model`, or rebuild it, and return it. Raise before changing anything."""
        raise NotImplementedError

    def step(self, model: nn.Module, step: int) -> None:
        """Follow the schedule after optimizer step number `step`, counted from 1."""

    def settled(self, model: nn.Module, step: int) -> bool:
        """Whether after optimizer step `step` the schedule has ended, so the model may be kept."""
        return True

    def penalty(self, model: nn.Module) -> Tensor | float:
        """A term for the loss; 0.0 where there is none."""
        return 0.0

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        """Make the change permanent in place, leave nothing attached, and say what changed."""
        raise NotImplementedError

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        """Attach to a freshly built `model` as `prepare` did, tensor values aside.

        `context.record` is what `prepare` left there; there are no calibration data.
        """
        return self.prepare(model, context)
