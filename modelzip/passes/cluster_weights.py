"""Weight sharing: the weights of a layer take a few values, which are trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from modelzip.core import checks, masking, surgery
from modelzip.core.base import Context, LayerReport, Need, Pass, PassReport, Stage
from modelzip.core.selection import matches, select
from modelzip.errors import ModelError, SelectionError, SettingError, did_you_mean
from modelzip.numerics.codebook import look_up, nearest
from modelzip.numerics.kmeans import kmeans


class SharedValues(surgery.Replacing):
    """A parametrization that gives each weight the value of its cluster; zeros stay zero.

    Indices never change. The gradient of a centroid is the mean of those of its weights, so that a
    learning rate that suits weights suits it as well.
    """

    indices: Tensor

    def __init__(self, centroids: Tensor, indices: Tensor, owner: Pass) -> None:
        super().__init__()
        self.owner = owner
        self.centroids = nn.Parameter(centroids)
        self.register_buffer("indices", indices)

    def forward(self, weight: Tensor) -> Tensor:
        return look_up(self.centroids, self.indices, weight != 0)


@dataclass(frozen=True, kw_only=True)
class ClusterWeights(Pass):
    """Let the weights of each layer share a few values, found by k-means.

    Training moves the values, and each weight keeps the one it has. An ONNX file stores the values
    and a number of `bits` for each weight, and runs at the speed of float. Weights that are zero
    stay zero, which is then one of the values; so prune first. Biases are kept.
    Han et al. 2016, https://arxiv.org/abs/1510.00149, but with the best clusters
    (https://arxiv.org/abs/1701.07204) and with gradients that are means over the weights of a
    value, not sums: so learning rates are those of weights.

    Args:
        clusters: values of a layer, 2 to 256; 16 where `bits` is not given either.
        bits: the same as 2**bits clusters, 1 to 8.
        layer_clusters: clusters of some layers, by glob over their names or "type:Linear"; the
            first match counts.
        layer_bits: bits of some layers, where `layer_clusters` names them not.

    Layers that have no more different weights than clusters are protected.

    >>> import modelzip as mz
    >>> small = mz.prepare(nn.Linear(8, 4), [mz.ClusterWeights(clusters=3)]).convert()
    >>> len(small.weight.unique())
    3
    """

    name: ClassVar[str] = "cluster_weights"
    stage: ClassVar[Stage] = Stage.WEIGHT
    needs: ClassVar[Need] = Need.NOTHING
    kinds: ClassVar[tuple[type[nn.Module], ...]] = (*masking.KINDS, nn.Embedding)

    clusters: int | None = None
    bits: int | None = None
    layer_clusters: Mapping[str, int] | None = field(default=None, hash=False)
    layer_bits: Mapping[str, int] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.clusters is not None:
            checks.integer("clusters", self.clusters, low=2, high=256)
        if self.bits is not None:
            checks.integer("bits", self.bits, low=1, high=8)
        if self.clusters is not None and self.bits is not None:
            raise SettingError(
                f"clusters={self.clusters} and bits={self.bits} say the same twice; give one"
            )
        for name, low, high in (("layer_clusters", 2, 256), ("layer_bits", 1, 8)):
            self._set(name, _by_layer(name, getattr(self, name), low=low, high=high))

    def prepare(self, model: nn.Module, context: Context) -> nn.Module:
        layers = self._layers(model)
        wanted = self._clusters(layers)
        context.record["protected"] = _protected(layers, wanted)
        layers = {n: m for n, m in layers.items() if n not in context.record["protected"]}
        if not layers:
            reasons = "; ".join(
                f"{n or 'the model'}: {why}" for n, why in context.record["protected"].items()
            )
            raise ModelError(f"cluster_weights would change nothing ({reasons}); lower clusters")
        shared = {name: self._shared(layer, wanted[name]) for name, layer in layers.items()}
        context.record["centroids"] = {name: len(s.centroids) for name, s in shared.items()}
        for name, layer in layers.items():
            surgery.attach(layer, shared[name])
            original = surgery.original_tensor(layer)
            with torch.no_grad():  # what later passes fit their grids to
                original.copy_(shared[name](original))
        return model

    def restore(self, model: nn.Module, context: Context) -> nn.Module:
        for name, count in context.record["centroids"].items():
            layer = model.get_submodule(name)
            weight = surgery.original_tensor(layer)
            indices = torch.zeros_like(weight, dtype=torch.uint8)
            surgery.attach(layer, SharedValues(weight.new_zeros(count), indices, self))
        return model

    def convert(self, model: nn.Module, context: Context) -> PassReport:
        rows = []
        for name, layer, shared in list(surgery.all_attached(model, SharedValues)):
            if shared.owner == self:
                surgery.bake(layer, SharedValues)
                rows.append(_row(name, layer))
        return PassReport(
            name=self.name,
            settings=self.settings(),
            layers=tuple(rows),
            protected=context.record["protected"],
        )

    def _layers(self, model: nn.Module) -> dict[str, nn.Module]:
        """The layers selected; an error for those that cannot be clustered."""
        layers = select(model, kinds=self.kinds, targets=self.targets, skip=self.skip)
        surgery.refuse_tied(model, layers, pass_name=self.name)
        surgery.refuse_computed(layers, pass_name=self.name)
        for name, layer in layers.items():
            if surgery.attached(layer, SharedValues) is not None:
                raise SettingError(
                    f"{name or 'the model'} is clustered already; give cluster_weights once a "
                    "layer, with layer_clusters"
                )
            if not bool(torch.isfinite(surgery.original_tensor(layer)).all()):
                raise ModelError(
                    f"{name or 'model'}.weight holds NaN or infinity, which cannot be clustered"
                )
        return layers

    def _clusters(self, layers: Mapping[str, nn.Module]) -> dict[str, int]:
        """How many values each layer is to have."""
        several = self.clusters or 2 ** (4 if self.bits is None else self.bits)
        found: dict[str, int] = {}
        named = [("layer_clusters", p, n) for p, n in (self.layer_clusters or {}).items()]
        named += [("layer_bits", p, 2**b) for p, b in (self.layer_bits or {}).items()]
        for setting, pattern, count in named:
            hit = [name for name, layer in layers.items() if matches(name, layer, pattern)]
            if not hit:
                known = [*layers, *{f"type:{type(layer).__name__}" for layer in layers.values()}]
                raise SelectionError(
                    f"{setting}: {pattern!r} matches none of the {len(layers)} layers to cluster"
                    f"{did_you_mean(pattern, known)}"
                )
            for name in hit:
                found.setdefault(name, count)
        return {name: found.get(name, several) for name in layers}

    def _shared(self, layer: nn.Module, clusters: int) -> SharedValues:
        """The clusters of a weight. Zero is one of them if a weight is zero or may become so."""
        weight = surgery.original_tensor(layer).detach()
        used = weight[masking.held(layer) & (weight != 0)]
        masked = surgery.attached(layer, masking.WeightMask) is not None
        zero = masked or len(used) < weight.numel()
        centroids = kmeans(used, clusters - zero)
        return SharedValues(centroids, nearest(weight, centroids).to(torch.uint8), self)


def _by_layer(name: str, value: object, *, low: int, high: int) -> dict[str, int] | None:
    """A mapping from patterns to integers, or SettingError; None where it is empty."""
    if value is None or value == {}:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(k, str) for k in value):
        raise SettingError(f"{name} must map layer names to numbers, got {value!r}")
    return {k: checks.integer(f"{name}[{k!r}]", n, low=low, high=high) for k, n in value.items()}


def _protected(layers: Mapping[str, nn.Module], wanted: Mapping[str, int]) -> dict[str, str]:
    """Why some of `layers` are left as they are."""
    found = {}
    for name, layer in layers.items():
        different = _different(surgery.original_tensor(layer) * masking.held(layer))
        if isinstance(layer, nn.Embedding) and layer.sparse:
            found[name] = "its gradients are sparse, and those of shared values are not"
        elif different <= wanted[name]:
            found[name] = f"its weights have {different} different values already"
    return found


def _different(weight: Tensor) -> int:
    ordered = weight.detach().flatten().sort().values
    return 1 + int((ordered[1:] != ordered[:-1]).sum())


def _row(name: str, layer: nn.Module) -> LayerReport:
    """What the plain weight of `layer` holds."""
    count, nonzero = surgery.parameter_counts(layer)
    different = _different(surgery.original_tensor(layer))
    return LayerReport(
        name=name,
        kind=type(layer).__name__.removeprefix("Parametrized"),
        parameters_before=count,
        parameters_after=count,
        nonzero=nonzero,
        bits=float((different - 1).bit_length()),
        note=f"{different} shared values",
    )
